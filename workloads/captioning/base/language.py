"""A small Llama that has learnt to say what a list of things looks like, or to write a data set's own captions: the language model
that captions are taught to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workloads.captioning.base.learning import learn
from workloads.captioning.scenes import inventories
from workloads.captioning.words import IGNORED
from workloads.captioning.writing import write_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH, LAYERS, HEADS = 128, 3, 4
VOCABULARY, OWN_VOCABULARY = 1024, 4096
# Tokens of a caption with its end; one that is cut has none.
LONGEST = 128
NUM_SCENES, BATCH = 16_000, 64
LEARNING_RATE, WARMUP = 3e-3, 50
END = "<|endoftext|>"


def texts(num: int, seed: int) -> list[tuple[str, str]]:
    """What stands in each part of a scene, and a caption of it. A thing is one word there, as it is one token of a picture."""
    scenes = islice(inventories(np.random.default_rng([2718, seed])), num)
    return [(f"{inventory}:", f" {caption}") for inventory, captions in scenes for caption in captions]


def train(folder: Path, steps: int, *, captions: list[str] | None = None) -> dict[str, float]:
    """Train tokenizer and language model and write both to `folder`. What is learnt is the caption after an inventory: which
    things there are cannot be foretold. Where `captions` are given, it is them, after nothing but the token for an end. Gives
    the loss that it reached."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = texts(NUM_SCENES, 0) if captions is None else [(END, caption) for caption in captions]
    corpus = captions or [before + after for before, after in pairs]
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(corpus, size=VOCABULARY if captions is None else OWN_VOCABULARY),
        eos_token=END,
        bos_token=END,
        pad_token=END,
    )
    model: Any = _empty(tokenizer)
    rows = [
        (tokenizer(before)["input_ids"], [*tokenizer(after)["input_ids"], tokenizer.eos_token_id][:LONGEST])
        for before, after in pairs
    ]

    def loss() -> torch.Tensor:
        chosen = [rows[index] for index in torch.randint(len(rows), (BATCH,)).tolist()]
        return model(**_batch(chosen, tokenizer.eos_token_id)).loss

    title = "training the base language model"
    losses = learn(model, loss, steps=steps, rate=LEARNING_RATE, warmup=WARMUP, title=title)
    loss_at_the_end = float(np.mean(losses[-50:]))
    print(f"base language model: loss {loss_at_the_end:.3f} a token of a caption", flush=True)
    write_model(model, folder)
    tokenizer.save_pretrained(folder)
    return {"loss": loss_at_the_end}


def train_tokenizer(corpus: list[str], *, size: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE of at most `size` tokens, as GPT-2 and SmolLM have it: any text can be said with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _empty(tokenizer: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def _batch(rows: list[tuple[list[int], list[int]]], end: int) -> dict[str, torch.Tensor]:
    """Inventories with their captions, padded; only the captions are labels."""

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=filler)

    return {
        "input_ids": padded([before + after for before, after in rows], end),
        "labels": padded([[IGNORED] * len(before) + after for before, after in rows], IGNORED),
        "attention_mask": padded([[1] * (len(before) + len(after)) for before, after in rows], 0),
    }
