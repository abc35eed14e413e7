"""A captioner as transformers' LLaVA, and which language models that can hold: found by trying, not by their names."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from contracts.workload import Facts
from workloads.captioning.bases import num_features
from workloads.captioning.model import Captioner, num_class_tokens

# What a model may raise that cannot be tried without weights, or in which LLaVA does not find what it asks for.
NOT_FOUND = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)


def unfit(config: Any) -> str | None:
    """Why LLaVA cannot hold a language model of this configuration; None where it can."""
    try:
        fault = _fault(config)
    except NOT_FOUND as error:
        fault = str(error).splitlines()[0]
    return f"transformers' LLaVA cannot hold a language model of type {config.model_type} ({fault})" if fault else None


def _fault(config: Any) -> str | None:
    """What LLaVA lacks or does not do, found without weights, on torch's meta device."""
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        # The faster kinds of attention ask for the values of their mask, and there are none here.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
        whole = LlavaConfig(text_config=copy.deepcopy(config), vision_config=CLIPVisionConfig(num_hidden_layers=1))
        llava: Any = LlavaForConditionalGeneration(whole)
    llava.get_input_embeddings()
    parts = [(model.base_model, llava.model.language_model), (model.get_output_embeddings(), llava.get_output_embeddings())]
    own, others = ([_shapes(part) for part in side] for side in zip(*parts, strict=True))
    if own != others or sum(map(len, own)) != len(model.state_dict()):
        return "it has weights that LLaVA has no place for"
    return None if _says_what_its_output_layer_gives(model) else "it scales or caps its logits, which LLaVA does not"


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _says_what_its_output_layer_gives(model: Any) -> bool:
    """Whether numbers given out in place of the output layer's, of a model on the meta device, are its logits."""
    head = model.get_output_embeddings()
    given, one = torch.arange(len(head.weight))[None, None] % 64 - 32.0, torch.ones(1, 1, dtype=torch.int64, device="meta")
    replaced = head.register_forward_hook(lambda *_: given)
    try:
        return torch.equal(model(input_ids=one, attention_mask=one, use_cache=False).logits, given)
    finally:
        replaced.remove()


def as_llava(captioner: Captioner, facts: Facts) -> Any:
    """The same weights as transformers' LLaVA, with one row more in the table of words: the token for the picture."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text, vision = copy.deepcopy(captioner.decoder.config), copy.deepcopy(captioner.encoder.config)
    text._name_or_path = vision._name_or_path = ""  # pyright: ignore  # a folder of this machine, for one
    image_id = int(text.vocab_size)  # pyright: ignore
    text.vocab_size = image_id + 1  # pyright: ignore
    config = LlavaConfig(
        vision_config=vision,  # pyright: ignore
        text_config=text,  # pyright: ignore
        image_token_index=image_id,
        image_seq_length=num_features(facts["encoder"]["config"])[0],
        projector_hidden_act="gelu" if captioner.projection.linear_2 is not None else "linear",
        vision_feature_select_strategy="default" if num_class_tokens(captioner.encoder) else "full",
        vision_feature_layer=-1,
        tie_word_embeddings=text.tie_word_embeddings,  # pyright: ignore
    )
    model = LlavaForConditionalGeneration(config)
    _fill(model, captioner)
    generation: Any = model.generation_config
    generation.eos_token_id = generation.pad_token_id = facts["tokenizer"]["end"]
    generation.suppress_tokens = [image_id]
    generation.do_sample = False
    return model.eval()


def _fill(model: nn.Module, captioner: Captioner) -> None:
    """Copy the weights. The token for the picture gets a row of its own at the end of the vocabulary; it is never said."""
    inner: Any = model.model
    inner.vision_tower.load_state_dict(captioner.encoder.state_dict())
    inner.multi_modal_projector.linear_1.load_state_dict(captioner.projection.linear_1.state_dict())
    if captioner.projection.linear_2 is not None:
        inner.multi_modal_projector.linear_2.load_state_dict(captioner.projection.linear_2.state_dict())
    else:
        nn.init.eye_(inner.multi_modal_projector.linear_2.weight)
        nn.init.zeros_(inner.multi_modal_projector.linear_2.bias)
    decoder: Any = captioner.decoder
    table = decoder.get_input_embeddings().weight
    own = {key: value for key, value in decoder.base_model.state_dict(keep_vars=True).items() if value is not table}
    missing = inner.language_model.load_state_dict(own, strict=False).missing_keys
    with torch.no_grad():
        pairs = [(inner.get_input_embeddings(), decoder.get_input_embeddings())]
        pairs += [(model.get_output_embeddings(), decoder.get_output_embeddings())]  # pyright: ignore[reportCallIssue]
        for new, old in pairs:
            new.weight[:-1] = old.weight
            new.weight[-1:] = old.weight.mean(0)
    assert len(missing) <= 1, missing  # the table of words, which is longer here
