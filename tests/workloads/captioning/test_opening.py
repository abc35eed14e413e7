"""The lines by which a published captioner opens elsewhere, taken from the pages that show them and run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contracts.workload import ROOT
from engine.torch_runtime import torch_run
from tests.workloads.captioning.conftest import Tiny, write_bases
from tests.workloads.captioning.test_generating import images_of, loud
from workloads.captioning.bases import describe as describe_bases
from workloads.captioning.generating import describe
from workloads.captioning.graph import graphs
from workloads.captioning.layout import layout
from workloads.captioning.objective import build
from workloads.captioning.presenting import card
from workloads.captioning.saving import save
from workloads.captioning.settings import CaptioningPrepare
from workloads.captioning.words import Words

COMMIT = "0123456789" * 4
PAGE = ROOT / "docs" / "workloads" / "captioning.md"
EVIDENCE = ROOT / "docs" / "evidence" / "transformers-js.md"


def lines_of(page: str, language: str = "python") -> str:
    """The Python, or what else, that a page shows."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def said_by_the_lines_of(page: str, *folders: Path) -> list[str]:
    """What the Python that a page shows prints in one folder after the other, where nothing of this project can be imported."""
    code = "".join(f"import os\nos.chdir({str(folder)!r})\n{lines_of(page)}\n" for folder in folders)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code],
        cwd=folders[0],
        env={**alone, "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def on_the_hub(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "decoder": {**facts["decoder"], "name": "somebody/words", "revision": COMMIT, "sha256": None}}


def moved_away(tiny: Tiny, folder: Path, *, encoder: str) -> tuple[Path, str]:
    """A folder with a picture and a published captioner that were made in another, which is gone, and the picture's caption."""
    made, elsewhere = folder / "made", folder / "elsewhere"
    facts = describe_bases(CaptioningPrepare.model_validate(write_bases(made, encoder=encoder)), made)
    captioner = loud(build(tiny.settings, facts, pretrained=True)).captioner
    save(captioner, made / "model", facts, name="best")
    image, run = images_of(tiny, 4)[3], torch_run(graphs(captioner, facts), "cpu")
    [tokens] = describe(run, image[None], facts["picture"], end=facts["tokenizer"]["end"], longest=32, beams=1)
    (made / "model").rename(elsewhere)
    made.rename(folder / "gone")
    Image.fromarray(image).save(elsewhere / "picture.png")
    return elsewhere, Words(facts["tokenizer"]).text(tokens)


@pytest.mark.slow
def test_the_documented_lines_say_the_merged_models_caption_in_a_folder_that_was_moved(tiny: Tiny, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    places, captions = zip(*(moved_away(tiny, tmp_path / one, encoder=one) for one in ("siglip", "clip")), strict=True)
    said = [line.strip() for line in said_by_the_lines_of(page, *places)]
    assert all(captions) and said == [caption for caption in captions for _ in ("merged", "adapted")]
    assert "trust_remote_code" not in page


def test_the_card_and_the_workloads_page_show_the_same_lines(tiny: Tiny) -> None:
    page = PAGE.read_text(encoding="utf-8")
    told = card(tiny.settings, tiny.facts).use
    assert lines_of(told) == lines_of(page)
    opening = [
        block.strip().split("\n\n")[:-1] for block in re.findall(r"^```python\n(.*?)^```", told, re.MULTILINE | re.DOTALL)
    ]
    assert [sum(len(part.splitlines()) for part in block) for block in opening] == [3, 3], "three statements open each"
    hub = card(tiny.settings, on_the_hub(tiny.facts)).use
    assert f'AutoModelForCausalLM.from_pretrained("somebody/words", revision="{COMMIT}", dtype="float32")' in hub
    pooled = card(tiny.with_train(prefix_tokens=1), tiny.facts).use
    assert "no folder `transformers`" in pooled and "the prefix is pooled to 1 tokens" in pooled
    assert "PeftModel" in pooled and "processor" not in pooled
    assert "peft" not in card(tiny.with_train(lora=None), tiny.facts).use


def test_the_lines_for_transformers_js_are_those_that_were_run() -> None:
    shown, run = (lines_of(page.read_text(encoding="utf-8"), "js") for page in (PAGE, EVIDENCE))
    assert shown and run == f"{shown}console.log(caption);\n"


def test_a_language_model_that_llava_cannot_hold_is_saved_for_peft_alone_and_the_page_says_why(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = describe_bases(CaptioningPrepare.model_validate(write_bases(tmp_path, decoder="gpt2", layers=1)), tmp_path)
    captioner = build(tiny.settings, facts, pretrained=True).captioner
    (tmp_path / "model").mkdir()
    save(captioner, tmp_path / "model", facts, name="best")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"adapter", "base", "projection.safetensors"}
    assert layout(captioner, facts) is None
    why, told = "LLaVA cannot hold a language model of type gpt2", card(tiny.settings, facts)
    assert why in told.use and why in capsys.readouterr().out and told.library == "onnx"
    assert "PeftModel" in told.use and "processor" not in told.use


@pytest.mark.parametrize(("hub", "unfrozen", "name"), [(False, 0, "base"), (True, 0, "somebody/words"), (True, 1, "base")])
def test_the_adapter_names_what_it_adapts_and_that_is_to_be_had(
    tiny: Tiny, tmp_path: Path, hub: bool, unfrozen: int, name: str
) -> None:
    import torch
    from safetensors.torch import load_file

    settings = tiny.with_train(unfreeze_decoder=unfrozen)
    captioner = loud(build(settings, tiny.facts, pretrained=True)).captioner
    facts = on_the_hub(tiny.facts) if hub else tiny.facts
    save(captioner, tmp_path, facts, name="best")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == name and told["revision"] == (COMMIT if name != "base" else None)
    assert (tmp_path / "base").is_dir() == (name == "base")
    assert ('from_pretrained("base"' in card(settings, facts).use) == (name == "base")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or str(tiny.folder).encode() not in path.read_bytes(), path
    if name == "base":
        weights = load_file(tmp_path / "base" / "model.safetensors")
        own = captioner.decoder.get_base_model().state_dict()
        key = "model.layers.0.self_attn.q_proj.{}weight"
        assert torch.equal(weights[key.format("")], own[key.format("base_layer.")]), "the base, and not the merged model"
