"""Whether activations are kept or computed twice where the user leaves it open: kept, unless too little fits so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from contracts.errors import SlipwayError
from contracts.plan import Plan
from contracts.settings import PlanSettings, TrainSettings
from engine.planning.division import count
from engine.planning.footprint import Footprint

# Fewer samples at once leave a GPU mostly idle: a guess, by which a third more work pays for twice as many of them.
USEFUL = 4
COST_OF_RECOMPUTING = "activations are computed again in the backward, about a third more work"
KEPT = (
    "activations are kept: computing them again is a third more work, for where memory is measured and too few samples fit"
)

LayOut = Callable[[PlanSettings, Footprint | None], Plan]


def with_activations(
    lay_out: LayOut, settings: TrainSettings, wishes: PlanSettings, footprint: Footprint | None
) -> tuple[Plan, PlanSettings]:
    """The plan with activations kept, where a useful micro-batch fits so, otherwise computed twice; and the wishes that it is for.

    Raises:
        SlipwayError: when one ghost batch does not fit either way.
    """
    wish = wishes.activation_checkpointing
    if wish != "auto":
        said = COST_OF_RECOMPUTING if wish else "activations are kept"
        return _told(lay_out(wishes, footprint), f"as plan.activation_checkpointing says: {said}"), wishes
    keeping, again = (wishes.model_copy(update={"activation_checkpointing": one}) for one in (False, True))
    twice = footprint.recomputed if footprint else None
    kept = _tried(lay_out, keeping, footprint)
    if twice is None or (isinstance(kept, Plan) and not is_cramped(kept)):
        return _told(_fitting(kept), KEPT), keeping
    more = _tried(lay_out, again, twice)
    if isinstance(kept, SlipwayError):
        fit = f"kept, not even a ghost batch of {count(settings.ghost_batch, 'sample')} fits"
        return _told(_fitting(more), f"{COST_OF_RECOMPUTING}: {fit}"), again
    if isinstance(more, Plan) and more.micro_batch >= 2 * kept.micro_batch:
        fit = f"kept, {count(kept.micro_batch, 'sample')} at once would fit, and so {more.micro_batch}"
        return _told(more, f"{COST_OF_RECOMPUTING}: {fit}"), again
    return _told(kept, KEPT), keeping


def is_cramped(made: Plan) -> bool:
    """Whether so few of a rank's samples fit at once that computing activations twice may pay. A CPU is as fast with few."""
    return made.device == "cuda" and made.micro_batch < USEFUL and made.accumulation > 1


def _tried(lay_out: LayOut, wishes: PlanSettings, footprint: Footprint | None) -> Plan | SlipwayError:
    try:
        return lay_out(wishes, footprint)
    except SlipwayError as refusal:
        return refusal


def _fitting(made: Plan | SlipwayError) -> Plan:
    if isinstance(made, SlipwayError):
        raise made
    return made


def _told(made: Plan, reason: str) -> Plan:
    return replace(made, reasons={**made.reasons, "activation_checkpointing": reason})
