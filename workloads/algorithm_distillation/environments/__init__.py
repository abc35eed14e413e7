"""The environments by name, each a file: many copies of a dark room at once, in numpy alone."""

from __future__ import annotations

from workloads.algorithm_distillation.environments.dark_key_to_door import DarkKeyToDoor
from workloads.algorithm_distillation.environments.darkroom import Darkroom
from workloads.algorithm_distillation.environments.darkroom_permuted import DarkroomPermuted
from workloads.algorithm_distillation.environments.room import Room

ENVIRONMENTS: dict[str, type[Room]] = {kind.name: kind for kind in (Darkroom, DarkroomPermuted, DarkKeyToDoor)}
