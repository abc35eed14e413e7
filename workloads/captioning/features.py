"""What the frozen encoder says of each picture, computed once: memory-mapped parts, found by the picture's content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import read_json, remove, write_json
from contracts.progress import Progress
from contracts.records import Records
from contracts.workload import Facts
from workloads.captioning import pictures
from workloads.captioning.bases import num_features
from workloads.captioning.room import check_room
from workloads.captioning.seeing import normalized, sized
from workloads.captioning.settings import CaptioningSettings

NUM_FOR_MOMENTS = 256


class Features:
    """The features in a folder, float16 [tokens, width] by the SHA-256 of a picture.

    A part is a pair of files: `part-0.f16` with the numbers and `part-0.json` with the pictures they are of, in order. A part
    that is being written has neither name yet; what an interrupted preparation had finished of it is used again. A part whose
    two files do not fit is none.
    """

    def __init__(self, folder: Path, tokens: int, width: int) -> None:
        self.folder, self.shape = folder, (tokens, width)

    @classmethod
    def of(cls, facts: Facts, folder: Path) -> Features:
        """Those of the encoder that the facts describe, below `folder`; another encoder or processor has a folder of its own."""
        described = {name: facts[name] for name in ("encoder", "picture")}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
        return cls(folder / "features" / key, *num_features(facts["encoder"]["config"]))

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Part and row of each picture."""
        return {sha256: (part, row) for part, names in enumerate(self._parts.values()) for row, sha256 in enumerate(names)}

    @cached_property
    def _parts(self) -> dict[Path, list[str]]:
        """The file of numbers of each part that is whole, and the pictures that they are of."""
        found = {path.with_suffix(".f16"): _names(path) for path in sorted(self.folder.glob("part-*.json"))}
        return {
            numbers: names
            for numbers, names in found.items()
            if names and numbers.exists() and numbers.stat().st_size == len(names) * self._row_size
        }

    @property
    def _row_size(self) -> int:
        """Bytes of a picture's features."""
        return 2 * self.shape[0] * self.shape[1]

    @cached_property
    def _rows(self) -> list[np.ndarray]:
        return [
            np.memmap(numbers, np.float16, "r").reshape(-1, *self.shape)  # pyright: ignore
            for numbers in self._parts
        ]

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._places

    def __len__(self) -> int:
        return len(self._places)

    def of_picture(self, sha256: str) -> np.ndarray:
        """float16 [tokens, width].

        Raises:
            SlipwayError: when the picture was not there when features were prepared.
        """
        if sha256 not in self._places:
            raise SlipwayError(
                f"{self.folder} has no features of the picture with SHA-256 {sha256}: run the prepare stage again (slipway run"
                " captioning --force prepare), which computes none while train.augment or train.unfreeze_encoder is set"
            )
        part, row = self._places[sha256]
        return self._rows[part][row]

    def moments(self, records: Records, facts: Facts, *, batch_size: int) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel over some of the records' pictures. Features that are not kept are computed
        for it and forgotten."""
        places = np.linspace(0, len(records) - 1, min(len(records), NUM_FOR_MOMENTS)).astype(np.int64)
        some = [(str(records[place].inputs["sha256"]), int(place)) for place in places]
        missing = [(sha256, place) for sha256, place in some if sha256 not in self]
        batches = _encoded(records, missing, facts, batch_size) if missing else ()
        new = {sha256: row for names, rows in batches for sha256, row in zip(names, rows, strict=True)}
        seen = [new[sha256] if sha256 in new else self.of_picture(sha256) for sha256, _ in some]
        rows = np.concatenate(seen).astype(np.float32)
        return {"mean": rows.mean(0).tolist(), "std": np.maximum(rows.std(0), 1e-4).tolist()}

    def compute(self, records: Records, facts: Facts, *, batch_size: int) -> int:
        """Write a part with the pictures of `records` that have no features yet; gives their number.

        Raises:
            SlipwayError: when the disk has no room for them.
        """
        wanted = {str(record.inputs["sha256"]): index for index, record in enumerate(records)}
        missing = [(sha256, index) for sha256, index in wanted.items() if sha256 not in self]
        if not missing:
            return 0
        numbers, names = self.folder / "writing.f16", self.folder / "writing.txt"
        written = numbers.stat().st_size if numbers.exists() else 0
        check_room(self.folder, num=len(missing), shape=self.shape, needed=len(missing) * self._row_size - written)
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._resumed(numbers, names)
        rest = [(sha256, index) for sha256, index in missing if sha256 not in done]
        with (
            numbers.open("ab") as rows,
            names.open("a") as list_of,
            Progress("features", len(rest), unit=" pictures") as bar,
        ):
            for some, found in _encoded(records, rest, facts, batch_size):
                rows.write(found.tobytes())
                rows.flush()
                list_of.write("".join(f"{sha256}\n" for sha256 in some))
                list_of.flush()
                bar.advance(len(some))
        order = names.read_text().split()
        taken = {path.stem for path in self._parts}
        place = self.folder / f"{next(name for name in map('part-{}'.format, count()) if name not in taken)}.json"
        remove(place)  # of a torn part: new numbers must not meet its names
        numbers.replace(place.with_suffix(".f16"))
        write_json(place, order)
        remove(names)
        for name in ("_places", "_parts", "_rows"):
            self.__dict__.pop(name, None)
        return len(rest)

    def _resumed(self, numbers: Path, names: Path) -> set[str]:
        """The pictures that an interrupted writing finished; both files are cut to them."""
        if not (numbers.exists() and names.exists()):
            remove(numbers)
            remove(names)
            return set()
        done = [line for line in names.read_text().split() if len(line) == 64][: numbers.stat().st_size // self._row_size]
        with numbers.open("r+b") as file:
            file.truncate(len(done) * self._row_size)
        names.write_text("".join(f"{sha256}\n" for sha256 in done))
        return set(done)


def keeps_features(settings: CaptioningSettings) -> bool:
    """Whether what the encoder says is the same in every epoch, and is kept."""
    return settings.prepare.features and not settings.train.augment and not settings.train.unfreeze_encoder


def _names(path: Path) -> list[str]:
    """The pictures that a part's file lists; none where it is torn."""
    try:
        return list(map(str, read_json(path)))
    except (ValueError, TypeError):
        return []


def _encoded(
    records: Records, wanted: Sequence[tuple[str, int]], facts: Facts, batch_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Batches of SHA-256 and features float16 [batch, tokens, width], computed by the base encoder."""
    import torch

    from workloads.captioning.bases import loaded_models
    from workloads.captioning.model import num_class_tokens

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder: Any = loaded_models(facts)[0].eval().to(device)
    first = num_class_tokens(encoder)
    for start in range(0, len(wanted), batch_size):
        some = wanted[start : start + batch_size]
        images = [sized(pictures.read(records.root, records[index].inputs), facts["picture"]) for _, index in some]
        pixels = torch.from_numpy(normalized(np.stack(images), facts["picture"])).to(device)
        with torch.inference_mode():
            seen = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, first:]
        yield [sha256 for sha256, _ in some], seen.to(torch.float16).cpu().numpy()
