"""Models of transformers and peft written to folders, without the words that their libraries have to say about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def write_model(model: Any, folder: Path, **options: Any) -> None:
    """`model.save_pretrained(folder, **options)`.

    It asks accelerate whether the model is DeepSpeed's, which imports DeepSpeed where that is installed; told that there is
    nothing but a CPU, DeepSpeed looks for no accelerator and does not warn that it found none.
    """
    import torch
    from transformers.utils import logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
