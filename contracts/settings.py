"""What a user sets: `params.yaml`, one section a workload, one part of it a stage. A workload extends the parts it needs more of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.errors import SlipwayError

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen settings; a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Section):
    """One thing to download. `address` is a local path or anything fsspec opens (https, az, s3, gs, hf, file).

    Archives (zip, tar, tar.gz, tar.zst where Python can) are extracted into `into`; other files and folders are placed there.

    Of a data set of the Hugging Face Hub, `rows` and `columns` take a part, and nothing else is downloaded: the first so many
    rows of each series of shards (parquet or Arrow files whose names differ in their numbers alone: those of train, those of
    test), and of each row these columns.
    """

    address: str
    into: str = "."
    revision: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class DownloadSettings(Section):
    """`sources` empty means the workload's embedded data set, with `num_samples` examples."""

    sources: tuple[Source, ...] = ()
    num_samples: Annotated[int, Field(ge=1)] = 1600

    @model_validator(mode="before")
    @classmethod
    def _addresses_alone(cls, value: Any) -> Any:
        """An address may stand for a whole source."""
        if isinstance(value, Mapping) and isinstance(value.get("sources"), list | tuple):
            return {**value, "sources": [{"address": one} if isinstance(one, str) else one for one in value["sources"]]}
        return value


class ParseSettings(Section):
    """`shares` are the parts of train, val and test where the data set has no splits of its own."""

    shares: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    max_rejected: Share = 0.05

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"shares must sum to 1, not {sum(self.shares):g}")
        return self


class PrepareSettings(Section):
    """What is computed once, before any training.

    How often a record of train is drawn in an epoch, whose number of samples stays: `sampling_weights` are those of the records in a
    top folder of the download ({coco: 0.5}; "." is the top itself), 1 where they name none. `balance` multiplies each by the
    workload's own weight of the record, to this power (0: not at all).
    """

    sampling_weights: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    balance: Share = 0


class PlanSettings(Section):
    """Wishes about the layout of training on this machine; it decides what they leave open. They change speed and memory,
    not what is learnt, so they are no part of a run's identity.

    `micro_batch` is in samples a rank, `hang_seconds` how long a rank may show no progress, `restarts` how often a run that
    lost a rank goes on by itself. `activation_checkpointing` computes activations twice to save memory; auto does where too
    little fits otherwise. `zero_stage` is DeepSpeed's; `offload` lets the optimiser's state, or the parameters too,
    rest in the CPU's memory (`fsdp`, `deepspeed`). `compress_gradients` sends them as bf16 (`ddp`). `accelerate_config` is a
    file that `accelerate config` wrote. `preflight` says which trainings are checked before they start: those that take more
    than a minute, all, or none.
    """

    backend: Literal["auto", "single", "dp", "ddp", "fsdp", "deepspeed", "accelerate"] = "auto"
    ranks: Annotated[int, Field(ge=1)] | None = None
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    activation_checkpointing: Literal["auto"] | bool = "auto"
    compile: bool = False
    compress_gradients: bool = False
    zero_stage: Literal[1, 2, 3] = 2
    offload: Literal["none", "optimizer", "parameters"] = "none"
    accelerate_config: str | None = None
    restarts: Annotated[int, Field(ge=0)] = 3
    hang_seconds: Annotated[float, Field(gt=0)] = 300
    preflight: Literal["auto", "always", "never"] = "auto"


