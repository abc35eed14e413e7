"""The training loop: the same for every workload and backend."""

from __future__ import annotations

import math
import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import Interrupted, SlipwayError
from contracts.progress import Progress
from contracts.records import Records
from contracts.run import RunResult, RunSpec
from contracts.settings import Settings, TrainSettings, validate
from contracts.workload import HasLengths, Workload, load
from engine import telemetry
from engine.backends import make
from engine.backends.single import Single
from engine.beacon import WAITING_FOR_DATA, collective, mark
from engine.checkpoint import Checkpoints, copied
from engine.dropout import SampleDropout
from engine.ema import Average
from engine.feeding import Drawn, feed, moved
from engine.memory import is_out_of_memory, is_tight, release
from engine.normalization import GhostStatistics
from engine.planning import smaller
from engine.randomness import key
from engine.schedule import learning_rate_factor
from engine.stream import Lengths, Stream
from engine.tracking import Journal
from engine.validation import Validator
from engine.weights import distinct, save_weights

ROWS_PER_RUN = 200
# Steps after a start in which gradients meet, on GPUs too, only once all ranks have said that their memory sufficed.
CAREFUL_STEPS = 5
# What ranks tell each other beside losses and statistics: see `Loop._met`.
NUM_FLAGS = 4


class OutOfMemory(SlipwayError):
    """Memory ran out where the ranks could not agree on a smaller micro-batch: the launcher starts them again with one."""


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
    stalled: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0


