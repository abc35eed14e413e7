"""`slipway serve` in a process of its own, asked over real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOUNDARY = "----a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running server; `said` is what it has printed."""

    process: subprocess.Popen[str]
    said: str
    port: int = field(init=False)

    def __post_init__(self) -> None:
        found = re.search(r" at http://\S+:(\d+);", self.said)
        assert found, self.said + self.process.communicate(timeout=30)[1]
        self.port = int(found[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request; names of headers have _ for -."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, data: bytes, kind: str = "application/octet-stream", path: str = "/predict", **headers: str) -> Answer:
        return self.ask("POST", path, data, Content_Type=kind, **headers)

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit status, and what it printed after its first line to both streams."""
        self.process.send_signal(how)
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, out, errors


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart form: the headers' disposition and the content of each part."""
    lines = [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {told}\r\n\r\n".encode() + content for told, content in parts]
    return b"\r\n".join([*lines, f"--{BOUNDARY}--\r\n".encode()])


def file_form(data: bytes, name: str) -> bytes:
    """A form with a file, as browsers send it."""
    return form(('name="note"', b"hello"), (f'name="picture"; filename="{name}"\r\nContent-Type: image/png', data))


@contextmanager
def serving(command: Sequence[str], folder: Path, **environment: str) -> Iterator[Server]:
    """A server started by a command in a folder, ready to be asked."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield Server(process, process.stdout.readline())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)
