"""A torchrun agent that is loaded ahead: `python -m engine.agent` stands by until it is told which ranks to start.

To import torch takes seconds, for which the ranks of a new start would wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

TORCHRUN = "torch.distributed.run"


class Standby:
    """One agent that stands by, or none. It ends with the block, and with this process, however that ends."""

    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Standby:
        return self

    def begin(self, variables: Mapping[str, str]) -> None:
        """Have an agent stand by, in the environment of the ranks; once for every `take`."""
        if self.process is None:
            # Whatever carries the launcher's number ends with the ranks of now.
            bare = {name: value for name, value in variables.items() if name != "SLIPWAY_LAUNCHER"}
            words = [sys.executable, "-m", "engine.agent"]
            self.process = subprocess.Popen(words, env=bare, stdin=subprocess.PIPE, start_new_session=True)

    def take(self, line: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        """The agent that stood by, which does from now on what this command line would start; None where none is there."""
        process, self.process = self.process, None
        if process is None or process.stdin is None:
            return None
        told = {"words": line[line.index(TORCHRUN) + 1 :], "variables": dict(variables)}
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps(told).encode() + b"\n")
        except OSError:  # it has died
            process.wait()
            return None
        return process

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            with self.process as process:
                process.kill()


def main() -> None:
    """Be torchrun's agent as a line on stdin says; where none comes, whoever would have sent it is gone."""
    from torch.distributed import run

    if line := sys.stdin.readline():
        told = json.loads(line)
        os.environ.update(told["variables"])
        run.main(told["words"])


if __name__ == "__main__":
    main()
