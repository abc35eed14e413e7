"""What a run tells TensorBoard, W&B and MLflow, each for real: event files, W&B offline, MLflow in a folder and a database."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from contracts.workload import ROOT
from engine import sinks
from engine.sinks import Follower, Mlflow, NewLines, Row, Sink, TensorBoard, Wandb, flatten, sinks_for, without_secrets
from engine.tracking import Journal

TRAINING = {"epoch": 0.5, "learning_rate": 0.1, "loss": 2.0, "loss_mask": 1.5}
SETTINGS = {"train": {"learning_rate": 0.1, "optimizer": "SGD", "token": "hf_1234567890"}, "sizes": [1, 2]}


class Kept:
    """A sink that keeps what it is given."""

    name = "kept"

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.runs: list[str | None] = []
        self.closed: list[bool] = []

    def load(self) -> None: ...

    def open(self, run: str | None) -> str:
        self.runs.append(run)
        return run or "one"

    def write(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def close(self, *, failed: bool) -> None:
        self.closed.append(failed)

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.rows]


class Broken(Kept):
    """A sink that says what a server's client may say."""

    name = "broken"

    def write(self, rows: Sequence[Row]) -> None:
        raise ConnectionError(f"no answer from https://me:{os.environ['MLFLOW_TRACKING_PASSWORD']}@there\nor elsewhere")


class Loading(Kept):
    """A sink that needs a moment to import what it needs and sees whether another does so at the same time."""

    under_way, most = 0, 0

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def load(self) -> None:
        Loading.under_way += 1
        Loading.most = max(Loading.most, Loading.under_way)
        time.sleep(0.05)
        Loading.under_way -= 1


