"""What runs in every rank of a probe: `python -m engine.fitting SPEC.json`, alone or under torchrun. See `engine/probing.py`."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch

from contracts.plan import Plan
from contracts.run import RunSpec
from engine import beacon
from engine.loop import Loop
from engine.memory import LiveBytes, is_out_of_memory, limited, release
from engine.parts import load_weights
from engine.planning import memory_limit, with_micro_batch
from engine.probing import Probed
from engine.worker import run_rank

# A GPU that was filled to the last byte when it was tried is too small for a batch that is a little larger.
SPARE = 0.03
STEPS, NUM_SCORED = 2, 16


def try_all(spec: RunSpec) -> None:
    """Every candidate that is undecided, as all ranks agree; rank 0 writes what came of it."""
    torch.set_num_threads(spec.plan.threads)
    folder = Path(spec.output)
    found, fitting = Probed.read(folder), Fitting(spec)
    first, device = fitting.backend.rank == 0, fitting.backend.device
    if device.type == "cuda" and memory_limit() is None:
        torch.cuda.set_per_process_memory_fraction(1 - SPARE, device)
    with limited(device) as counted:
        while (candidate := found.next) is not None:
            if first:
                replace(found, trying=candidate).write(folder)
            fits = fitting.fits(with_micro_batch(spec.plan, candidate))
            found = found.decided(candidate, fits=fits, peak=fitting.peak(counted))
            if first:
                found.write(folder)
    with beacon.collective("leaving the group"):
        fitting.backend.close()


class Fitting(Loop):
    """The loop, made to try micro-batches; weights stay where they are."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(replace(spec, plan=replace(spec.plan, workers=0)))
        self._waited = 0.0
        epochs = STEPS * self.train.global_batch / len(self.records)
        self.stream = replace(self.stream, epochs=max(self.stream.epochs, epochs))
        self.few = self.validator.records.take(range(min(NUM_SCORED, len(self.validator.records))))
        scaler = self.backend.scaler
        if scaler.is_enabled():  # one that skips its first steps makes no optimiser's state
            scaler.load_state_dict({**scaler.state_dict(), "scale": 1.0})

    def fits(self, plan: Plan) -> bool:
        """Whether two steps, the second with all state in place, and scoring fit on every rank."""
        self.plan = replace(plan, workers=0)
        self._open_feed()
        fits = all(self._step_fits(again=again) for again in range(STEPS)) and self._scoring_fits()
        self.backend.forget()
        self.statistics.forget()
        gc.collect()
        release(self.backend.device)
        return fits

    def _step_fits(self, *, again: int) -> bool:
        """One step, with two micro-batches where there are more: the gradients of the first rest beside the second.

        The ranks can agree only while none waits inside for another. Where they meet, a rank that runs out of memory
        ends, and with it the start.
        """
        backend = self.backend
        meets = not (backend.divides and (backend.apart or again == 0))
        failed = self._gradients_fail(meets)
        if not meets:
            if backend.any(failed):
                return False
            backend.apart = backend.apart or backend.any(backend.lacks_gradients())
            backend.collect()
            backend.exchange(self.statistics.seen(), gradients=True)()
        backend.step(rate=0.0, scale=1.0)
        self.average.update()
        return True

    def _gradients_fail(self, meets: bool) -> bool:
        num = min(2, self.plan.accumulation)
        try:
            for micro in range(num):
                self._micro_batch(micro, {}, meet=meets and micro == num - 1)
        except Exception as error:
            if meets or not is_out_of_memory(error):
                raise
            return True
        return False

    def _scoring_fits(self) -> bool:
        load_weights(self.validator.objective, self.backend.whole(self.average.parts))
        failed = False
        try:
            for _ in self.validator.measure(self.few, self.backend.device):
                beacon.mark("validating")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        return not self.backend.any(failed)

    def peak(self, counted: LiveBytes | None) -> int:
        """The most bytes of any rank since the last call, on rank 0; 0 where nothing counts them."""
        device, peak = self.backend.device, 0
        if device.type == "cuda":
            peak = torch.cuda.max_memory_reserved(device)
            torch.cuda.reset_peak_memory_stats(device)
        elif counted is not None:
            peak, counted.peak = counted.peak, counted.live
        return max(self.backend.gather(peak) or [0])


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1], try_all, memory_is_a_kind=True))
