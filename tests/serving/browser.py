"""A headless Chromium driven by a few words of its DevTools protocol: open a page, give it files, ask what it shows."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60


class Tab:
    """One tab of a browser."""

    def __init__(self, socket: Connection, session: str) -> None:
        self._socket, self._session, self._numbers = socket, session, count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; requests and complaints that are heard meanwhile are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "sessionId": self._session, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._hear(message.get("method", ""), message.get("params", {}))

    def open(self, address: str) -> None:
        """Go to an address; everything that is asked for over the network from now on stands in `requests`."""
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression as soon as it is one that counts as true."""
        end = time.monotonic() + SECONDS
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} never came true: {self.value('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def choose(self, selector: str, file: Path) -> None:
        """Give a file to an input, as its dialogue would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file from outside into the middle of an element."""
        box = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def picture(self, path: Path, *, width: int, height: int, dark: bool = False) -> Path:
        """A screenshot of a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, with its profile below `folder`; where no Chromium is installed, the test is skipped."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(
            f"no Chromium is installed ({', '.join(NAMES)}): the page was not opened in a browser, only its script was run"
        )
    profile = folder / "profile"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    running = subprocess.Popen(
        [program, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with connect(f"ws://127.0.0.1:{_address(profile, running)}", max_size=None, compression=None) as socket:
            target = _reply(socket, "Target.createTarget", url="about:blank")["targetId"]
            yield Tab(socket, _reply(socket, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
    finally:
        running.terminate()
        running.wait(SECONDS)


def _reply(socket: Connection, method: str, **params: Any) -> dict[str, Any]:
    """The answer to a command for the browser itself."""
    socket.send(json.dumps({"id": 0, "method": method, "params": params}))
    while "id" not in (message := json.loads(socket.recv(timeout=SECONDS))):
        pass
    return message["result"]


def _address(profile: Path, running: subprocess.Popen[bytes]) -> str:
    """Port and path at which the browser takes commands; it writes them into its profile."""
    end, file = time.monotonic() + SECONDS, profile / "DevToolsActivePort"
    while time.monotonic() < end and running.poll() is None:
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return "".join(lines)
        time.sleep(0.05)
    pytest.fail(f"the browser did not start within {SECONDS} s (status {running.poll()})")