class TrainSettings(Section):
    """The run itself. Nothing about the machine stands here: how a global batch is divided is the plan's business.

    `ghost_batch` is the number of samples that share one set of batch statistics (ghost batch normalisation, Hoffer et
    al. 2017, arXiv 1705.08741): a micro-batch is a whole number of them, so ranks and accumulation change nothing.

    `learning_rate` holds for `reference_batch` samples a step (None: for any); another `global_batch` multiplies it by the
    ratio (`linear`, Goyal et al. 2017, arXiv 1706.02677) or by its root (`sqrt`, for Adam: Malladi et al. 2022, arXiv
    2205.10287).

    `length_buckets` sorts the samples of so many global batches by length, so that those of one are about equally long and
    little is padded; 0 does not.
    """

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    epochs: Annotated[float, Field(gt=0)] = 1
    global_batch: Annotated[int, Field(ge=1)] = 16
    ghost_batch: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    learning_rate_rule: Literal["none", "linear", "sqrt"] = "none"
    reference_batch: Annotated[int, Field(ge=1)] | None = None
    final_learning_rate: Share = 0.01
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    length_buckets: Annotated[int, Field(ge=0)] = 0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.global_batch % self.ghost_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of ghost_batch {self.ghost_batch}")
        if self.learning_rate_rule != "none" and self.reference_batch is None:
            raise ValueError("learning_rate_rule needs reference_batch: the global batch that learning_rate was found with")
        return self

    def for_global_batch(self) -> Self:
        """These settings with the learning rate that the rule gives for the global batch."""
        if self.learning_rate_rule == "none" or self.reference_batch is None:
            return self
        ratio = self.global_batch / self.reference_batch
        factor = ratio if self.learning_rate_rule == "linear" else ratio**0.5
        return self.model_copy(update={"learning_rate": self.learning_rate * factor, "learning_rate_rule": "none"})


class EvaluateSettings(Section):
    """How predictions are scored. `beside` are other models, by the names they are shown under: folders of published ones,

    which are scored on the same records, and stand in the report beside the one that was trained.
    """

    beside: dict[str, str] = {}


class ExportSettings(Section):
    """`tolerance` is the largest difference from torch, relative to the output's own range, that an exported graph may show.
    `tensorrt` also builds TensorRT engines for this machine's GPU."""

    opset: Annotated[int, Field(ge=18, le=23)] = 20
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    tensorrt: bool = False


class QuantizeSettings(Section):
    """The ladder: `recipes` in the order tried; `budget` is the share of the metric that may be lost; `min_speedup` over fp32.

    Each model's latency is measured for about `timing_seconds`: longer measuring tells closer speeds apart.
    """

    recipes: tuple[Literal["int8", "int8_wide_head", "int8_dynamic", "fp16", "int4"], ...] = ("int8", "int8_wide_head")
    budget: Share = 0.01
    min_speedup: Annotated[float, Field(ge=1)] = 1.05
    timing_seconds: Annotated[float, Field(gt=0)] = 3.0
    num_calibration: Annotated[int, Field(ge=1)] = 64


class PublishSettings(Section):
    """`target` is an address: file://folder, hf://organisation/name, or what fsspec opens. `name` is the model's name there.

    `license` is the hub's identifier of the model's licence (apache-2.0, cc-by-4.0, other); None: what the workload knows of
    it. `least` and `most` are limits of metrics of the test split ({cider: 0.8}): a model beyond one is not published.
    """

    target: str = "file://registry"
    name: str | None = None
    private: bool = True
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")] | None = None
    least: Mapping[str, float] = {}
    most: Mapping[str, float] = {}


class Settings(Section):
    """The section of one workload; a workload's own class narrows the parts."""

    download: DownloadSettings = DownloadSettings()
    parse: ParseSettings = ParseSettings()
    prepare: PrepareSettings = PrepareSettings()
    plan: PlanSettings = PlanSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    publish: PublishSettings = PublishSettings()


def read_params(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """The whole of params.yaml as plain values.

    Raises:
        SlipwayError: when the file is missing or is not YAML, with line and column.
    """
    import yaml

    try:
        params = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SlipwayError(f"{path} is missing: run from the project's folder, which holds params.yaml") from None
    except yaml.YAMLError as error:
        raise SlipwayError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(params, dict):
        raise SlipwayError(f"{path} must hold a section for each workload, not {type(params).__name__}")
    return params


def validate(kind: type[Settings], section: Any, *, where: str) -> Settings:
    """`section` as settings of this kind.

    Raises:
        SlipwayError: one line for every wrong value: its path in the file, what stands there, what is wanted.
    """
    try:
        return kind.model_validate(section)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            place = ".".join(str(part) for part in (where, *fault["loc"]))
            if fault["type"] == "extra_forbidden":
                lines.append(f"{place}: no such setting; known here: {', '.join(_known(kind, fault['loc'][:-1]))}")
            else:
                lines.append(f"{place} = {fault['input']!r}: {fault['msg']}")
        raise SlipwayError("params.yaml has values that cannot be used:\n  " + "\n  ".join(lines)) from None


def _known(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kind = field.annotation
    return sorted(kind.model_fields)
