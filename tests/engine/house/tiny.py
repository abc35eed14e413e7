"""The tiny workload under its name in the house, for ranks that come across it (see `tests.engine.tiny_ranks`)."""

from tests.engine.tiny_workload import Tiny

WORKLOAD = Tiny()
