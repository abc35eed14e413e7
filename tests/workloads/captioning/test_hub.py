"""Base models of the hub, on a hub of our own: what `prepare` finds there is one commit, and every stage after keeps to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from contracts.errors import SlipwayError
from contracts.workload import load as load_workload
from tests.tasks.hub_server import Files, HubServer, Repository
from tests.workloads.captioning.conftest import Tiny, write_bases
from workloads.captioning.bases import describe, loaded_models
from workloads.captioning.features import Features
from workloads.captioning.objective import build
from workloads.captioning.presenting import card
from workloads.captioning.saving import save as save_captioner
from workloads.captioning.settings import CaptioningPrepare

NAMES = {"encoder": "somebody/eyes", "decoder": "somebody/words"}
MAIN = CaptioningPrepare.model_validate({part: {"name": name, "revision": "main"} for part, name in NAMES.items()})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Both parts of a tiny captioner, each in a repository, and a machine that has fetched nothing yet."""
    import transformers.utils.hub
    from huggingface_hub import constants

    folders = write_bases(tmp_path / "made", layers=1)
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        another_machine(tmp_path / "first", monkeypatch)
        for part, name in NAMES.items():
            server.repositories[name] = Repository()
            server.repositories[name].commit(
                {path.name: path.read_bytes() for path in Path(folders[part]["name"]).iterdir()}
            )
        yield server


def another_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def newest(hub: HubServer, part: str) -> tuple[str, Files]:
    return hub.repositories[NAMES[part]].commits[-1]


def trained_on(hub: HubServer, part: str) -> None:
    """Somebody publishes other weights."""
    _, files = newest(hub, part)
    other = save({name: value + 0.01 for name, value in load(files["model.safetensors"]).items()}, metadata={"format": "pt"})
    hub.repositories[NAMES[part]].commit({**files, "model.safetensors": other, "README.md": b"better"})


def weights(facts: dict[str, Any]) -> list[torch.Tensor]:
    return [value for model in loaded_models(facts) for value in model.state_dict().values()]


def test_what_prepare_finds_on_the_hub_is_one_commit_which_everything_after_keeps_to(
    tiny: Tiny, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, commits = tiny.settings.model_copy(update={"prepare": MAIN}), {part: newest(hub, part)[0] for part in NAMES}
    facts = load_workload("captioning").prepare(tiny.records, settings, {"embedded": True}, tmp_path)
    assert {part: facts[part]["revision"] for part in NAMES} == commits
    said = capsys.readouterr().out
    assert all(f"{part} {name} at commit {commits[part]}" in said for part, name in NAMES.items())

    before = weights(facts)
    trained_on(hub, "encoder")
    trained_on(hub, "decoder")
    another_machine(tmp_path / "second", monkeypatch)
    assert all(map(torch.equal, weights(facts), before)), "and not what `main` is by now"

    told = card(settings, facts)
    assert told.base_models == list(NAMES.values())
    assert f'from_pretrained("somebody/words", revision="{commits["decoder"]}"' in told.use
    (tmp_path / "model").mkdir()
    save_captioner(build(settings, facts, pretrained=True).captioner, tmp_path / "model", facts, name="best")
    adapter = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("somebody/words", commits["decoder"])
    assert not (tmp_path / "model" / "base").exists()

    after = describe(MAIN, tmp_path)
    assert {part: after[part]["revision"] for part in NAMES} == {part: newest(hub, part)[0] for part in NAMES}
    assert len(Features.of(facts, tmp_path)) > 0 == len(Features.of(after, tmp_path)), (
        "features are of the weights they came from"
    )


def test_without_the_hub_its_models_are_what_this_machine_last_had_and_where_it_had_none_that_is_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = describe(MAIN, tmp_path)
    before = weights(facts)
    trained_on(hub, "encoder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe(MAIN, tmp_path) == facts
    assert all(map(torch.equal, weights(facts), before))
    another_machine(tmp_path / "second", monkeypatch)
    with pytest.raises(
        SlipwayError, match=r"the base model somebody/eyes \(revision main\) cannot be opened: .*could not be reached"
    ):
        describe(MAIN, tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"name": "somebody/nothing"}, {"name": "somebody/words", "revision": "v7"}, {"name": "no/such/folder"}]
)
def test_a_model_or_revision_that_the_hub_does_not_have_is_named_before_anything_is_made(
    hub: HubServer, tmp_path: Path, wrong: dict[str, str]
) -> None:
    settings = CaptioningPrepare.model_validate({"decoder": wrong, "base_steps": {"vision": 1, "language": 1}})
    with pytest.raises(
        SlipwayError, match=rf"the base model {wrong['name']} \(revision .*\) cannot be opened: .*"
    ) as refused:
        describe(settings, tmp_path / "bases")
    assert "\n" not in str(refused.value) and not (tmp_path / "bases").exists()
