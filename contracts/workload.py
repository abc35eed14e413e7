"""What a workload must be able to do for the house to train, judge and ship it."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from contracts.errors import SlipwayError
from contracts.raw import RawInput, RawKind
from contracts.records import Record, Records, Rejected
from contracts.settings import Settings, Source, read_params, validate

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import nn

ROOT = Path(__file__).parents[1]
Facts = Mapping[str, Any]
Arrays = dict[str, "np.ndarray"]
Measure = dict[str, Any]
# Calls one of the graphs that ship, by name: arrays in, arrays out. The same for torch, ONNX and quantized files.
Run = Callable[..., Arrays]
# Where the loss of a fresh objective begins: a number, or some of its parts by name, each from the least to the most that it can
# be; or, as a sentence, why nothing is known of it.
Expected = float | Mapping[str, tuple[float, float]] | str


@dataclass(frozen=True)
class Metric:
    """The one number a model is chosen, gated and published by."""

    name: str
    higher_is_better: bool = True

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is than `old`; positive is better."""
        return new - old if self.higher_is_better else old - new

    def loss_share(self, new: float, reference: float) -> float:
        """The share of `reference` that `new` gives away; 0.01 is one per cent; negative when it is better."""
        return -self.gain(new, reference) / max(abs(reference), 1e-12)

    def fault(self, value: float) -> str | None:
        """Why no model with this `value` may ship, however little it loses of it; None where it may.

        A zero is no fault where lower is better.
        """
        if not math.isfinite(value):
            return f"its {self.name} is {value}, which is no number to judge it by"
        if value == 0 and self.higher_is_better:
            return f"its {self.name} is 0, so it has learnt nothing"
        return None


@dataclass(frozen=True)
class Graph:
    """One part that ships. `inputs` are example arrays in call order; `outputs` names what the module returns, in order;
    `dynamic` names the axes that may vary: {"images": {0: "batch"}}; `preprocessing` says, as data for the artifact, what must
    happen to raw data before this graph. A `language_decoder` bears weights of 4 bits."""

    module: nn.Module
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    language_decoder: bool = False


@dataclass(frozen=True)
class Layout:
    """The model once more, as other tools' runtimes expect it: `graphs` by their path in the published folder, without
    `.onnx`. `own` makes of what runs them something that answers calls of the workload's own graphs, so that they can be
    measured."""

    graphs: Mapping[str, Graph]
    own: Callable[[Run], Run]


@dataclass(frozen=True)
class Shortcut:
    """How to tell what weights are worth without running all that ships: `graphs`, and a `measure` that gives what
    `Workload.measure` would, by calling these."""

    graphs: Mapping[str, Graph]
    measure: Callable[[Run, Records], Iterator[Measure]]


@dataclass(frozen=True)
class Chart:
    """Something worth drawing. `lines`: {name: (x values, y values)}; `matrix`: rows of numbers with labels. The line called
    `main` stands out; `bands` says, for some lines, between which values (low, high) they are uncertain."""

    title: str
    kind: Literal["lines", "matrix", "bars"]
    x: str
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    main: str = "mean"
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    matrix: Sequence[Sequence[float]] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Scores:
    """What an evaluation found. `metrics` by name; `rows` a table with a row a class (or type of question); `charts` to draw;
    `meanings` says in a sentence what a metric, or a column of the table, means; `notes` what else must be known of them.
    `elsewhere` are metrics that data of this kind cannot have, and why: a limit of one limits nothing here."""

    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()
    charts: Sequence[Chart] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a model says of one record: `picture`, BGR uint8 [height, width, 3], what the data say of it and the `answer`."""

    picture: np.ndarray
    references: Sequence[str]
    answer: str


@dataclass(frozen=True)
class Card:
    """What a model's page on the hub says that only its workload knows, in the hub's own words (`license`: "apache-2.0",
    "unknown"; `task`: "image-to-text"). `base_models` are ids on the hub; `use` is Markdown: how other tools open it."""

    license: str = "unknown"
    library: str = "onnx"
    task: str | None = None
    base_models: Sequence[str] = ()
    use: str = ""


class Prediction(Protocol):
    """A result for one raw input."""

    @property
    def name(self) -> str:
        """The input's own."""
        ...

    @property
    def error(self) -> str | None:
        """Why there is no result (a file that cannot be read); otherwise None."""
        ...

    def json(self) -> dict[str, Any]:
        """Plain values: "image" (the name), and what was found.

        These mean the same in every workload, and whoever shows a result may rely on it: "caption", a sentence about the
        whole; "objects", each with "class", "score" (0 to 1), "box" (x, y, width, height) and "polygons" (outlines x1, y1,
        x2, y2..., one for each part), in pixels of a picture "width" by "height".
        """
        ...

    def draw(self) -> np.ndarray:
        """A picture of it, uint8 [height, width, 3], BGR."""
        ...


