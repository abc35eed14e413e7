"""Captions by `slipway serve`: the exported graphs alone, over HTTP and in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts.raw import RawInput
from contracts.workload import load
from serving.runtime import open_run
from tests.readme import readme_command
from tests.serving.browser import browser
from tests.serving.server import FORM, file_form, serving
from tests.workloads.captioning.conftest import Tiny


def pictures_of(tiny: Tiny, num: int) -> list[RawInput]:
    workload, records = load("captioning"), tiny.records.split("test")
    return [workload.raw_input(records[index], records.root) for index in range(num)]


@pytest.mark.slow
def test_pictures_in_memory_are_captioned_alone_as_they_are_together(tiny: Tiny, model: Path) -> None:
    workload, run, pictures = load("captioning"), open_run(model, threads=1), pictures_of(tiny, 4)
    together = [one.json() for one in workload.predict(run, pictures, tiny.settings, tiny.facts)]
    for raw, expected in zip(pictures, together, strict=True):
        [alone] = workload.predict(run, [raw], tiny.settings, tiny.facts)
        assert alone.json() == expected == {"image": raw.name, "caption": expected["caption"]}
    [broken] = workload.predict(run, [RawInput("a.png", b"no picture")], tiny.settings, tiny.facts)
    assert broken.json() == {"image": "a.png", "error": "a.png is not a picture that can be decoded (10 bytes)"}


@pytest.mark.slow
def test_a_caption_is_served_and_stands_on_the_page(tiny: Tiny, model: Path, tmp_path: Path) -> None:
    [raw] = pictures_of(tiny, 1)
    [expected] = load("captioning").predict(open_run(model, threads=1), [raw], tiny.settings, tiny.facts)
    (tmp_path / "one.png").write_bytes(raw.read())
    command = [*readme_command(".venv/bin/slipway serve"), str(model), "--port", "0", "--threads", "1"]
    with serving(command, tmp_path) as running:
        told = running.get("/model").json
        assert (told["workload"], told["version"], told["metric"], told["licence"]) == ("captioning", None, None, None)
        assert told["input_size"] == [48, 48]
        found = running.post(file_form(raw.read(), "one.png"), FORM).json
        assert found == {"image": "one.png", "caption": expected.json()["caption"]}
        assert running.post(b"no picture").status == 422
        with browser(tmp_path) as tab:
            tab.open(running.address)
            tab.until("document.getElementById('facts').children.length")
            tab.choose("#file", tmp_path / "one.png")
            tab.until("document.querySelector('#frame img')?.naturalWidth")
            assert tab.until("document.getElementById('caption').textContent") == found["caption"]
            assert json.loads(tab.value("document.getElementById('json').textContent")) == found
            assert tab.complaints == []