class Stuck(Kept):
    """A sink whose server takes its time."""

    name = "stuck"

    def write(self, rows: Sequence[Row]) -> None:
        time.sleep(3)


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Polls often, and leaves the environment as it was."""
    monkeypatch.setattr(sinks, "POLL_SECONDS", 0.02)
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(("WANDB_", "MLFLOW_"))]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "metrics.jsonl", resumed_at=0)


def _wait_until(kept: Kept, num_rows: int) -> None:
    for _ in range(500):
        if len(kept.rows) >= num_rows:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(kept.rows)} of {num_rows} rows within 5 s")


def _train(journal: Journal, sink: Sink, first: int, last: int) -> None:
    """Steps `first` to `last` with a validation after the last."""
    with Follower(journal.path, [sink]):
        for step in range(first, last + 1):
            journal.write(step=step, **{**TRAINING, "loss": 10 / step})
        journal.write(step=last, epoch=0.5, map50=0.25, perplexity=float("inf"))


def test_no_two_sinks_import_at_the_same_time(journal: Journal) -> None:
    loading = [Loading("first"), Loading("second"), Loading("third")]
    with Follower(journal.path, loading):
        journal.write(step=1, **TRAINING)
    assert [sink.steps for sink in loading] == [[1]] * 3
    assert Loading.most == 1


def test_lines_are_passed_on_while_the_run_is_under_way(journal: Journal) -> None:
    kept = Kept()
    with Follower(journal.path, [kept]):
        journal.write(step=1, **TRAINING)
        _wait_until(kept, 1)
        assert kept.rows == [(1, TRAINING)]
        assert kept.closed == []
    assert kept.closed == [False]


def test_what_is_left_at_the_end_is_passed_on_also_when_training_failed(journal: Journal) -> None:
    kept = Kept()
    with pytest.raises(ValueError, match="a rank fell"), Follower(journal.path, [kept]):
        journal.write(step=1, **TRAINING)
        raise ValueError("a rank fell")
    assert kept.rows == [(1, TRAINING)]
    assert kept.closed == [True]


def test_a_run_that_wrote_nothing_opens_nothing(journal: Journal) -> None:
    kept = Kept()
    with Follower(journal.path, [kept]):
        pass
    assert (kept.runs, kept.closed) == ([], [])


def test_training_and_validation_of_one_step_both_arrive(journal: Journal) -> None:
    kept = Kept()
    _train(journal, kept, 1, 2)
    assert kept.rows[-1] == (2, {"map50": 0.25})
    assert kept.steps == [1, 2, 2]


def test_a_line_that_is_half_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = NewLines(path)
    assert lines.read() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert lines.read() == [{"step": 1}]
    with path.open("a") as file:
        file.write("2}\n")
    assert lines.read() == [{"step": 22}]
    assert lines.read() == []


def test_a_file_that_was_written_anew_is_read_anew_however_long_it_is(journal: Journal) -> None:
    lines = NewLines(journal.path)
    journal.write(step=1)
    assert lines.read() == [{"step": 1}]
    again = Journal(journal.path, resumed_at=0)
    for step in range(1, 4):
        again.write(step=step)
    assert lines.read() == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_journal_that_was_cut_for_a_resume_repeats_nothing(journal: Journal) -> None:
    kept = Kept()
    with Follower(journal.path, [kept]):
        for step in range(1, 8):
            journal.write(step=step, **TRAINING)
        _wait_until(kept, 7)
        again = Journal(journal.path, resumed_at=4)
        for step in range(5, 10):
            again.write(step=step, **TRAINING)
    assert kept.steps == list(range(1, 10))


def test_a_run_resumed_in_a_new_process_goes_on_where_the_sink_was(journal: Journal) -> None:
    first, second = Kept(), Kept()
    _train(journal, first, 1, 3)
    with Follower(journal.path, [first]):
        journal.write(step=4, **TRAINING)
        journal.write(step=5, **TRAINING)
    _train(Journal(journal.path, resumed_at=3), second, 4, 6)
    assert first.steps == [1, 2, 3, 3, 4, 5]
    assert second.steps == [6, 6]
    assert (first.runs, second.runs) == ([None, "one"], ["one"])


def test_a_sink_that_fails_is_said_once_and_dropped(journal: Journal, capfd: pytest.CaptureFixture[str]) -> None:
    os.environ["MLFLOW_TRACKING_PASSWORD"] = "hunter2"
    kept, broken = Kept(), Broken()
    with Follower(journal.path, [broken, kept]):
        for step in range(1, 4):
            journal.write(step=step, **TRAINING)
            _wait_until(kept, step)
    said = capfd.readouterr().err
    assert said == (
        "warning: broken gets no more of this run: ConnectionError: no answer from https://***@there or elsewhere\n"
    )
    assert (kept.steps, broken.closed) == ([1, 2, 3], [])


def test_a_slow_sink_holds_back_neither_the_others_nor_the_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sinks, "CLOSING_SECONDS", 0.2)
    stuck, kept = Stuck(), Kept()
    started = time.monotonic()
    with Follower(journal.path, [stuck, kept]):
        journal.write(step=1, **TRAINING)
        _wait_until(kept, 1)
    assert time.monotonic() - started < 2
    assert "warning: stuck gets no more of this run: it was not done" in capfd.readouterr().err


def test_a_missing_package_is_said_with_the_way_out(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    _train(journal, Wandb("run", {}, journal.path.parent, project="slipway"), 1, 2)
    assert "pip install 'slipway[tracking]'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, []),
        ({"WANDB_API_KEY": "k"}, ["wandb"]),
        ({"WANDB_MODE": "offline"}, ["wandb"]),
        ({"WANDB_MODE": "online"}, []),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, []),
        ({"MLFLOW_TRACKING_URI": "http://localhost:5000"}, ["mlflow"]),
        ({"MLFLOW_TRACKING_URI": ""}, []),
        ({"MLFLOW_TRACKING_URI": "runs", "WANDB_API_KEY": "k"}, ["wandb", "mlflow"]),
    ],
)
def test_wandb_and_mlflow_are_fed_only_where_the_environment_asks(
    tmp_path: Path, environment: dict[str, str], wanted: list[str]
) -> None:
    found = sinks_for("run", SETTINGS, tmp_path, environment=environment)
    assert [sink.name for sink in found] == ["tensorboard", *wanted]


def test_settings_are_flattened_without_secrets() -> None:
    given = {**SETTINGS, "source": "https://me:pass@host/data", "max_tokens": 5, "hub": {"api_key": "k"}}
    assert dict(flatten(given)) == {
        "train.learning_rate": 0.1,
        "train.optimizer": "SGD",
        "sizes": [1, 2],
        "source": "https://***@host/data",
        "max_tokens": 5,
    }


def test_no_key_of_the_environment_is_ever_said() -> None:
    environment = {"WANDB_API_KEY": "0123456789", "AWS_SECRET_ACCESS_KEY": "abc/def", "HOME": "/root"}
    text = without_secrets("401 for 0123456789 and abc/def in /root", environment)
    assert text == "401 for *** and *** in /root"


def test_tensorboard_reads_what_two_parts_of_a_run_wrote(journal: Journal) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = journal.path.parent / "tensorboard"
    _train(journal, TensorBoard(folder), 1, 3)
    _train(Journal(journal.path, resumed_at=2), TensorBoard(folder), 3, 5)
    read = EventAccumulator(str(folder)).Reload()
    assert set(read.Tags()["scalars"]) == {*TRAINING, "map50"}
    losses = [(event.step, event.value) for event in read.Scalars("loss")]
    assert losses == [(step, pytest.approx(10 / step)) for step in range(1, 6)]
    assert [event.step for event in read.Scalars("map50")] == [3, 5]


def _wandb_records(folder: Path) -> list[Any]:
    """The records of a .wandb file shorter than its first block of 32 KiB: after 7 bytes, each has a checksum, length, kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    [path] = folder.glob("*.wandb")
    content, records, place = path.read_bytes(), [], 7
    while place < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1
        records.append(Record.FromString(content[place + 7 : place + 7 + length]))
        place += 7 + length
    return records


