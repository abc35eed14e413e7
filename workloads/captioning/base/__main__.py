"""One base model in a process of its own: `python -m workloads.captioning.base language FOLDER STEPS [CAPTIONS]`."""

from __future__ import annotations

import sys
from pathlib import Path

from workloads.captioning.base import train

train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:]))
