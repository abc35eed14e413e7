"""What a training step of captioning costs at real sizes: `python -m benchmarks.captioning` writes benchmarks/results/captioning.json.

SigLIP-base with SmolLM-135M and LoRA, their real configurations with random weights, batches of 4 pictures with captions of usual
lengths, one thread, fp32. Compared in turns: the plain design (the encoder in the loop, logits at every position, activations
computed again), ours (features kept, logits where there is a label), and ours with the prefix pooled to 49 tokens, which changes
the model. The first two learn the same: their losses and gradients are compared, or it is an error. What is timed changes next to
nothing (a rate of 1e-9); three steps more are at the rates of the preset distilvit, and the loss of the batch must fall with each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch.nn import functional

from benchmarks.conditions import load_now, spread, write_result
from benchmarks.embedded import cpu_plan
from contracts.workload import load
from engine.backends.single import Single
from engine.checkpoint import Checkpoints, copied
from engine.ema import Average
from engine.loop import Standing
from engine.validation import Validator
from engine.weights import distinct, save_weights
from workloads.captioning.bases import empty_models
from workloads.captioning.model import Captioner
from workloads.captioning.objective import CaptioningObjective, make_optimizer
from workloads.captioning.settings import CaptioningTrain
from workloads.captioning.words import IGNORED

ENCODER = {"model_type": "siglip_vision_model", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
ENCODER |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "vision_use_head": False}
DECODER = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
DECODER |= {"intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "pad_token_id": None}
FACTS = {"encoder": {"config": ENCODER}, "decoder": {"config": DECODER}}
BATCH, LENGTHS = 4, (18, 25, 31, 40)
BARS = {"ours": 1.8, "pooled": 4.0}
WEIGHTS_BAR = 12e6
RATES = {"learning_rate": 3e-4, "lora_rate": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = load_now()
    objective, pooled = make(None), make(49)
    batch, pixels = example(objective)
    objective.captioner.decoder.enable_input_require_grads()  # pyright: ignore[reportCallIssue]
    same = compare(objective, batch, pixels)
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: plain_step(objective, {**batch, "pixels": pixels}),
        "ours": lambda: step(objective, batch),
        "pooled": lambda: step(pooled, batch),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns):
        for name, way in ways.items():
            times[name].append(way() / BATCH)
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {value[-1]:.2f} s" for name, value in times.items()), flush=True)
    ratios = {name: median(p / o for p, o in zip(times["plain"], times[name], strict=True)) for name in BARS}
    losses = learn(objective, batch)
    sizes = bytes_written(objective, batch)
    write_result(
        "captioning",
        bar=", ".join(f"{name} >= {bar} x plain" for name, bar in BARS.items())
        + ", the file of the best weights, which has what trains alone, <= 12 MB; the checkpoint that a run goes on from has the"
        " optimiser's two moments of each of them too, and is not held to that",
        met=all(ratios[name] >= bar for name, bar in BARS.items()) and sizes["best_weights"] <= WEIGHTS_BAR,
        load=before,
        ratio_median=ratios,
        seconds_per_sample={name: spread(values) for name, values in times.items()},
        file_bytes=sizes,
        parameters=sum(value.numel() for value in objective.parameters()),
        largest_difference=same,
        losses=losses,
    )


def bytes_written(objective: Any, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """The sizes of what the engine writes of a run, by its own hands: the weights of the best epoch, and the checkpoint, after a step
    (at a rate of 0)."""
    workload, nobody = load("captioning"), cast(Any, ())
    settings = workload.Settings()
    backend = Single(cpu_plan("single", ranks=1, micro_batch=BATCH, global_batch=BATCH))
    backend.prepare(objective, lambda module: workload.optimizer(module, settings), settings.train.clip_norm)
    average = Average(backend.weights(), decay=settings.train.ema_decay)
    backend.backward(objective(batch)["loss"])
    backend.step(rate=0.0, scale=1.0)
    learnt = copied(distinct(Validator(workload, objective, settings, FACTS, nobody).learnt()))
    state = {**backend.state(), "average": average.state(backend), "standing": vars(Standing())}
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder) / "best.safetensors"
        checkpoints = Checkpoints(Path(folder) / "checkpoints", fingerprint="benchmark")
        checkpoints.save(1, state, first=partial(save_weights, learnt, best))
        checkpoints.wait()
        files = checkpoints.found()[-1].folder.iterdir()
        return {"best_weights": best.stat().st_size, "checkpoint": sum(file.stat().st_size for file in files)}


def make(prefix_tokens: int | None) -> Any:
    """The objective at real size; adapters that are not zero, so that every gradient is one."""
    torch.manual_seed(0)
    settings = CaptioningTrain.model_validate(
        {"projection": "linear", "prefix_tokens": prefix_tokens, "lora": {"dropout": 0.0}}
    )
    objective = CaptioningObjective(Captioner(*empty_models(FACTS), settings), settings).train()
    for name, value in objective.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    return objective


def example(objective: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A batch with kept features, and its pictures."""
    pixels = torch.randn(BATCH, 3, ENCODER["image_size"], ENCODER["image_size"])  # pyright: ignore
    ids = torch.randint(DECODER["vocab_size"], (BATCH, max(LENGTHS)))  # pyright: ignore
    labels = ids.clone()
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = IGNORED
    with torch.no_grad():
        features = objective.captioner.features(pixels)
    return {"ids": ids, "labels": labels, "features": features}, pixels


def step(objective: Any, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one step: forward, backward, AdamW."""
    optimizer = _optimizer(objective)
    began = time.perf_counter()
    objective(batch)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def learn(objective: Any, batch: dict[str, torch.Tensor], *, steps: int = 3) -> list[float]:
    """The loss of the batch before each of the steps, and after them.

    Raises:
        RuntimeError: when it does not fall with every step.
    """
    optimizer = make_optimizer(objective, CaptioningTrain.model_validate(RATES))
    losses = []
    for _ in range(steps):
        loss = objective(batch)["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        losses.append(float(objective(batch)["loss"]))
    if any(not after < before for before, after in itertools.pairwise(losses)):
        raise RuntimeError(f"the loss does not fall: {losses}")
    return losses


def plain_loss(objective: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss as the plain design computes it: every position's logits, the encoder in the loop."""
    captioner = objective.captioner
    with torch.no_grad():
        features = captioner.features(batch["pixels"])
    model = captioner.language_model
    prefix = captioner.prefix(features)
    shown = torch.cat([prefix, model.get_input_embeddings()(batch["ids"])], dim=1)
    there = torch.cat([torch.ones(prefix.shape[:2], dtype=torch.bool), batch["labels"] != IGNORED], dim=1)
    logits = model(inputs_embeds=shown, attention_mask=there.long(), use_cache=False).logits
    labels = torch.cat([torch.full(prefix.shape[:2], IGNORED), batch["labels"]], dim=1)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def plain_step(objective: Any, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one step of the plain design, activations computed again in the backward."""
    model, optimizer = objective.captioner.language_model, _optimizer(objective)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    began = time.perf_counter()
    plain_loss(objective, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - began
    model.gradient_checkpointing_disable()
    return seconds


def compare(objective: Any, batch: dict[str, torch.Tensor], pixels: torch.Tensor) -> float:
    """The largest difference of a gradient between the plain design and ours, as a share of the largest gradient.

    Raises:
        RuntimeError: when they do not learn the same.
    """
    found = []
    for loss in (objective(batch)["loss"], plain_loss(objective, {**batch, "pixels": pixels})):
        objective.zero_grad()
        loss.backward()
        found.append(torch.cat([value.grad.flatten() for value in objective.parameters() if value.grad is not None]))
    objective.zero_grad()
    difference = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    if not difference < 1e-4:
        raise RuntimeError(f"the two designs have gradients that differ by {difference:.2g} of the largest")
    return difference


_OPTIMIZERS: dict[int, torch.optim.Optimizer] = {}


def _optimizer(objective: Any) -> torch.optim.Optimizer:
    return _OPTIMIZERS.setdefault(
        id(objective), make_optimizer(objective, CaptioningTrain(learning_rate=1e-9, lora_rate=1e-9))
    )


if __name__ == "__main__":
    main()
