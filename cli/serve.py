"""`slipway serve`: a published model as a page and a web service on this machine, with ONNX Runtime and without torch."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
import uvicorn

from cli.predict import Confidence, Threads, newest_model, shown_from
from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.pictures import PICTURES
from contracts.raw import RawInput
from contracts.records import Record, Records
from contracts.workload import Workload, load, names
from serving.runtime import Artifact, open_run
from serving.service import Model, make_app
from serving.uploads import Limits
from tasks.stage import folder

HERE = ("127.0.0.1", "localhost", "::1")
NUM_EXAMPLES = 8
SHOWN_BY_BROWSERS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORKLOAD]",
            help="A workload, whose newest model is served, or the folder of a model (artifact.json). Otherwise the newest of all.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = HERE[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and prints it.")] = 8000,
    confidence: Confidence = None,
    threads: Threads = None,
    max_megabytes: Annotated[float, typer.Option(min=0.001, max=1024, help="Largest upload.")] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.001, max=128, help="Largest picture, unpacked.")] = 64,
    examples: Annotated[
        bool | None,
        typer.Option(help="Offer pictures of the test split on the page. Otherwise only where no other machine is let in."),
    ] = None,
) -> None:
    """Serve a published model: a page to drop pictures on, and POST /predict for programs. Ctrl+C ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    listener, opened = listen(host, port), open_model(find_model(model), confidence, threads)
    alone = host in HERE
    app = make_app(
        opened,
        limits=Limits(round(max_megabytes * 1e6), round(max_megapixels * 1e6)),
        examples=examples_of(opened) if examples or (examples is None and alone) else (),
        hosts=(*HERE, "[::1]") if alone else ("*",),
    )
    artifact = opened.run.artifact
    print(
        f"{artifact.workload} model {artifact.folder} ({artifact.recipe}) at {address(listener)}; Ctrl+C ends it", flush=True
    )
    config = uvicorn.Config(app, log_level="error", access_log=False, server_header=False)
    Server(config).run(sockets=[listener])


class Server(uvicorn.Server):
    """One that does not wait for its clients when it is told to end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        leave(sig, frame)


def leave(signal_number: int, frame: FrameType | None) -> None:
    """End at once and well: nothing is written, so there is nothing to finish, and a prediction under way is not waited for."""
    sys.stdout.flush()
    os._exit(0)


def find_model(named: str | None) -> Path:
    """The folder of the model that is meant: a workload's newest, a folder, or the newest of all.

    Raises:
        SlipwayError: when there is none.
    """
    if named is None or named in names():
        return newest_model(named)
    if not (Path(named) / "artifact.json").is_file():
        raise SlipwayError(
            f"{named} is neither a workload ({', '.join(names())}) nor the folder of a model, which holds artifact.json"
        )
    return Path(named)


def open_model(path: Path, confidence: float | None, threads: int | None) -> Model:
    """The model in a folder, ready to be asked.

    Raises:
        SlipwayError: when it is broken, does not take pictures, or has no confidence to set.
    """
    artifact = Artifact.read(path)
    workload = load(artifact.workload)
    if workload.raw != PICTURES:
        raise SlipwayError(
            f"{path} is a model for {artifact.workload}, which takes {workload.raw.name}: "
            f"the page is for {PICTURES.name}; `slipway predict` runs it"
        )
    settings = shown_from(artifact.settings_read(), confidence)
    model = Model(workload, settings, open_run(path, threads=threads))
    model.warm_up()
    return model


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        SlipwayError: when the port is taken or may not be used, or there is no such host.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SlipwayError(
            f"cannot listen at {host} port {port}: {error.strerror or error}. "
            "--port 0 takes a free port; --host names an address of this machine"
        ) from None


def address(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def examples_of(model: Model) -> list[RawInput]:
    """Some pictures of the test split, evenly spread over it, where the data that the model was made of lies here.

    Its facts tell whether it is that data; only pictures that browsers show are taken.
    """
    artifact = model.run.artifact
    parsed, root = folder("parse", artifact.workload), folder("download", artifact.workload) / "raw"
    if not (parsed / "records.arrow").is_file() or not root.is_dir():
        return []
    if any(artifact.facts.get(key) != value for key, value in read_json(parsed / "facts.json").items()):
        return []
    records = Records.open(parsed, root=root).split("test")
    some = range(0, len(records), max(1, len(records) // NUM_EXAMPLES))
    found = (held(records[index], root, model.workload) for index in some)
    return [one for one in found if one is not None][:NUM_EXAMPLES]


def held(record: Record, root: Path, workload: Workload) -> RawInput | None:
    """A record's picture in memory, if it is still there and browsers show it."""
    try:
        raw = workload.raw_input(record, root)
        return RawInput(raw.name, raw.read()) if Path(raw.name).suffix.lower() in SHOWN_BY_BROWSERS else None
    except SlipwayError:
        return None
