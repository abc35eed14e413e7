"""What the ecosystem opens: the adapter for peft, the projection, and the whole captioner as transformers' LLaVA."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from contracts.files import remove, write_json
from contracts.workload import Facts
from workloads.captioning.bases import on_the_hub
from workloads.captioning.graph import merged
from workloads.captioning.llava import as_llava
from workloads.captioning.model import Captioner
from workloads.captioning.presenting import ADAPTER, BASE, FOLDER, not_llava
from workloads.captioning.writing import write_model

IMAGE = "<image>"


def save(captioner: Captioner, folder: Path, facts: Facts, *, name: str) -> None:
    """Write `folder`/adapter (PEFT) with what it adapts, projection.safetensors and, where LLaVA can hold it, transformers/ (merged).

    Where it cannot there is no such folder, and why is said. Of the last weights (`name` "last")
    nothing is written: the checkpoint beside them holds all that was trained.
    """
    from safetensors.torch import save_file

    if name != "best":
        return
    if hasattr(captioner.decoder, "peft_config"):
        save_adapter(captioner.decoder, folder, facts)
    state = {key: value.detach().cpu().contiguous() for key, value in captioner.projection.state_dict().items()}
    save_file(state, folder / "projection.safetensors")
    if reason := not_llava(captioner.prefix_tokens, facts):
        print(f"no folder {FOLDER}/ is written: {reason}")
    else:
        save_llava(merged(captioner), folder / FOLDER, facts)


def save_adapter(decoder: Any, folder: Path, facts: Facts) -> None:
    """The adapter alone, with the id and the commit of the language model that it adapts; one that no hub has, or of which
    layers were trained, lies beside it without the adapter."""
    trained = any(value.requires_grad and "lora_" not in name for name, value in decoder.named_parameters())
    hub = on_the_hub(facts["decoder"]) and not trained
    [config] = decoder.peft_config.values()
    config.base_model_name_or_path = facts["decoder"]["name"] if hub else BASE
    config.revision = facts["decoder"]["revision"] if hub else None
    write_model(decoder, folder / ADAPTER, save_embedding_layers=False)
    remove(folder / ADAPTER / "README.md")  # a form to be filled in
    if not hub:
        write_model(copy.deepcopy(decoder).cpu().float().unload(), folder / BASE)


def save_llava(captioner: Captioner, folder: Path, facts: Facts) -> None:
    """A merged captioner as a folder that `AutoModelForImageTextToText.from_pretrained` opens, and transformers.js too, once
    the stage `export` has put the graphs of `layout` into it."""
    model = as_llava(captioner, facts)
    # What transformers.js takes where its user names no other: the only graphs that are there.
    setattr(model.config, "transformers.js_config", {"dtype": "fp32"})
    write_model(model, folder)
    processor = _processor(facts, model.config)
    processor.save_pretrained(folder)
    # transformers.js looks for the picture's part under its older name.
    old = {**processor.image_processor.to_dict(), "processor_class": type(processor).__name__}
    write_json(folder / "preprocessor_config.json", old)


def _processor(facts: Facts, config: Any) -> Any:
    """Picture and text to tensors, as LLaVA's processor, which counts no tokens but those of a picture's parts.

    Where the encoder has a token for the whole picture, Python's processor would take one token more and, for the strategy
    "default", leave it out again; transformers.js forgets the latter.
    """
    from tokenizers import Tokenizer
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

    how, end = facts["picture"], facts["tokenizer"]["end_token"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(facts["tokenizer"]["json"]), eos_token=end, pad_token=end, padding_side="left"
    )
    missing = config.image_token_id - len(tokenizer)
    tokenizer.add_tokens([f"<unused_{index}>" for index in range(missing)])  # a model may have more rows than words
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    square = {"height": how["size"], "width": how["size"]}
    common = {"resample": how["resample"], "image_mean": how["mean"], "image_std": how["std"]}
    pictures = (
        CLIPImageProcessor(size={"shortest_edge": how["resize"]}, crop_size=square, **common)
        if how["crop"]
        else SiglipImageProcessor(size=square, **common)
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )
