"""The training loop: the same for every workload and backend."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.progress import Progress
from contracts.records import Records
from contracts.run import RunResult, RunSpec
from contracts.settings import Settings, TrainSettings, validate
from contracts.workload import Workload, load
from engine.backends import make
from engine.backends.single import Single
from engine.checkpoint import Checkpoints
from engine.ema import Average
from engine.feeding import feed
from engine.normalization import GhostStatistics
from engine.randomness import key
from engine.schedule import learning_rate_factor
from engine.stream import Stream
from engine.tracking import Journal
from engine.validation import Validator

ROWS_PER_RUN = 200


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


@dataclass
class Standing:
    """What the loop knows besides the weights; it travels in the checkpoint."""

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    epochs_without_gain: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0


class Loop:
    """One run on one rank, from its parts to its result."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.plan = spec, spec.plan
        self.workload: Workload = load(spec.workload)
        self.settings: Settings = validate(self.workload.Settings, spec.settings, where=spec.workload)
        self.train: TrainSettings = self.settings.train
        self.output = Path(spec.output)
        self.backend: Single = make(spec.plan)
        records = Records.open(Path(spec.records), root=Path(spec.root))
        self.records = records.split("train")
        self.stream = Stream(len(self.records), self.train.global_batch, self.train.epochs, self.train.seed)
        self.checkpoints = Checkpoints(self.output / "checkpoints", fingerprint=spec.fingerprint)
        self._build(records.split("val"))

    def _build(self, val: Records) -> None:
        torch.manual_seed(self.train.seed)
        objective = self.workload.build(self.settings, self.spec.facts, pretrained=True)
        self.validator = Validator(self.workload, objective, self.settings, self.spec.facts, val)
        objective.train()
        ghosts = self.train.global_batch // self.train.ghost_batch
        objective.to(self.backend.device)
        self.statistics = GhostStatistics(objective, ghost_batch=self.train.ghost_batch, num_ghosts=ghosts)
        self.backend.prepare(objective, lambda module: self.workload.optimizer(module, self.settings), self.train.clip_norm)
        self.average = Average(objective, decay=self.train.ema_decay)
        self.standing = Standing()

    def run(self) -> RunResult | None:
        """Train to the end and give the result on rank 0 (None elsewhere).

        Raises:
            Interrupted: when the process was asked to stop; everything up to that step is saved.
            SlipwayError: when the loss stops being a number, or a checkpoint is another run's.
        """
        resumed_at = self._resume()
        self.journal = Journal(self.output / "metrics.jsonl", resumed_at=resumed_at) if self.backend.rank == 0 else None
        self._stop = _StopRequest()
        started, self._saved_at = time.monotonic() - self.standing.seconds, time.monotonic()
        dataset = self.workload.dataset(self.records, self.settings, self.spec.facts, training=True)
        batches = feed(dataset, self.stream, self.plan, rank=self.backend.rank, first_step=resumed_at)
        with Progress("training", self.stream.num_steps, unit=" steps", quiet=self.backend.rank != 0) as progress:
            progress.advance(resumed_at)
            while self.standing.step < self.stream.num_steps and not self.standing.stopped_early:
                stop = self._step(batches)
                self.standing.seconds = time.monotonic() - started
                self._after_step(stop)
                progress.advance(note=f"loss {self._last_loss:.3f}{self._shown_metric()}")
        return self._finish(resumed_at)

    def _step(self, batches: Iterator[dict[str, Any]]) -> bool:
        """One optimiser step, its wait for data included; tells whether any rank was asked to stop."""
        self._step_started = time.monotonic()
        step = self.standing.step
        backend, count = self.backend, self.plan.accumulation
        totals: dict[str, torch.Tensor] = {}
        for micro in range(count):
            batch = _moved(next(batches), backend.device)
            torch.manual_seed(key(self.train.seed, "forward", step, micro * backend.ranks + backend.rank))
            with backend.accumulate(last=micro == count - 1):
                with backend.autocast():
                    output = backend.forward(batch)
                weight = output.pop("weight", torch.ones(())).to(backend.device)
                backend.backward(output["loss"] * weight)
            for name, value in {**output, "weight": torch.ones(())}.items():
                totals[name] = totals.get(name, torch.zeros((), device=backend.device)) + value.detach() * weight
        names = list(totals)
        stop = torch.tensor(float(self._stop.asked), device=backend.device)
        *sums, stopping = backend.sum(torch.stack([*(totals[name].float() for name in names), stop])).tolist()
        values = dict(zip(names, sums, strict=True))
        weight = values.pop("weight")
        self._learn({name: value / weight for name, value in values.items()}, scale=1 / weight)
        return stopping > 0

    def _learn(self, losses: dict[str, float], *, scale: float) -> None:
        """Move the weights, their average and the batch statistics, all by what the whole global batch said."""
        step = self.standing.step
        if not math.isfinite(losses["loss"]):
            keys = [self.records[sample.index].key for sample in self.stream.batch(step)[:4]]
            raise SlipwayError(
                f"the loss is {losses['loss']} in step {step} ({', '.join(f'{k} {v:.4g}' for k, v in losses.items())}); the batch begins "
                f"with {', '.join(keys)}. Lower train.learning_rate or train.clip_norm, or look at those records"
            )
        warmup = self.train.warmup_epochs * len(self.records) / self.train.global_batch
        rate = learning_rate_factor(
            step, num_steps=self.stream.num_steps, warmup_steps=warmup, final=self.train.final_learning_rate
        )
        norm = self.backend.step(rate=rate, scale=scale)
        self.statistics.update(self.backend.mean)
        self.average.update()
        self._last_loss = losses["loss"]
        took = {"gradient_norm": norm, "step_seconds": time.monotonic() - self._step_started}
        for name, value in {**losses, **took}.items():
            self.standing.sums[name] = self.standing.sums.get(name, 0.0) + value
        self.standing.summed += 1
        self.standing.step += 1
        if self.standing.step % max(1, self.stream.num_steps // ROWS_PER_RUN) == 0 or self.stream.ends_epoch(step):
            self._log(rate)

    def _log(self, rate: float) -> None:
        """A line with the means since the last one."""
        standing = self.standing
        if self.journal:
            means = {name: value / standing.summed for name, value in standing.sums.items()}
            self.journal.write(
                step=standing.step,
                epoch=round(self.stream.epoch_after(standing.step), 4),
                learning_rate=self.train.learning_rate * rate,
                samples_per_second=round(self.train.global_batch / means["step_seconds"], 2),
                **means,
            )
        standing.sums, standing.summed = {}, 0

    def _after_step(self, stop: bool) -> None:
        """Validate at the end of an epoch, save where it is time, and leave where somebody asked."""
        step = self.standing.step
        if self.stream.ends_epoch(step - 1):
            self._validate()
            self._save()
        elif stop or time.monotonic() - self._saved_at > self.train.checkpoint_minutes * 60:
            self._save()
        if stop and step < self.stream.num_steps:
            self.checkpoints.wait()
            raise Interrupted(f"stopped at step {step} of {self.stream.num_steps}; the same command goes on from there")

    def _validate(self) -> None:
        """Score the averaged weights; keep them where they are the best so far."""
        standing, metric = self.standing, self.workload.metric
        metrics = self.validator.score(self.average.tensors, self.backend)
        epoch = round(self.stream.epoch_after(standing.step))
        value = metrics[metric.name]
        better = standing.best is None or metric.gain(value, standing.best) > 0
        if better:
            standing.best, standing.best_epoch, standing.best_metrics = value, epoch, metrics
            standing.epochs_without_gain = 0
            if self.backend.rank == 0:
                save_weights(self.average.tensors, self.output / "best.safetensors")
        else:
            standing.epochs_without_gain += 1
        standing.stopped_early = bool(self.train.patience) and standing.epochs_without_gain >= self.train.patience
        if self.journal:
            self.journal.write(step=standing.step, epoch=round(self.stream.epoch_after(standing.step), 4), **metrics)

    def _save(self) -> None:
        """Hand a complete state to the writer (rank 0)."""
        self._saved_at = time.monotonic()
        state = {**self.backend.state(), "average": self.average.state(), "standing": vars(self.standing)}
        if self.backend.rank == 0:
            self.checkpoints.save(self.standing.step, state)

    def _resume(self) -> int:
        """Go on from the newest checkpoint; gives the step that comes next."""
        found = self.checkpoints.load()
        if found is None:
            return 0
        step, state = found
        self.backend.load_state(state)
        self.average.load_state(state["average"])
        self.standing = Standing(**state["standing"])
        if self.backend.rank == 0:
            print(f"going on from step {step} of {self.stream.num_steps}", flush=True)
        return step

    def _finish(self, resumed_at: int) -> RunResult | None:
        self.checkpoints.wait()
        standing = self.standing
        if self.backend.rank != 0:
            return None
        return RunResult(
            steps=standing.step,
            epochs=self.stream.epoch_after(standing.step),
            best_epoch=standing.best_epoch,
            metrics=standing.best_metrics,
            seconds=standing.seconds,
            samples_per_second=standing.step * self.train.global_batch / max(standing.seconds, 1e-9),
            resumed_from=resumed_at,
            stopped_early=standing.stopped_early,
        )

    def _shown_metric(self) -> str:
        return f", {self.workload.metric.name} {self.standing.best:.3f}" if self.standing.best is not None else ""


class _StopRequest:
    """Remembers SIGTERM and SIGINT, so that all ranks can agree on a step and save."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


def save_weights(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A state dict as safetensors, atomically."""
    with replace_when_complete(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
