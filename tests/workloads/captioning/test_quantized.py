"""The stage quantize on a captioner: 8 bits and, in the language model alone, 4; what is chosen among them, and what is said of it.

The data's captions are what the captioner itself says in fp32, so that there is something to lose. The clock is given: which of
them is faster at these sizes is nobody's business.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from contracts.files import read_json, write_json
from contracts.plan import Plan
from contracts.records import write_records
from contracts.run import RunSpec
from contracts.workload import load
from engine.torch_runtime import torch_run
from engine.weights import frozen_bases, save_weights
from serving.runtime import open_run
from tasks import export, quantize
from tasks.shipping.storing import with_data
from tasks.trained import Trained
from tests.workloads.captioning.conftest import Tiny
from tests.workloads.captioning.test_generating import LONGEST
from workloads.captioning.graph import graphs
from workloads.captioning.predicting import measure

EXPORTED, OUTPUT = (Path("data") / stage / "captioning" for stage in ("export", "quantize"))
PLAN = Plan("single", "cpu", 1, 8, 1, 1, 0, 1, "fp32", {})
EVALUATE = {"longest": LONGEST}


def write_project(tiny: Tiny, objective: Any) -> None:
    """The current folder as it stands after the stage train, of the tiny captioner."""
    workload, place = load("captioning"), Path("data/train/captioning/model")
    settings: Any = workload.Settings.model_validate({**tiny.settings.model_dump(), "evaluate": EVALUATE})
    said = measure(torch_run(graphs(objective.captioner, tiny.facts), "cpu"), tiny.records, settings, tiny.facts)
    records = [
        dataclasses.replace(record, targets={**record.targets, "captions": [each["caption"]]})
        for record, each in zip(tiny.records, said, strict=True)
    ]
    inputs, targets = workload.schema()
    write_records(Path("data/parse/captioning"), iter(records), inputs=inputs, targets=targets, shares=settings.parse.shares)
    Path("data/download/captioning").mkdir(parents=True)
    Path("data/download/captioning/raw").symlink_to(tiny.records.root)
    left_out = frozen_bases(workload, objective)
    learnt = {name: value for name, value in objective.state_dict().items() if name not in left_out}
    save_weights(learnt, place / "weights.safetensors")
    spec = RunSpec("captioning", settings.model_dump(mode="json"), tiny.facts, "", "", "", PLAN, "f" * 32)
    spec.write(place / "spec.json")


@pytest.fixture(scope="module")
def exported(tiny: Tiny, objective: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project after the stage export, as far as quantize reads what that wrote."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(tiny, objective)
        configure(tiny)
        trained = Trained.open("captioning")
        shutil.copytree(model / "graphs", EXPORTED / "graphs")
        told = export.describe(trained.graphs(), workload=trained.name, settings=trained.settings, facts=trained.facts)
        write_json(EXPORTED / "artifact.json", with_data(told, EXPORTED))
        write_json(EXPORTED / "parity.json", {"passed": True})
    return folder


def configure(tiny: Tiny, **how: Any) -> None:
    section = {"prepare": tiny.settings.prepare.model_dump(mode="json"), "evaluate": EVALUATE, "quantize": how}
    write_json(Path("params.yaml"), {"captioning": section})


@pytest.mark.parametrize(
    ("recipes", "int4_takes", "budget", "chosen"),
    [
        (["int8_dynamic", "int4"], 0.5, 1.0, "int4"),
        (["int8_dynamic", "int4"], 1.5, 1.0, "int8_dynamic"),
        (["int4"], 0.5, 0.0, "fp32"),
    ],
)
def test_the_ladder_chooses_among_eight_and_four_bits_and_says_why(
    tiny: Tiny,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipes: list[str],
    int4_takes: float,
    budget: float,
    chosen: str,
) -> None:
    times = {"torch": 3.0, "fp32": 2.0, "int8_dynamic": 1.0, "int4": int4_takes}
    monkeypatch.setattr(quantize, "interleaved", lambda runs, laps, seconds: {name: times[name] for name in runs})
    monkeypatch.chdir(exported)
    configure(tiny, recipes=recipes, budget=budget)
    quantize.run("captioning")
    candidates, comparison = (read_json(OUTPUT / f"{name}.json") for name in ("candidates", "comparison"))
    rows = {row["name"]: row for row in candidates["rows"]}
    assert list(rows) == recipes
    assert candidates["reference"] > 1, "there is something to lose"
    assert 0 < rows["int4"]["loss_share"] < 1, "4 bits say something else of some pictures, and not of all"
    assert rows["int4"]["bytes"] < sum(path.stat().st_size for path in (EXPORTED / "graphs").glob("*.onnx"))
    assert chosen == candidates["chosen"] == comparison["chosen"] == open_run(OUTPUT).artifact.recipe
    assert rows["int4"]["status"] == {"int4": "chosen", "int8_dynamic": "inside", "fp32": "refused"}[chosen]
    words = "the budget is 0.0%" if chosen == "fp32" else f"{2 / int4_takes:.2f} times as fast as fp32"
    assert words in rows["int4"]["reason"] and candidates["reason"].startswith(f"{chosen} ships: ")
    assert [row["name"] for row in comparison["rows"]] == ["torch", "fp32", *({chosen} - {"fp32"})]
    torch, ships = comparison["rows"][0]["metrics"], comparison["rows"][-1]["metrics"]
    assert (
        set(torch) == set(ships) >= {"cider", "rougeL", "attribute_accuracy"}
        and ships["cider"] == comparison["rows"][-1]["metric"]
    )
    if chosen == "int4":
        assert ships["rougeL"] != torch["rougeL"], "it is what ships that was measured"
        encoder, *decoders = (f"graphs/{name}.onnx" for name in ("encoder", "prefill", "decode"))
        assert (OUTPUT / encoder).read_bytes() == (EXPORTED / encoder).read_bytes()
        for decoder in decoders:
            assert Counter(node.op_type for node in onnx.load(OUTPUT / decoder).graph.node)["MatMulNBits"] > 10
