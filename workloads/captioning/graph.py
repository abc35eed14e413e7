"""The three graphs of captioning that ship: picture to prefix, prefix to first token, token to next token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.workload import Facts, Graph
from workloads.captioning.bases import num_features
from workloads.captioning.model import Captioner, num_class_tokens


class Encoder(nn.Module):
    """pixels float32 [batch, 3, size, size], normalised, to prefix float32 [batch, prefix tokens, decoder width]."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.captioner.prefix(self.captioner.features(pixels))


class Prefill(nn.Module):
    """prefix [batch, prefix tokens, width] to logits float32 [batch, vocabulary] of the first token, and keys and values of
    each layer [batch, heads, prefix tokens, head size]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, prefix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _answer(self.model, inputs_embeds=prefix)


class Decode(nn.Module):
    """ids int64 [batch, 1] and the keys and values so far to logits of the next token and the keys and values with this one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, *past = inputs
        return _answer(self.model, input_ids=ids, past_key_values=remembering(self.model.config, past))


def _answer(model: nn.Module, **inputs: Any) -> tuple[torch.Tensor, ...]:
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    return (output.logits[:, -1].float(), *kept_of(output))


def remembering(config: Any, past: Sequence[torch.Tensor]) -> Any:
    """A cache of transformers that holds keys and values, layer by layer."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    return cache


def kept_of(output: Any) -> list[torch.Tensor]:
    """Keys and values, layer by layer, that a model's output says to remember."""
    return [value for layer in output.past_key_values.layers for value in (layer.keys, layer.values)]


def merged(captioner: Captioner) -> Captioner:
    """A copy for inference on the CPU, the adapters merged into the weights of the language model."""
    captioner = copy.deepcopy(captioner).cpu().float().eval()
    if hasattr(captioner.decoder, "merge_and_unload"):
        captioner.decoder = captioner.decoder.merge_and_unload()  # pyright: ignore
    return captioner.requires_grad_(False)


def graphs(captioner: Captioner, facts: Facts) -> dict[str, Graph]:
    """The parts that ship, of a merged copy; the captioner stays as it is."""
    captioner = merged(captioner)
    model, picture = captioner.decoder, facts["picture"]
    pixels = torch.zeros(1, 3, picture["size"], picture["size"])
    with torch.no_grad():
        prefix = captioner.prefix(torch.zeros(1, *num_features(facts["encoder"]["config"])))
        _, *kept = Prefill(model)(prefix)
    names = [f"present_{what}_{layer}" for layer in range(len(kept) // 2) for what in ("key", "value")]
    past = [name.replace("present", "past") for name in names]
    growing = {0: "batch", 2: "length"}
    return {
        "encoder": Graph(
            module=Encoder(captioner).eval(),
            inputs={"pixels": pixels.numpy()},
            outputs=("prefix",),
            dynamic={"pixels": {0: "batch"}, "prefix": {0: "batch"}},
            preprocessing=preprocessing(facts, num_class_tokens(captioner.encoder)),
        ),
        "prefill": Graph(
            module=Prefill(model).eval(),
            inputs={"prefix": prefix.numpy()},
            outputs=("logits", *names),
            language_decoder=True,
            dynamic={"prefix": {0: "batch"}, "logits": {0: "batch"}, **{name: {0: "batch"} for name in names}},
        ),
        "decode": Graph(
            module=Decode(model).eval(),
            inputs={"ids": np.zeros((1, 1), np.int64), **dict(zip(past, (one.numpy() for one in kept), strict=True))},
            outputs=("logits", *names),
            language_decoder=True,
            dynamic={
                "ids": {0: "batch"},
                "logits": {0: "batch"},
                **dict.fromkeys(past, growing),
                **{name: {0: "batch", 2: "longer"} for name in names},
            },
        ),
    }


def preprocessing(facts: Facts, class_tokens: int) -> dict[str, Any]:
    """What stays outside the encoder's graph, as data that travels with it."""
    return {
        "input": "pixels",
        "layout": "NCHW",
        "dtype": "float32",
        "colour": "RGB",
        "scale": "divide by 255, subtract mean, divide by std",
        **facts["picture"],
        "class_tokens_dropped": class_tokens,
    }