class Workload(Protocol):
    """One kind of training job. Its folder exports an instance named WORKLOAD. `raw` is what it predicts from.

    `facts` is what `facts()` gave after parsing (class names, for one) and, after that, `prepare()`: known only once the data
    is there.
    """

    Settings: ClassVar[type[Settings]]
    metric: ClassVar[Metric]
    raw: ClassVar[RawKind]

    def sources(self, settings: Any) -> Sequence[Source]:
        """What to download; none means the embedded data set that `sample` writes."""
        ...

    def sample(self, raw: Path, num: int) -> None:
        """Write `num` small raw examples shaped like the real ones, in the real ones' own layout."""
        ...

    def schema(self) -> tuple[pa.DataType, pa.DataType]:
        """Arrow types of a record's inputs and targets."""
        ...

    def parse(self, raw: Path, settings: Any, *, processes: int) -> Iterator[Record | Rejected]:
        """Raw label files to records, in bounded memory and in the same order every time."""
        ...

    def facts(self, raw: Path, records: Records, settings: Any) -> dict[str, Any]:
        """What the later stages must know of the data; written as JSON. `comparable` may name those of them that another model's
        must equal, or it is not scored beside one's own; `findings`, a sentence each, are shown in the report."""
        ...

    def prepare(self, records: Records, settings: Any, facts: Facts, folder: Path) -> dict[str, Any]:
        """Compute once what no training changes (base models, frozen features) into `folder`, and give the facts that come
        with it. What the folder holds from before is used again where it still fits. Later stages find the folder's path,
        from the project's folder, in their facts under "prepared"."""
        ...

    def dataset(self, records: Records, settings: Any, facts: Facts, *, training: bool) -> Dataset:
        """Records to tensors."""
        ...

    def build(self, settings: Any, facts: Facts, *, pretrained: bool) -> nn.Module:
        """The objective: batch in, {"loss": mean, "weight": what the mean is over (default 1), parts...} out, the same parts every time.

        `pretrained` asks for the weights that the settings name; it is false where trained ones are loaded anyway.

        For the checks before training it may have more: `expected_loss`, which is `Expected` (where classes are told apart, the
        logarithm of their number); `supervised(batch)`, which gives how many labels of a batch count in the loss and how many
        there are (without it, an integer tensor `labels` of the batch is asked where it is not -100); and `teacher(batch)`,
        which gives what is imitated.
        """
        ...

    def optimizer(self, objective: nn.Module, settings: Any) -> Any:
        """A torch optimiser over what trains, with the learning rates the schedule multiplies."""
        ...

    def graphs(self, objective: nn.Module, settings: Any, facts: Facts) -> dict[str, Graph]:
        """The parts that ship, by name, ready for inference."""
        ...

    def save(self, objective: nn.Module, folder: Path, settings: Any, facts: Facts, *, name: str) -> None:
        """Write what the ecosystem expects (`name`.pt, an adapter), so that its own tools open it; `name` is best or last."""
        ...

    def measure(self, run: Run, records: Records, settings: Any, facts: Facts) -> Iterator[Measure]:
        """What evaluation must know of each record, in order, computed only by calling `run("graph", **arrays)`.

        Each is plain and small. "quality" (0 to 1) ranks examples for the gallery. No torch.
        """
        ...

    def score(self, measures: Iterable[Measure], settings: Any, facts: Facts) -> Scores:
        """The measures of a whole split as metrics. No torch."""
        ...

    def gallery(self, run: Run, records: Records, settings: Any, facts: Facts) -> Iterator[tuple[str, np.ndarray]]:
        """A caption and a picture for each record: what was there and what was predicted. BGR uint8 [height, width, 3], or
        [frames, height, width, 3] where it moves. No torch."""
        ...

    def predict(self, run: Run, inputs: Iterable[RawInput], settings: Any, facts: Facts) -> Iterator[Prediction]:
        """A result for each raw input, in order; one that cannot be read gives a result with an `error`. No torch."""
        ...

    def raw_input(self, record: Record, root: Path) -> RawInput:
        """What a record was made of, as `predict` takes it; `root` is the folder that its paths start from.

        Raises:
            SlipwayError: when it is not there any more.
        """
        ...


@runtime_checkable
class Collects(Protocol):
    """A workload that makes data of its own as its settings ask, and not as much of one kind as `sample` does."""

    def collect(self, raw: Path, settings: Any, store: Path) -> None:
        """Write them to `raw`. `store` is a folder for what an interrupted call finds again."""
        ...

    def check(self, raw: Path, settings: Any) -> None:
        """Raises SlipwayError where what `sources` brought to `raw` is not what the settings say of it."""
        ...


