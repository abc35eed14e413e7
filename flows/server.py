"""The Prefect server that a flow speaks to: the user's own where there is one, otherwise one for as long as the flow lasts.

Prefect would start a server by itself, but one that dies of the same Ctrl-C as the flow and outlives a flow that is killed.
Ours runs under the guard: it ends with the flow, and not before.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import IO

from contracts.errors import SlipwayError
from flows.guarded import start_guarded

START_SECONDS = 240.0
_OURS: list[subprocess.Popen[bytes]] = []


def need_server() -> None:
    """From here on Prefect has a server. One named by PREFECT_API_URL or by the user's profile is taken as it is.

    Our own lasts as long as this process: what Prefect still has to tell is told while the interpreter shuts down.

    Raises:
        SlipwayError: when our own does not come up within four minutes; holds its last lines.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    print(f"starting Prefect for this run at {address} (the first time on a machine takes half a minute)", flush=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as output:
        process = start_guarded(command, environment={"PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}, output=output, grace=5)
        _OURS.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{address}/api/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SlipwayError(f"the Prefect server did not start; it said:\n{_last_lines(output)}")
            time.sleep(0.1)
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    refresh_global_settings_context()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def _last_lines(output: IO[bytes]) -> str:
    output.seek(0)
    return "\n".join(output.read().decode("utf-8", "replace").splitlines()[-20:])