class Loop:
    """One run on one rank, from its parts to its result."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.plan = spec, spec.plan
        self.workload: Workload = load(spec.workload)
        settings: Settings = validate(self.workload.Settings, spec.settings, where=spec.workload)
        self.train: TrainSettings = settings.train.for_global_batch()
        self.settings = settings.model_copy(update={"train": self.train})
        self.output = Path(spec.output)
        self.backend: Single = make(spec.plan)
        records = Records.open(Path(spec.records), root=Path(spec.root))
        self.records = records.split("train")
        self.dataset = self.workload.dataset(self.records, self.settings, spec.facts, training=True)
        self.stream = Stream(
            len(self.records),
            self.train.global_batch,
            self.train.epochs,
            self.train.seed,
            weights=self._sampling_weights(),
            buckets=self.train.length_buckets,
            lengths=self._lengths(),
        )
        self.checkpoints = Checkpoints(
            self.output / "checkpoints", fingerprint=spec.fingerprint, keep=self.train.keep_checkpoints
        )
        self._build(records.split("val"))

    def _sampling_weights(self) -> NDArray[np.float64] | None:
        """How often each record is drawn, beside the others."""
        path, num = self.spec.sampling_weights, len(self.records)
        if path is None:
            return None
        found = np.load(path, allow_pickle=False)
        if found.shape != (num,):
            raise SlipwayError(f"{path} has {len(found):,} weights for {num:,} records: run prepare again")
        return found

    def _lengths(self) -> Lengths | None:
        """How long samples are, where batches are made by it."""
        if not self.train.length_buckets:
            return None
        if not isinstance(self.dataset, HasLengths):
            raise SlipwayError(
                f"train.length_buckets = {self.train.length_buckets}, and nothing in {self.spec.workload} is longer or shorter"
                " than the rest: set it to 0"
            )
        return self.dataset.lengths

    def _build(self, val: Records) -> None:
        torch.manual_seed(self.train.seed)
        objective = self.workload.build(self.settings, self.spec.facts, pretrained=True)
        self.validator = Validator(self.workload, objective, self.settings, self.spec.facts, val)
        objective.train()
        ghosts = self.train.global_batch // self.train.ghost_batch
        objective.to(self.backend.device)
        self.statistics = GhostStatistics(objective, ghost_batch=self.train.ghost_batch, num_ghosts=ghosts)
        self.dropout = SampleDropout(objective, seed=self.train.seed)
        self.backend.prepare(objective, lambda module: self.workload.optimizer(module, self.settings), self.train.clip_norm)
        self.average = Average(self.backend.weights(), decay=self.train.ema_decay)
        self.standing = Standing()
        self._better: dict[str, torch.Tensor] = {}

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
        self._open_feed()
        with Progress("training", self.stream.num_steps, unit=" steps", quiet=self.backend.rank != 0) as progress:
            progress.advance(resumed_at)
            while self.standing.step < self.stream.num_steps and not self.standing.stopped_early:
                stop = self._step()
                self.standing.seconds = time.monotonic() - started
                self._after_step(stop)
                progress.advance(note=f"loss {self._last_loss:.3f}{self._shown_metric()}")
        return self._finish(resumed_at)

    def _open_feed(self) -> None:
        """This rank's micro-batches from the present step on, as the plan now cuts them."""
        rank, step = self.backend.rank, self.standing.step
        self._batches = feed(
            self.dataset, self.stream, self.plan, rank=rank, first_step=step, beacons=self.output / "beacons"
        )
        self._careful_until = step + CAREFUL_STEPS
        self._ready: Drawn | Exception | None = None
        self._parts: list[str] = []
        self._lacking = False
        self._keys: list[str] = []

    def _step(self) -> bool:
        """One optimiser step, its wait for data included; tells whether any rank was asked to stop."""
        self._step_started, self._waited = time.monotonic(), 0.0
        while (numbers := self._met(self._gradients())) is None:
            self._divide_further()
        *sums, stopping, tight, lacking, _ = numbers[: len(self._parts) + NUM_FLAGS].tolist()
        if tight:
            self._careful_until = self.standing.step + 1 + CAREFUL_STEPS
        if lacking:
            self._stay_apart()
        values = dict(zip(self._parts, sums, strict=True))
        weight = values.pop("weight")
        if weight == 0:
            raise SlipwayError(
                f"nothing counts in step {self.standing.step}: none of its samples ({', '.join(self._first_keys())}, ...) has a label that the"
                " objective weighs. Look at those records, or make train.global_batch larger"
            )
        seen = numbers[len(self._parts) + NUM_FLAGS :] / self.backend.ranks
        self._learn({name: value / weight for name, value in values.items()}, seen, scale=1 / weight)
        return stopping > 0

    def _gradients(self) -> dict[str, torch.Tensor] | None:
        """The gradients of this rank's part of a global batch, and the sums of its losses; None where memory ran out.

        `_careful` says afterwards that the gradients of the ranks have not met in it.
        """
        backend, count = self.backend, self.plan.accumulation
        self._careful = careful = backend.divides and (backend.apart or self.standing.step < self._careful_until)
        totals: dict[str, torch.Tensor] = {}
        for micro in range(count):
            meet = micro == count - 1 and not careful
            try:
                self._micro_batch(micro, totals, meet=meet)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not careful:
                    raise OutOfMemory(f"memory ran out in step {self.standing.step}: {error}") from error
                return None
            if micro == 0:  # later ones may add to what the first left out
                self._lacking = careful and not backend.apart and backend.lacks_gradients()
        backend.collect()
        return totals

    def _stay_apart(self) -> None:
        """Let gradients meet after the backward to the end, all ranks alike: in it, each waits for every parameter's."""
        self.backend.apart = True
        if self.backend.rank == 0:
            print(
                f"a trainable parameter got no gradient from a batch of step {self.standing.step}: gradients go on meeting after the"
                " backward, which takes a little longer than in it",
                flush=True,
            )

    def _met(self, totals: dict[str, torch.Tensor] | None) -> torch.Tensor | None:
        """Sums over the ranks: of the losses, whether any must stop, is short of memory, lacks gradients, or has failed, and the
        statistics.

        Gradients that have not met do so in the same message, and until it has gone round, this rank reads what it needs next. None
        where memory ran out on any rank: in the first step, when a rank that failed does not know how long the message is, and on
        GPUs, where it may lack the memory for it, all ranks ask each other before.
        """
        backend, careful = self.backend, self._careful
        mark("exchange")
        asked = careful and (not self._parts or backend.device.type != "cpu")
        if asked and self._anybody_failed(totals):
            return None
        losses = self._in_order(totals)
        flags = losses.new_tensor([self._stop.asked, is_tight(backend.device), self._lacking, totals is None])
        numbers = torch.cat([losses, flags, self.statistics.seen().to(losses)])
        with self._told("the exchange"):
            arriving = backend.exchange(numbers, gradients=careful)
        if careful and backend.ranks > 1:
            self._read_ahead()
        numbers = arriving()
        return None if numbers[len(self._parts) + NUM_FLAGS - 1] else numbers

    @contextmanager
    def _told(self, work: str) -> Iterator[None]:
        """Round work outside of the micro-batches in which memory may run out: smaller ones may leave it enough."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"memory ran out in {work} of step {self.standing.step}: {error}") from error

    def _anybody_failed(self, totals: dict[str, torch.Tensor] | None) -> bool:
        """Whether memory ran out on any rank; where it did not, that all ranks know their losses by the same names."""
        name = zlib.crc32(",".join(totals).encode()) % 1000 if totals else 0
        failed, names = self.backend.sum(torch.tensor([totals is None, name], dtype=torch.float32)).tolist()
        if not failed and names != name * self.backend.ranks:
            raise SlipwayError(
                f"the parts of the loss are not the same on all ranks: on rank {self.backend.rank} {', '.join(totals or ())}"
            )
        return failed > 0

    def _in_order(self, totals: dict[str, torch.Tensor] | None) -> torch.Tensor:
        """The sums of the losses [parts] as every rank has them, zeros where this one has none."""
        if totals is None:
            return torch.zeros(len(self._parts), device=self.backend.device)
        self._parts = self._parts or list(totals)
        if set(totals) != set(self._parts):
            raise SlipwayError(
                f"the objective gave {', '.join(totals)} in step {self.standing.step} and {', '.join(self._parts)} before: the parts of"
                " a loss must be the same in every step"
            )
        return torch.stack([totals[name].float() for name in self._parts])

    def _read_ahead(self) -> None:
        """Have the next micro-batch ready, if there is another; what goes wrong shows when it is wanted."""
        began = time.monotonic()
        mark(WAITING_FOR_DATA, step=self.standing.step + 1, keys=[])
        try:
            self._ready = next(self._batches, None)
        except Exception as error:
            self._ready = error
        self._waited += time.monotonic() - began
        mark("exchange", step=self.standing.step, keys=self._keys)

    def _drawn(self) -> Drawn:
        """The next micro-batch."""
        ready, self._ready = self._ready, None
        if isinstance(ready, Exception):
            raise ready
        return ready or next(self._batches)

    def _micro_batch(self, micro: int, totals: dict[str, torch.Tensor], *, meet: bool) -> None:
        """The forward and backward of one micro-batch; its losses are added to `totals`."""
        backend, step = self.backend, self.standing.step
        began = time.monotonic()
        mark(WAITING_FOR_DATA, step=step, keys=[])
        samples, batch = self._drawn()
        self._waited += time.monotonic() - began
        batch = moved(batch, backend.device)
        self._start_randomness(key(self.train.seed, "forward", step, micro * backend.ranks + backend.rank))
        self.dropout.meet(samples, backend.device)
        with backend.accumulate(meet=meet):
            self._keys = [self.records.key(sample.index) for sample in samples]
            mark("forward", keys=self._keys)
            with self._meeting("forward", meet=meet), backend.autocast():
                output = backend.forward(batch)
            weight = output.pop("weight", torch.ones(())).to(backend.device)
            mark("backward")
            with self._meeting("backward", meet=meet):
                backend.backward(output["loss"] * weight)
        for name, value in {**output, "weight": torch.ones(())}.items():
            # A mean over nothing is no number, though its gradient, times 0, may be 0.
            counts = torch.where(weight == 0, 0.0, value.detach() * weight)
            totals[name] = totals.get(name, torch.zeros((), device=backend.device)) + counts

    def _start_randomness(self, seed: int) -> None:
        """As torch.manual_seed, which on a CPU spends half a millisecond on the devices that are not there."""
        if self.backend.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _meeting(self, phase: str, *, meet: bool) -> AbstractContextManager[None]:
        """Round a phase in which this backend's ranks wait for each other."""
        return collective(f"exchange in the {phase}") if self.backend.meets_in(phase, meet=meet) else nullcontext()

    def _divide_further(self) -> None:
        """Go on with smaller micro-batches, all ranks alike; the step begins anew."""
        plan = smaller(self.plan, ghost_batch=self.train.ghost_batch)
        if plan is None:
            raise SlipwayError(
                f"memory ran out in step {self.standing.step} with a single ghost batch of {self.train.ghost_batch} samples a rank: lower "
                f"train.ghost_batch, or make the samples smaller{'' if self.plan.activation_checkpointing else ', or set plan.activation_checkpointing'}"
            )
        if self.backend.rank == 0:
            print(
                f"memory ran out in step {self.standing.step}: going on with micro-batches of {plan.micro_batch} instead of "
                f"{self.plan.micro_batch}; the global batch stays {plan.global_batch}",
                flush=True,
            )
            plan.write(self.output / "plan.json")
        self.plan = plan
        self.backend.forget()
        self.statistics.forget()
        release(self.backend.device)
        self._open_feed()

    def _learn(self, losses: dict[str, float], seen: torch.Tensor, *, scale: float) -> None:
        """Move the weights, their average and the batch statistics (by those `seen`), all by what the whole global batch said."""
        step = self.standing.step
        if not math.isfinite(losses["loss"]):
            raise self._no_number(f"the loss is {losses['loss']}", losses)
        warmup = self.train.warmup_epochs * len(self.records) / self.train.global_batch
        rate = learning_rate_factor(
            step, num_steps=self.stream.num_steps, warmup_steps=warmup, final=self.train.final_learning_rate
        )
        mark("optimizer")
        with self._told("the optimizer"), self._meeting("optimizer", meet=True):
            norm = self.backend.step(rate=rate, scale=scale)
        # DeepSpeed leaves such a step out, as fp16's scaler does; the others take it, and their weights are no numbers any more.
        if not math.isfinite(norm) and not self.backend.scaler.is_enabled():
            raise self._no_number(f"the loss is a number, and the norm of its gradient is {norm},", losses)
        mark("averaging")
        self.statistics.update(seen)
        self.average.update()
        self._last_loss = losses["loss"]
        seconds = time.monotonic() - self._step_started
        took = {"gradient_norm": norm, "step_seconds": seconds, "data_wait_share": self._waited / seconds}
        for name, value in {**losses, **took}.items():
            self.standing.sums[name] = self.standing.sums.get(name, 0.0) + value
        self.standing.summed += 1
        self.standing.step += 1
        if self.standing.step % max(1, self.stream.num_steps // ROWS_PER_RUN) == 0 or self.stream.ends_epoch(step):
            self._log(rate)

    def _no_number(self, what: str, losses: dict[str, float]) -> SlipwayError:
        """The end of a run that has diverged, or met a record that it cannot learn from."""
        parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        return SlipwayError(
            f"{what} in step {self.standing.step} ({parts}); the batch begins with {', '.join(self._first_keys())}. Lower "
            "train.learning_rate or train.clip_norm, or look at those records"
        )

    def _first_keys(self) -> list[str]:
        """Some records of the present step."""
        return [self.records[sample.index].key for sample in self.stream.batch(self.standing.step)[:4]]

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
                **telemetry.sample(self.backend.device, num_devices=self.backend.ranks * self.plan.replicas),
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
        """Score the averaged weights; where they are the best so far, they are to be saved."""
        standing, metric = self.standing, self.workload.metric
        metrics = self._scores()
        epoch = round(self.stream.epoch_after(standing.step))
        value = metrics[metric.name]
        better = standing.best is None or metric.gain(value, standing.best) > 0
        if better:
            standing.best, standing.best_epoch, standing.best_metrics = value, epoch, metrics
            standing.epochs_without_gain = 0
            self._better = self.validator.learnt()
        else:
            standing.epochs_without_gain += 1
        standing.stopped_early = bool(self.train.patience) and standing.epochs_without_gain >= self.train.patience
        if self.journal:
            self.journal.write(step=standing.step, epoch=round(self.stream.epoch_after(standing.step), 4), **metrics)

    def _scores(self) -> dict[str, float]:
        """The metrics of the averaged weights.

        Raises:
            SlipwayError: when memory does not suffice for them: micro-batches, which the launcher could make smaller, have no part in it.
        """
        try:
            return self.validator.score(self.backend.whole(self.average.parts), self.backend)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise SlipwayError(
                f"memory ran out in the validation after step {self.standing.step}, of as few records at a time as can be: {error}. Make the"
                " samples or the model smaller, or free memory; the same command goes on from the last checkpoint"
            ) from error

    def _save(self) -> None:
        """Hand a complete state to the writer (rank 0), before it the best weights that it knows of and nobody has written."""
        self._saved_at = time.monotonic()
        mark("saving")
        with self._told("the saving"):
            state = {**self.backend.state(), "average": self.average.state(self.backend), "standing": vars(self.standing)}
            if self.backend.rank == 0:
                better, self._better = copied(distinct(self._better)), {}
                self.checkpoints.save(self.standing.step, state, first=partial(self._save_best, better))
                self.standing.stalled += time.monotonic() - self._saved_at

    def _save_best(self, weights: dict[str, torch.Tensor]) -> None:
        if weights:
            save_weights(weights, self.output / "best.safetensors")

    def _resume(self) -> int:
        """Go on from the newest checkpoint; gives the step that comes next."""
        found = self.checkpoints.load()
        if found is None:
            return 0
        step, state = found
        try:
            self.backend.load_state(state)
            self.average.load_state(state["average"])
        except ValueError as error:
            raise SlipwayError(f"{self.checkpoints.folder}: {error}; it is of another model, remove the folder") from None
        self.standing = Standing(**state["standing"])
        if self.backend.rank == 0:
            print(f"going on from step {step} of {self.stream.num_steps}", flush=True)
        return step

    def _finish(self, resumed_at: int) -> RunResult | None:
        with self._told("the saving"):
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
            extra={"micro_batch": self.plan.micro_batch, "checkpoint_seconds": standing.stalled},
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
