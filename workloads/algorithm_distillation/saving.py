"""The trained learner as one file for torch, with what is needed to build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from contracts.files import replace_when_complete
from contracts.workload import Facts
from workloads.algorithm_distillation.model import Learner
from workloads.algorithm_distillation.settings import DistillationTrain
from workloads.algorithm_distillation.tokens import Vocabulary


def save(learner: Learner, folder: Path, settings: DistillationTrain, facts: Facts, *, name: str) -> None:
    """Write `folder`/`name`.pt: `state_dict`, `vocabulary` and `settings`, all plain, for torch.load(weights_only=True)."""
    state = {key: value.detach().cpu().contiguous() for key, value in learner.state_dict().items()}
    vocabulary = list(Vocabulary.of(facts).sizes)
    with replace_when_complete(folder / f"{name}.pt") as temporary:
        torch.save({"state_dict": state, "vocabulary": vocabulary, "settings": settings.model_dump(mode="json")}, temporary)


def load(path: Path) -> Learner:
    """The learner of such a file."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    learner = Learner(saved["vocabulary"], DistillationTrain.model_validate(saved["settings"]))
    learner.load_state_dict(saved["state_dict"])
    return learner.eval()