@runtime_checkable
class HasQuality(Protocol):
    """A workload that has something to say of its data before any training."""

    def quality(self, records: Records, settings: Any, facts: Facts, folder: Path) -> dict[str, Any]:
        """Write quality.md and quality.json to `folder`; gives what the latter holds, with `findings`, a sentence each."""
        ...


@runtime_checkable
class Balanced(Protocol):
    """A workload that can tell which of its records should be drawn more often than others."""

    def balance(self, records: Records, settings: Any) -> np.ndarray:
        """A number above 0 for each record, mean 1 [n]."""
        ...


@runtime_checkable
class HasBases(Protocol):
    """A workload whose objective is partly made of base models, frozen and the same whenever it is built `pretrained`."""

    def bases(self) -> Sequence[str]:
        """The names of those parts in the objective. Their frozen weights are not saved with what was learnt."""
        ...


@runtime_checkable
class HasShortcut(Protocol):
    """A workload of which `prepare` may have computed so much that validation during training need not do it again. Evaluation
    after training runs what ships, all of it."""

    def shortcut(self, objective: nn.Module, settings: Any, facts: Facts) -> Shortcut | None:
        """For these weights; None where the settings leave nothing to save."""
        ...


@runtime_checkable
class HasLayout(Protocol):
    """A workload, if other tools' runtimes have a convention for models of its kind."""

    def layout(self, objective: nn.Module, settings: Any, facts: Facts) -> Layout | None:
        """The model as they expect it; None where the convention cannot say what it is."""
        ...


@runtime_checkable
class Tells(Protocol):
    """A workload whose results are texts, so that a report can show what was said before training and after it."""

    def tell(self, run: Run, records: Records, settings: Any, facts: Facts) -> Iterator[Told]:
        """What is said of each record, in order. No torch."""
        ...


@runtime_checkable
class HasCard(Protocol):
    """A workload that has something to say on the page of its models."""

    def card(self, settings: Any, facts: Facts) -> Card:
        """For a model with these settings and facts."""
        ...


class Dataset(Protocol):
    """Examples by index. `rng` None means no augmentation; otherwise it is keyed by seed, record and draw."""

    def __len__(self) -> int: ...

    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> Any:
        """One example. `draw` is how often the record was drawn before in the run (the epoch, where all are drawn once in
        each): it chooses among what a record has several of. `progress` is the part of the run that is over, 0 to 1 (for
        augmentation that ends early)."""
        ...

    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        """Examples to one batch of tensors."""
        ...


@runtime_checkable
class HasLengths(Dataset, Protocol):
    """A dataset whose examples are padded to the longest of their batch."""

    def lengths(self, indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """How long each example is, in whatever is padded; `indices` and `draws` [n] as `item` takes them."""
        ...


def names() -> list[str]:
    """The workloads that exist: the folders under workloads/."""
    return sorted(path.parent.name for path in (ROOT / "workloads").glob("*/__init__.py"))


def load(name: str) -> Workload:
    """The workload of that name.

    Raises:
        SlipwayError: when there is none; says which there are.
    """
    if name not in names():
        raise SlipwayError(f"there is no workload {name!r}; there are: {', '.join(names())}")
    return cast("Workload", importlib.import_module(f"workloads.{name}").WORKLOAD)


def settings_of(name: str, params: Path = Path("params.yaml")) -> Settings:
    """The validated section of a workload in params.yaml.

    Raises:
        SlipwayError: when the section is missing or a value in it cannot be used.
    """
    workload, sections = load(name), read_params(params)
    if name not in sections:
        raise SlipwayError(f"{params} has no section {name!r}: `slipway use {name} default` writes one")
    return validate(workload.Settings, sections[name], where=name)


def code_of(name: str) -> dict[str, str]:
    """The SHA-256 of each file that makes a workload what it is, by its path in the workload's folder: a network may be a YAML file."""
    here = ROOT / "workloads" / name
    return {
        path.relative_to(here).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(here.rglob("*"))
        if path.is_file() and _is_code(path.relative_to(here))
    }


def _is_code(path: Path) -> bool:
    """Whether a file of a workload's folder is more than a text about it, a preset, which params.yaml has a copy of, or a trace of
    other programs."""
    about = path.parts[0] in ("presets", "docs") or path.name.startswith("README")
    left = any(part.startswith(".") or part == "__pycache__" for part in path.parts) or path.name.endswith("~")
    return not (about or left)