def _wandb_history(records: list[Any]) -> list[dict[str, Any]]:
    items = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    rows = [{(item.key or item.nested_key[0]): json.loads(item.value_json) for item in row} for row in items]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def test_wandb_offline_writes_a_run_that_a_resume_continues(journal: Journal, capfd: pytest.CaptureFixture[str]) -> None:
    os.environ["WANDB_MODE"] = "offline"
    output = journal.path.parent

    def wandb() -> Sink:
        return sinks_for("scenes-1", SETTINGS, output)[1]

    _train(journal, wandb(), 1, 2)
    time.sleep(1.1)  # W&B names the folder of a part by its second
    _train(Journal(journal.path, resumed_at=2), wandb(), 3, 4)
    first, second = (_wandb_records(folder) for folder in sorted((output / "wandb").glob("offline-run-*")))
    assert _wandb_history(first) == [
        {"step": 1, **TRAINING, "loss": 10},
        {"step": 2, **TRAINING, "loss": 5},
        {"step": 2, "map50": 0.25},
    ]
    assert [row["step"] for row in _wandb_history(second)] == [3, 4, 4]
    runs = [record.run for part in (first, second) for record in part if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {json.loads((output / "sinks" / "wandb.json").read_text())["run"]}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update if item.key != "_wandb"}
    assert config == {"train.learning_rate": 0.1, "train.optimizer": "SGD", "sizes": [1, 2]}
    assert (runs[0].project, runs[0].display_name, runs[0].host) == ("slipway", "scenes-1", "")
    assert not list((output / "wandb").rglob("requirements.txt"))
    assert "warning" not in capfd.readouterr().err.lower()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own use of SQLAlchemy 2.1
@pytest.mark.parametrize("place", ["file://{}/store", pytest.param("sqlite:///{}/store.db", marks=pytest.mark.slow)])
def test_mlflow_keeps_a_run_that_a_resume_continues(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.chdir(journal.path.parent)  # a database puts the folder of its artifacts here
    os.environ["MLFLOW_TRACKING_URI"] = place.format(journal.path.parent)

    def mlflow() -> Sink:
        return sinks_for("scenes-1", SETTINGS, journal.path.parent)[1]

    _train(journal, mlflow(), 1, 3)
    with pytest.raises(KeyboardInterrupt), Follower(journal.path, [mlflow()]):
        Journal(journal.path, resumed_at=2).write(step=4, **TRAINING)
        raise KeyboardInterrupt
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("slipway")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("scenes-1", "FAILED")
    assert run.data.params == {"train.learning_rate": "0.1", "train.optimizer": "SGD", "sizes": "[1, 2]"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 10), (2, 5), (3, pytest.approx(10 / 3)), (4, 2)]
    assert run.data.metrics["map50"] == 0.25
    assert "warning:" not in capfd.readouterr().err


def test_an_mlflow_server_that_does_not_answer_is_one_warning_without_its_password(
    journal: Journal, capfd: pytest.CaptureFixture[str]
) -> None:
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    _train(journal, Mlflow("run", {}, "http://me:hunter2@127.0.0.1:9", experiment="slipway"), 1, 2)
    said = capfd.readouterr()
    assert said.err.count("warning: mlflow gets no more of this run") == 1
    assert "hunter2" not in said.out + said.err


WATCHED = """
import os, sys
told = []
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.sendto") or (event == "socket.connect" and not isinstance(arguments[1], (str, bytes))):
        told.append((event, str(arguments)))
sys.addaudithook(hook)
from pathlib import Path
from engine.sinks import Follower, sinks_for
from engine.tracking import Journal
output = Path(sys.argv[1])
journal = Journal(output / "metrics.jsonl", resumed_at=0)
with Follower(journal.path, sinks_for("run", {}, output)):
    journal.write(step=1, loss=1.0)
if "mlflow" in sys.modules:
    from mlflow.telemetry import get_telemetry_client
    assert get_telemetry_client() is None
if "wandb" in sys.modules:
    from wandb.env import error_reporting_enabled
    assert not error_reporting_enabled()
print(told, sorted({"wandb", "mlflow", "torch"} & sys.modules.keys()), sorted(path.stem for path in (output / "sinks").iterdir()))
"""


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_calls_the_network_and_telemetry_is_off(tmp_path: Path, asked: bool) -> None:
    quiet = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}  # no sign of a test, for MLflow
    local = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"file://{tmp_path}/store"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "run")],
        env={**quiet, **(local if asked else {})},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    loaded, fed = (["mlflow", "wandb"], ["mlflow", "tensorboard", "wandb"]) if asked else ([], ["tensorboard"])
    assert done.stdout.strip() == f"[] {loaded} {fed}"
