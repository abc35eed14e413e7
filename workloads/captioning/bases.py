"""The base models that a captioner starts from: found on the hub or in a folder, or the embedded ones; described by their configurations."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.workload import Facts
from workloads.captioning.settings import Base, CaptioningPrepare

if TYPE_CHECKING:
    from torch import nn

# Vision models by their type in a configuration, with their classes in transformers.
ENCODERS = {
    "siglip_vision_model": "SiglipVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "vit": "ViTModel",
}

# Weights of a vision model that come after what captioning takes from it: a checkpoint may be without them.
UNREAD = re.compile(r"(^|\.)(head|pooler)\.")

# What those that are made on the spot have learnt from, where the data are a user's own.
LEARNT_FROM = {"encoder": "from drawn digits and has never seen a photograph", "decoder": "from these captions alone"}


def describe(settings: CaptioningPrepare, folder: Path, *, captions: Sequence[str] | None = None) -> dict[str, Any]:
    """Facts on the base models, enough to build them without weights: where they come from, their configurations, the
    tokenizer, and what the encoder's processor does to a picture. Those that the settings do not name are made below `folder`,
    after the others were found; where the data are not the embedded ones, the language model from `captions`, and `made` says
    which parts they are. `reached` has the figures of each part that was made, `not_llava` why LLaVA cannot hold the language model, where it cannot.

    Raises:
        SlipwayError: when a model cannot be had, or is none of those that captioning can use.
    """
    from transformers import AutoImageProcessor

    from workloads.captioning import base
    from workloads.captioning.llava import unfit
    from workloads.captioning.processor import picture

    kinds = {"encoder": "vision", "decoder": "language"}
    named = {part: pinned(getattr(settings, part)) for part in kinds if getattr(settings, part)}
    missing = [part for part in kinds if part not in named]
    made = base.make(folder, settings.base_steps, kinds=[kinds[part] for part in missing], captions=captions)
    encoder, decoder = (named.get(part) or Base(name=made[kind].as_posix()) for part, kind in kinds.items())
    reached = {part: read_json(made[kinds[part]] / base.REACHED) for part in missing}
    text = _text_config(decoder)
    not_llava = unfit(text)
    return {
        "encoder": _described(encoder, _vision_config(encoder)),
        "decoder": _described(decoder, text),
        "picture": picture(opened(AutoImageProcessor.from_pretrained, encoder), name=encoder.name),
        "tokenizer": _tokenizer(decoder),
        **({"made": missing} if missing and captions is not None else {}),
        **({"reached": reached} if reached else {}),
        **({"not_llava": not_llava} if not_llava else {}),
    }


def not_pretrained(facts: Facts) -> str | None:
    """What a user must know whose own pictures are captioned with base models that were made on the spot."""
    if not facts.get("made"):
        return None
    learnt = "; ".join(f"the {part} has learnt {LEARNT_FROM[part]}" for part in facts["made"])
    return (
        f"The base models are small ones made on the spot, not pretrained: {learnt}. captioning.prepare.encoder and"
        " captioning.prepare.decoder name real ones; `slipway use captioning distilvit` writes both (then set download and parse again)."
    )


def reached(facts: Facts) -> str | None:
    """What the base models that were made on the spot could do before any captioner was trained; None where there are none."""
    found, said = facts.get("reached", {}), []
    if "encoder" in found:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found["encoder"].items())
        said.append(f"of unseen handwriting the encoder tells {shares} right")
    if "decoder" in found:
        said.append(f"the language model ended at a training loss of {found['decoder']['loss']:.3f} a token of a caption")
    return f"What the base models made on the spot reached by themselves: {'; '.join(said)}." if said else None


def _described(base: Base, config: Any) -> dict[str, Any]:
    """Name, the hub's commit, the configuration and, of a folder, what its weights are."""
    return {
        "name": base.name,
        "revision": base.revision,
        "config": config.to_dict(),
        "sha256": weights_of(Path(base.name)),
    }


def pinned(base: Base) -> Base:
    """A model of the hub by the commit that its revision is now, or was when this machine last asked, where the hub cannot be
    reached. A folder as it is.

    Raises:
        SlipwayError: when the hub has no such model or revision, or cannot be reached and never was.
    """
    if Path(base.name).is_dir():
        return base
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return Base(name=base.name, revision=HfApi().resolve_revision(base.name, revision=base.revision).resolved)
    except (OSError, ValueError, RevisionResolutionError) as error:
        raise _unopened(base, " ".join(str(error).split())) from None


