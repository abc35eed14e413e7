"""A folder of one's own pictures with a captions.csv, and one edit of params.yaml: every stage runs, and what the bases are is said."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cli.use import use
from contracts.errors import SlipwayError
from contracts.records import Records
from contracts.workload import ROOT

NUM = 24
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 210)}
STAGES = ("download", "parse", "prepare", "plan", "train", "evaluate", "export", "quantize", "report", "publish")


def write_photographs(folder: Path, num: int) -> None:
    """Noisy gradients in a colour, of many sizes, as JPEG and PNG, some in folders below, with two captions each."""
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(num):
            colour, side = list(COLOURS)[number % 3], ("left", "right")[number % 2]
            height, width = (int(value) for value in rng.integers(40, 260, 2))
            ramp = np.linspace(0.2, 1, width) if side == "right" else np.linspace(1, 0.2, width)
            picture = ramp[None, :, None] * np.array(COLOURS[colour]) + rng.normal(0, 12, (height, width, 3))
            name = f"{('', 'holiday/', 'holiday/beach/')[number % 3]}{number}.{('jpg', 'png')[number % 2]}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name)
            table.writerow([name, f"a {colour} wall lit from the {side}"])
            table.writerow([name, f"light falls from the {side}, on a wall in {colour}"])


@pytest.mark.slow
def test_one_s_own_photographs_go_through_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photographs").mkdir()
    write_photographs(tmp_path / "photographs", NUM)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    use("captioning", "small")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["captioning"]["download"]["sources"] = [str(tmp_path / "photographs")]
    params["captioning"]["prepare"]["base_steps"] = {"vision": 2, "language": 10}  # the rest is for the sake of the minutes
    params["captioning"]["train"] |= {"epochs": 2, "prefix_tokens": 1}  # and so transformers.js gets no graphs of its own
    params["captioning"]["evaluate"] = {"longest": 8}
    params["captioning"]["plan"] = {"backend": "single", "preflight": "never"}
    params["captioning"]["publish"]["least"] = {"attribute_accuracy": 0.85}  # as the default has it, for the embedded data
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for stage in STAGES[:-1]:
        importlib.import_module(f"tasks.{stage}").run("captioning")

    records = Records.open(Path("data/parse/captioning"), root=Path("data/download/captioning/raw"))
    assert len(records) == NUM and all(len(record.targets["captions"]) == 2 for record in records)
    said = capfd.readouterr().err
    assert "warning: The base models are small ones made on the spot, not pretrained" in said
    report = Path("data/report/captioning/report.md").read_text(encoding="utf-8")
    assert "The base models are small ones made on the spot, not pretrained" in report
    reached = [json.loads(file.read_text()) for file in sorted(Path("data/prepare/captioning").glob("*/reached.json"))]
    assert [set(each) for each in reached] == [{"loss"}, {"digit", "colour", "small"}], (
        "of the language model, of the encoder"
    )
    assert f"of unseen handwriting the encoder tells digit {reached[1]['digit']:.1%}, colour" in report
    assert f"the language model ended at a training loss of {reached[0]['loss']:.3f} a token of a caption." in report
    told = json.loads(Path("data/evaluate/captioning/metrics.json").read_text())
    assert told["num"] == len(records.split("test")) > 0
    try:
        importlib.import_module("tasks.publish").run("captioning")
    except SlipwayError as error:
        assert told["cider"] == 0 and "has learnt nothing" in str(error)
    else:
        assert list(Path("registry").rglob("artifact.json"))
        assert "the limit of attribute_accuracy (publish) limits nothing here: only the embedded" in capfd.readouterr().out
