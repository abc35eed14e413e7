"""Captions by `slipway serve`: the exported graphs alone, over HTTP and in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.raw import RawInput
from contracts.workload import load
from serving.runtime import open_run
from tests.readme import readme_command
from tests.serving.browser import browser
from tests.serving.page import standing
from tests.serving.server import FORM, Server, file_form, serving
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


@pytest.fixture(scope="module")
def served(
    model: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path, dict[str, str]]]:
    """A server, a picture, and what it should say of that."""
    [raw] = pictures_of(tiny, 1)
    [expected] = load("captioning").predict(open_run(model, threads=1), [raw], tiny.settings, tiny.facts)
    folder = tmp_path_factory.mktemp("served")
    (folder / "one.png").write_bytes(raw.read())
    command = [*readme_command(".venv/bin/slipway serve"), str(model), "--port", "0", "--threads", "1"]
    with serving(command, folder) as running:
        yield running, folder / "one.png", {**expected.json(), "image": "one.png"}


@pytest.mark.slow
def test_a_caption_is_served_and_the_page_s_own_script_shows_it(served: tuple[Server, Path, dict[str, str]]) -> None:
    running, picture, expected = served
    told = running.get("/model").json
    assert (told["workload"], told["version"], told["metric"], told["licence"]) == ("captioning", None, None, None)
    assert told["input_size"] == [48, 48]
    assert running.post(file_form(picture.read_bytes(), "one.png"), FORM).json == expected
    assert running.post(b"no picture").status == 422
    [page] = standing(running.address, picture)
    assert (page["caption"], page["json"], page["error"]) == (expected["caption"], expected, None)
    assert (page["masks"], page["nothing"]) == (0, None)


@pytest.mark.slow
def test_a_caption_stands_on_the_page_in_a_browser(served: tuple[Server, Path, dict[str, str]], tmp_path: Path) -> None:
    running, picture, expected = served
    with browser(tmp_path) as tab:
        tab.open(running.address)
        tab.until("document.getElementById('facts').children.length")
        tab.drop("#stage", picture)
        tab.until("document.querySelector('#frame img')?.naturalWidth")
        assert tab.until("document.getElementById('caption').textContent") == expected["caption"]
        assert json.loads(tab.value("document.getElementById('json').textContent")) == expected
        assert tab.complaints == []
