"""The captioner as transformers.js and optimum run a LLaVA: three graphs in the published folder, all names theirs.

`vision_encoder` makes tokens of a picture, `embed_tokens` of words; who calls them puts the first in the places of the picture's
token, and `decoder_model_merged` goes on from there, with an empty past in the first call.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.workload import Arrays, Facts, Graph, Layout, Run
from workloads.captioning.graph import Encoder, kept_of, merged, remembering
from workloads.captioning.llava import as_llava
from workloads.captioning.model import Captioner
from workloads.captioning.presenting import FOLDER, not_llava


class EmbedTokens(nn.Module):
    """input_ids int64 [batch, sequence] to inputs_embeds float32 [batch, sequence, width]."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.table = llava.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


class DecoderMerged(nn.Module):
    """inputs_embeds [batch, sequence, width], attention_mask int64 [batch, past + sequence] (0 for padding), position_ids int64
    [batch, sequence] and the keys and values so far [batch, heads, past, head size] (past may be 0) to logits float32
    [batch, sequence, vocabulary] and the keys and values with these."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.model, self.head = llava.model.language_model, llava.get_output_embeddings()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embeddings, mask, positions, *past = inputs
        output = self.model(
            inputs_embeds=embeddings,
            attention_mask=visible(mask, past=past[0].shape[2], sequence=embeddings.shape[1], dtype=embeddings.dtype),
            position_ids=positions,
            past_key_values=remembering(self.model.config, past),
            use_cache=True,
        )
        return self.head(output.last_hidden_state), *kept_of(output)


def visible(mask: torch.Tensor, *, past: int, sequence: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the attention's scores [batch, 1, sequence, past + sequence]: nothing where a token may look, which is
    at itself and at what came before and is no padding, and the most negative number elsewhere."""
    keys = torch.arange(past + sequence, device=mask.device)
    queries = past + torch.arange(sequence, device=mask.device)
    seen = (keys <= queries[:, None]) & (mask.index_select(1, keys) != 0)[:, None, None, :]
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


def layout(captioner: Captioner, facts: Facts) -> Layout | None:
    """The three graphs below the folder that transformers opens; None where LLaVA cannot hold the captioner, or
    where its language model is told no positions."""
    if not_llava(captioner.prefix_tokens, facts):
        return None
    captioner = merged(captioner)
    llava = as_llava(captioner, facts)
    if "position_ids" not in inspect.signature(llava.model.language_model.forward).parameters:
        return None
    encoder, words, decoder = Encoder(captioner).eval(), EmbedTokens(llava).eval(), DecoderMerged(llava).eval()
    size, ids = facts["picture"]["size"], torch.zeros(1, 3, dtype=torch.int64)
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32))
    with torch.no_grad():
        prefix, embeddings = encoder(pixels), words(ids)
        kept = kept_of(decoder.model(inputs_embeds=prefix, use_cache=True))
    names = [f"{layer}.{what}" for layer in range(len(kept) // 2) for what in ("key", "value")]
    past, present = ([f"{one}.{name}" for name in names] for one in ("past_key_values", "present"))
    length, total = prefix.shape[1], prefix.shape[1] + ids.shape[1]
    # transformers.js 4 reads from these names how large an empty past is.
    tokens = {0: "batch_size", 1: "sequence_length"}
    graphs = {
        "vision_encoder": Graph(
            module=encoder,
            inputs={"pixel_values": pixels.numpy()},
            outputs=("image_features",),
            dynamic={"pixel_values": {0: "batch_size"}},
        ),
        "embed_tokens": Graph(
            module=words, inputs={"input_ids": ids.numpy()}, outputs=("inputs_embeds",), dynamic={"input_ids": tokens}
        ),
        "decoder_model_merged": Graph(
            module=decoder,
            inputs={
                "inputs_embeds": embeddings.numpy(),
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(length, total)[None],
                **{name: value.numpy() for name, value in zip(past, kept, strict=True)},
            },
            outputs=("logits", *present),
            dynamic={
                "inputs_embeds": tokens,
                "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
                "position_ids": tokens,
                **{name: {0: "batch_size", 2: "past_sequence_length"} for name in past},
            },
            language_decoder=True,
        ),
    }
    placed = {f"{FOLDER}/onnx/{name}": graph for name, graph in graphs.items()}
    shapes = {name: value.shape[1:] for name, value in zip(past, kept, strict=True)}
    return Layout(placed, lambda run: as_own(run, shapes))


def as_own(run: Run, shapes: Mapping[str, Sequence[int]]) -> Run:
    """What answers calls of `graph.graphs` by calling the layout's, as transformers.js does: one row after another without
    padding. `shapes` are those of the keys and values, without the batch."""

    def call(graph: str, /, **inputs: np.ndarray) -> Arrays:
        if graph == "encoder":
            return {"prefix": run(f"{FOLDER}/onnx/vision_encoder", pixel_values=inputs["pixels"])["image_features"]}
        if graph == "prefill":
            fed, past = inputs["prefix"], {}
            for name, (heads, _, width) in shapes.items():
                past[name] = np.zeros((len(fed), heads, 0, width), np.float32)
        else:
            fed = run(f"{FOLDER}/onnx/embed_tokens", input_ids=inputs["ids"])["inputs_embeds"]
            past = {name: inputs[_own_name(name)] for name in shapes}
        length = next(iter(past.values())).shape[2]
        total = length + fed.shape[1]
        positions = np.broadcast_to(np.arange(length, total), fed.shape[:2]).copy()
        mask = np.ones((len(fed), total), np.int64)
        output = run(
            f"{FOLDER}/onnx/decoder_model_merged", inputs_embeds=fed, attention_mask=mask, position_ids=positions, **past
        )
        # The last row of the table of words is the picture's token, which is never said.
        return {"logits": output.pop("logits")[:, -1, :-1], **{_own_name(name): value for name, value in output.items()}}

    return call


def _own_name(name: str) -> str:
    """`present.3.key` as `present_key_3`, `past_key_values.3.key` as `past_key_3`."""
    when, layer, what = name.replace("past_key_values", "past").split(".")
    return f"{when}_{what}_{layer}"
