"""The section `algorithm_distillation` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.errors import SlipwayError
from contracts.settings import (
    DownloadSettings,
    EvaluateSettings,
    ParseSettings,
    QuantizeSettings,
    Settings,
    Share,
    TrainSettings,
)

# Sources that learn from their own actions alone: one that chance made in their place would be taken for theirs.
ON_POLICY = ("ppo",)
USUAL_NOISE = 0.1


class HistoryDownload(DownloadSettings):
    """What is collected where no `sources` are named: `num_samples` learning histories, spread evenly over the tasks.

    `source` is the algorithm that learns, `noise` the share of its steps that are made at random instead; those are context
    and no targets. None: a tenth, and none where the source must act itself. `num_tasks` takes so many of the environment's
    tasks, drawn once; None takes them all where there are no more than 120 (Darkroom, DarkroomPermuted), and of DarkKeyToDoor's
    6,561 so many that each gets 8 learners, but not fewer than 120.
    """

    environment: Literal["darkroom", "darkroom_permuted", "dark_key_to_door"] = "darkroom"
    source: Literal["explorer", "noisy_optimum", "ppo", "q_learning"] = "explorer"
    num_samples: Annotated[int, Field(ge=1)] = 5670
    num_tasks: Annotated[int, Field(ge=3)] | None = None
    episodes: Annotated[int, Field(ge=1, le=1000)] = 24
    noise: Share | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def share_at_random(self) -> float:
        """Of the steps, where `noise` is None too."""
        usual = 0.0 if self.source in ON_POLICY else USUAL_NOISE
        return usual if self.noise is None else self.noise

    @model_validator(mode="after")
    def _acts_itself(self) -> Self:
        if self.noise and self.source in ON_POLICY:
            raise ValueError(
                f"noise {self.noise:g}: {self.source} explores by itself, and would learn from the steps that chance made as if they "
                "were its own. Leave noise null, or let another source learn"
            )
        return self


class HistoryParse(ParseSettings):
    """`shares` are shares of the tasks, each split with far and near ones. Of a held-out task `rollouts` learners are kept:

    the model is let loose on it as many times. `seed` draws which tasks are held out.
    """

    rollouts: Annotated[int, Field(ge=1)] = 8
    seed: Annotated[int, Field(ge=0)] = 0


class DistillationTrain(TrainSettings):
    """The transformer's size. `betas` are AdamW's.

    `window` cuts histories into so many episodes; what lies before a window is known by `latents` alone, which are made of the
    latents before and of the window that ends, by as many `encoder_layers` (compressed AD). None: the whole history is seen.
    """

    width: Annotated[int, Field(ge=1)] = 64
    heads: Annotated[int, Field(ge=1)] = 2
    layers: Annotated[int, Field(ge=1)] = 3
    window: Annotated[int, Field(ge=1)] | None = None
    latents: Annotated[int, Field(ge=1)] = 20
    encoder_layers: Annotated[int, Field(ge=1)] = 2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class RolloutEvaluate(EvaluateSettings):
    """`last` episodes of a rollout are what counts; `batch_size` rollouts are made at once."""

    last: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 128

    def fits(self, episodes: int) -> Self:
        """These settings, for histories of so many episodes.

        Raises:
            SlipwayError: when more of them would count than there are.
        """
        if self.last > episodes:
            raise SlipwayError(
                f"evaluate.last = {self.last} is more than the {episodes} episodes of a history: make it smaller, or collect longer "
                "histories (download.episodes)"
            )
        return self


class StepQuantize(QuantizeSettings):
    """A record is a rollout of hundreds of steps: a single one calibrates."""

    recipes: tuple[Literal["int8", "int8_wide_head", "int8_dynamic", "fp16", "int4"], ...] = ("int8_dynamic",)
    num_calibration: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _no_ranges(self) -> Self:
        if static := {"int8", "int8_wide_head"} & set(self.recipes):
            raise ValueError(
                f"{', '.join(sorted(static))}: the scores of moments that are not there yet are infinite, and ranges of activations "
                "cannot hold them; int8_dynamic needs no ranges"
            )
        return self


class DistillationSettings(Settings):
    """Everything a user sets for algorithm distillation."""

    download: HistoryDownload = HistoryDownload()
    parse: HistoryParse = HistoryParse()
    train: DistillationTrain = DistillationTrain()
    evaluate: RolloutEvaluate = RolloutEvaluate()
    quantize: StepQuantize = StepQuantize()