def on_the_hub(described: Mapping[str, Any]) -> bool:
    """Whether a base model is the hub's, at its commit, and no folder's."""
    return described["sha256"] is None


def weights_of(folder: Path) -> str | None:
    """The SHA-256 of the names and bytes of a folder's safetensors files; None for what is no folder: the hub's have a commit."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _vision_config(base: Base) -> Any:
    from transformers import AutoConfig

    config = opened(AutoConfig.from_pretrained, base)
    config = getattr(config, "vision_config", config)
    if config.model_type.startswith("siglip2"):
        raise SlipwayError(
            f"prepare.encoder {base.name} is a SigLIP 2 of the kind NaFlex, which sees pictures of any shape as lists of patches with a"
            " mask; captioning takes those of one size, such as google/siglip2-base-patch16-224"
        )
    if config.model_type not in ENCODERS:
        raise SlipwayError(f"prepare.encoder {base.name} is a {config.model_type}; captioning takes {', '.join(ENCODERS)}")
    return config


def _text_config(base: Base) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = opened(AutoConfig.from_pretrained, base)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise SlipwayError(f"prepare.decoder {base.name} is a {config.model_type}, which is no decoder-only language model")
    return config


def _tokenizer(base: Base) -> dict[str, Any]:
    """The tokenizer as its library's own JSON, and the token that ends a caption."""
    from transformers import AutoTokenizer

    tokenizer = opened(AutoTokenizer.from_pretrained, base)
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise SlipwayError(
            f"prepare.decoder {base.name} has no fast tokenizer with an end-of-text token, which captions need"
        )
    return {"json": tokenizer.backend_tokenizer.to_str(), "end": tokenizer.eos_token_id, "end_token": tokenizer.eos_token}


def opened(opener: Any, base: Base) -> Any:
    """`opener(name, revision=...)`, a `from_pretrained`, without code of anybody else's and without a word.

    Raises:
        SlipwayError: when it cannot be had, in a line.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return opener(base.name, revision=base.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unopened(base, str(error).splitlines()[0]) from None


def _unopened(base: Base, reason: str) -> SlipwayError:
    return SlipwayError(f"the base model {base.name} (revision {base.revision}) cannot be opened: {reason}")


def opened_whole(kind: Any, base: Base, *, unread: re.Pattern[str] | None = None) -> Any:
    """A model of a class of transformers in float32, every weight of which the checkpoint has, but for those that `unread` finds.

    Raises:
        SlipwayError: when it cannot be had, or lacks weights, which transformers would draw at random.
    """
    import torch

    how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, found = opened(lambda name, **options: kind.from_pretrained(name, **how, **options), base)
    missing = sorted(name for name in found["missing_keys"] if not (unread and unread.search(name)))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise _unopened(
            base,
            f"its weights are those of another model, without {', '.join(missing[:3])}{more} of a {type(model).__name__}",
        )
    return model


def num_features(config: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens and width of the features of a vision configuration."""
    return (config["image_size"] // config["patch_size"]) ** 2, config["hidden_size"]


def loaded_models(facts: Facts) -> tuple[nn.Module, nn.Module]:
    """Encoder and language model with their base weights, in float32.

    Raises:
        SlipwayError: when one cannot be had or lacks weights, or is another than when it was described.
    """
    from transformers import AutoModelForCausalLM

    for part in ("encoder", "decoder"):
        if weights_of(Path(facts[part]["name"])) != facts[part]["sha256"]:
            raise SlipwayError(
                f"prepare.{part}: the weights in {facts[part]['name']} are not those that prepare found there, which features and"
                " facts are of: run the prepare stage again (slipway run captioning --force prepare)"
            )
    encoder, decoder = (Base(name=facts[part]["name"], revision=facts[part]["revision"]) for part in ("encoder", "decoder"))
    seeing = _vision_class(facts["encoder"]["config"]["model_type"])
    return opened_whole(seeing, encoder, unread=UNREAD), opened_whole(AutoModelForCausalLM, decoder)


def empty_models(facts: Facts) -> tuple[nn.Module, nn.Module]:
    """Encoder and language model of the same configurations, without their weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    encoder, decoder = (AutoConfig.for_model(**facts[part]["config"]) for part in ("encoder", "decoder"))
    return _vision_class(encoder.model_type)(encoder), AutoModelForCausalLM.from_config(decoder)


def _vision_class(model_type: str) -> Any:
    import transformers

    return getattr(transformers, ENCODERS[model_type])
