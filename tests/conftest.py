"""Small real data for every test: examples that a workload's own `sample()` drew, parsed by its real parser."""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WAITING_FOR_RUNS_OF", str(os.getpid()))  # the first process that comes here: all others are below it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background: what tests start would be deaf to it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parents[1]
# A short run: 8 samples a batch, in ghost batches of 2.
SHORT = {"global_batch": 8, "ghost_batch": 2, "epochs": 2, "warmup_epochs": 0.5, "optimizer": "SGD", "ema_decay": 0.9}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of whole pipelines first: begun last, each would keep one process busy for minutes while the others are idle."""
    items.sort(key=lambda item: item.path.name != "test_every_workload.py")


def pytest_fixture_setup() -> None:
    """What a fixture leaves to chance comes out the same, whichever test is the first to ask for it."""
    _begin_chance_anew()


def pytest_runtest_call() -> None:
    """What a test leaves to chance comes out the same, alone and after others."""
    _begin_chance_anew()


def _begin_chance_anew() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@dataclass(frozen=True)
class Examples:
    """Raw examples, the folder with their records, and their facts."""

    raw: Path
    records: Path
    facts: dict[str, Any]


Scenes = Examples  # those of segmentation


def prepared(name: str, settings: Any, folder: Path, *, num: int) -> Examples:
    """A workload's own sample of `num` examples as `download`, `parse` and `prepare` leave it, below `folder`."""
    from contracts.records import Record, Records, write_records
    from contracts.workload import load

    workload = load(name)
    raw, parsed, own = folder / "raw", folder / "parse", folder / "prepare"
    raw.mkdir()
    own.mkdir()
    workload.sample(raw, num)
    inputs, targets = workload.schema()
    found = (item for item in workload.parse(raw, settings, processes=1) if isinstance(item, Record))
    write_records(parsed, found, inputs=inputs, targets=targets, shares=settings.parse.shares)
    records = Records.open(parsed, root=raw)
    facts = workload.facts(raw, records, settings)
    made = workload.prepare(records, settings, facts, own)
    return Examples(raw, parsed, {**facts, **made, **({"prepared": str(own)} if made else {})})


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """48 scenes of digits."""
    from contracts.workload import load

    return prepared("segmentation", load("segmentation").Settings(), tmp_path_factory.mktemp("scenes"), num=48)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Rows of the tiny workload: 5 steps an epoch, the last of which takes some of the next one's."""
    from tests.engine.tiny_workload import write_rows

    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "parse", num_train=37, num_val=11)
    return Examples(folder, folder / "parse", {})


@pytest.fixture(scope="session")
def small_examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Examples]]:
    """The preset `small` of a workload, and 48 examples of its own sample prepared with it; made once for each. A captioner's base
    models have learnt nothing: any will do whose words are far enough apart for adapters to tell them from each other."""
    from cli.use import preset_file
    from contracts.settings import read_params, validate
    from contracts.workload import load
    from tests.workloads.captioning.conftest import write_bases

    @functools.cache
    def made(workload: str) -> tuple[Any, Examples]:
        section = read_params(preset_file(workload, "small"))
        if workload == "captioning":
            section["prepare"] = write_bases(tmp_path_factory.mktemp("bases"), spread=0.1)
        settings = validate(load(workload).Settings, section, where=workload)
        return settings, prepared(workload, settings, tmp_path_factory.mktemp(workload), num=48)

    return made


@pytest.fixture
def make_spec(scenes: Scenes, tmp_path: Path) -> Callable[..., Any]:
    """A short run of segmentation on the scenes, at 32 px; keywords change settings of `train`, `layout` the plan."""
    return _runs("segmentation", scenes, tmp_path, image_size=32, learning_rate=0.002)


@pytest.fixture
def make_tiny_spec(rows: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """As `make_spec`, of the tiny workload, which all ranks launched in the test know: they start in half the time."""
    from tests.engine.tiny_ranks import join_the_house

    join_the_house(monkeypatch.setattr)
    return _runs("tiny", rows, tmp_path, learning_rate=0.05)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is the same in all processes that the tests run in."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def waiting(shared: Path) -> Any:
    """Ranks that are there already, for runs of every test; they end with the process that all tests belong to."""
    from tests.engine.waiting_ranks import WaitingRanks

    folder = shared / "waiting"
    folder.mkdir(exist_ok=True)
    return WaitingRanks(folder)


@pytest.fixture(scope="session")
def train(waiting: Any) -> Callable[..., Any]:
    """Trains a run in processes of its own as `launch` does, but on ranks that are there already; `planted` names a fault of theirs."""
    return waiting.train


def _runs(workload: str, examples: Examples, folder: Path, **usual: Any) -> Callable[..., Any]:
    """Makes short runs of a workload, with `usual` settings of `train`, below `folder`."""
    from contracts.plan import Plan
    from contracts.run import RunSpec
    from contracts.workload import load

    def make(
        name: str = "run",
        *,
        ranks: int = 1,
        micro_batch: int = 2,
        fingerprint: str = "one",
        backend: str | None = None,
        layout: dict[str, Any] | None = None,
        **train: Any,
    ) -> RunSpec:
        settings = load(workload).Settings.model_validate({"train": {**SHORT, **usual, **train}})
        accumulation = settings.train.global_batch // (ranks * micro_batch)
        backend = backend or ("ddp" if ranks > 1 else "single")
        plan = Plan(backend, "cpu", ranks, micro_batch, accumulation, 1, 0, 2, "fp32", {}, **layout or {})  # pyright: ignore
        folders = {"records": str(examples.records), "root": str(examples.raw), "output": str(folder / name)}
        return RunSpec(
            workload, settings.model_dump(mode="json"), examples.facts, **folders, plan=plan, fingerprint=fingerprint
        )

    return make
