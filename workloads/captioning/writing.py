"""Models of transformers and peft written to folders, by what it takes and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_model(model: Any, folder: Path, **options: Any) -> None:
    """`model.save_pretrained(folder, **options)`, without DeepSpeed and without a word of its libraries."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _no_deepspeed():
        model.save_pretrained(folder, **options)


@contextmanager
def _no_deepspeed() -> Iterator[None]:
    """Inside, accelerate finds no DeepSpeed. It would import it, which takes longer than writing a small model, to ask whether the
    model is wrapped by it, and no model here is."""
    from accelerate.utils import other

    found, other.is_deepspeed_available = other.is_deepspeed_available, lambda: False
    try:
        yield
    finally:
        other.is_deepspeed_available = found
