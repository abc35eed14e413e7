"""A flow outlives whoever reads what it prints: a Prefect worker that was killed, say."""

from __future__ import annotations

import os

from rich.console import Console


def go_on_unheard() -> None:
    """From here on a broken pipe silences this process, where it would end it: logs reach Prefect's server by another way."""
    Console.on_broken_pipe = _be_quiet


def _be_quiet(self: Console) -> None:
    self.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
