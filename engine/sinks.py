"""Who else hears what a run writes to metrics.jsonl: TensorBoard always, W&B and MLflow where the environment asks for them.

It runs in the launcher, beside the ranks and not in them: a sink that is slow or fails costs no training step.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from contracts.files import read_json, write_json

POLL_SECONDS = 1.0
# How long the end of a run waits for the sinks, all together; W&B is told to have finished before.
CLOSING_SECONDS, WANDB_SECONDS = 60.0, 45
PROJECT = "slipway"
LONGEST_PARAM, PARAMS_PER_CALL, METRICS_PER_CALL = 500, 100, 1000
LONGEST_REASON = 400
SECRET_NAME = re.compile(r"(^|[._])(token|api_?key|access_?key|password|secret)$", re.IGNORECASE)
SECRET_IN_URL = re.compile(r"://[^/@\s]+@")
# Packages that import each other in a circle, protobuf among them, break where several threads import them at once.
_IMPORTING = threading.Lock()

# What is handed on of a line: its step and the numbers in it.
Row = tuple[int, dict[str, float]]


class Sink(Protocol):
    """One place that the numbers go to. Anything it raises drops it for the rest of the run."""

    name: str

    def load(self) -> None:
        """Import what the other three need; never done for two sinks at once."""
        ...

    def open(self, run: str | None) -> str:
        """Begin, before the first row. `run` is what an earlier `open` gave, for its run to go on, or None."""
        ...

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def sinks_for(
    name: str, settings: Mapping[str, Any], output: Path, *, environment: Mapping[str, str] = os.environ
) -> list[Sink]:
    """The sinks that are wanted for the run `name` in the folder `output`; nothing is imported or opened yet.

    W&B is wanted where WANDB_API_KEY is set or WANDB_MODE is offline, unless WANDB_MODE is disabled; MLflow where
    MLFLOW_TRACKING_URI is set. Both get the settings, flattened and without secrets.
    """
    flat = dict(flatten(settings))
    sinks: list[Sink] = [TensorBoard(output / "tensorboard")]
    mode = environment.get("WANDB_MODE", "").lower()
    if mode != "disabled" and (environment.get("WANDB_API_KEY") or mode == "offline"):
        sinks.append(Wandb(name, flat, output, project=environment.get("WANDB_PROJECT") or PROJECT))
    if uri := environment.get("MLFLOW_TRACKING_URI"):
        sinks.append(Mlflow(name, flat, uri, experiment=environment.get("MLFLOW_EXPERIMENT_NAME") or PROJECT))
    return sinks


class Follower:
    """Hands each new line of a journal to each sink, about once a second, from `with` to its end and whatever is left then.

    Every sink has a thread of its own, so that one that waits for its server keeps no other waiting. What a sink was given
    is noted in the folder `sinks` beside the journal: a resumed run, whose journal repeats lines, sends nothing twice.
    """

    def __init__(self, journal: Path, sinks: Sequence[Sink]) -> None:
        self._feeds = [_Feed(journal, sink) for sink in sinks]

    def __enter__(self) -> Self:
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        latest = time.monotonic() + CLOSING_SECONDS
        for feed in self._feeds:
            feed.end(failed=kind is not None)
        for feed in self._feeds:
            feed.join(max(0.0, latest - time.monotonic()))
            if feed.is_alive():
                _warn(feed.sink, f"it was not done {CLOSING_SECONDS:.0f} s after the end of training")


class _Feed(threading.Thread):
    """The way of the lines to one sink."""

    def __init__(self, journal: Path, sink: Sink) -> None:
        super().__init__(name=f"sink-{sink.name}", daemon=True)
        self.sink = sink
        self._lines = NewLines(journal)
        self._notes = journal.parent / "sinks" / f"{sink.name}.json"
        self._noted = read_json(self._notes) if self._notes.exists() else {"run": None, "step": -1, "names": []}
        self._step, self._names = self._noted["step"], set(self._noted["names"])
        self._open = self._failed = False
        self._ended = threading.Event()

    def end(self, *, failed: bool) -> None:
        """Ask for the rest to be sent and the sink to be closed."""
        self._failed = failed
        self._ended.set()

    def run(self) -> None:
        try:
            while not self._ended.wait(POLL_SECONDS):
                self._pass_on()
            self._pass_on()
            if self._open:
                self.sink.close(failed=self._failed)
        except Exception as error:
            hint = ": pip install 'slipway[tracking]'" if isinstance(error, ImportError) else ""
            _warn(self.sink, f"{type(error).__name__}: {error}{hint}")

    def _pass_on(self) -> None:
        rows = [row for line in self._lines.read() if (row := self._unsent(line))[1]]
        if not rows:
            return
        if not self._open:
            with _IMPORTING:
                self.sink.load()
            self._note(run=self.sink.open(self._noted["run"]))
            self._open = True
        self.sink.write(rows)
        self._note(step=self._step, names=sorted(self._names))

    def _unsent(self, line: Mapping[str, Any]) -> Row:
        """What is new in a line: a step has one line of training and may have one of validation."""
        step, values = int(line["step"]), numbers(line)
        if step < self._step:
            return step, {}
        if step > self._step:
            self._step, self._names = step, set()
        new = {name: value for name, value in values.items() if name not in self._names}
        self._names |= new.keys()
        return step, new

    def _note(self, **news: Any) -> None:
        self._noted |= news
        write_json(self._notes, self._noted)


class NewLines:
    """The complete lines of a file of JSON lines that were not read yet; all of them again once it was written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._position = 0, 0

    def read(self) -> list[dict[str, Any]]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._file or state.st_size < self._position:
                self._file, self._position = state.st_ino, 0
            file.seek(self._position)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


class TensorBoard:
    """Event files, which `tensorboard --logdir runs` shows. Written without torch, whose writer takes seconds to import."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> None:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.compat.proto.summary_pb2
        import tensorboard.summary.writer.event_file_writer  # noqa: F401

    def open(self, run: str | None) -> str:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self.folder))
        return self.folder.name

    def write(self, rows: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        for step, values in rows:
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases, or with WANDB_MODE=offline a folder that `wandb sync` sends later.

    It gets the numbers of the journal and the settings, and nothing that W&B would gather itself: no code, git address,
    console, host or packages.
    """

    name = "wandb"

    def __init__(self, run_name: str, settings: Mapping[str, Any], folder: Path, *, project: str) -> None:
        self.run_name, self.settings, self.folder, self.project = run_name, settings, folder, project

    def load(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # noqa: F401

    def open(self, run: str | None) -> str:
        import wandb

        private = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            host="",
            init_timeout=WANDB_SECONDS,
            finish_timeout=WANDB_SECONDS,
        )
        self._run = wandb.init(
            project=self.project,
            name=self.run_name,
            id=run or secrets.token_hex(4),
            resume="allow",
            dir=self.folder,
            config=dict(self.settings),
            settings=private,
        )
        # W&B's own step only grows; ours comes twice where a step has a line of training and one of validation.
        self._run.define_metric("*", step_metric="step")
        if not self._run.offline:
            print(f"W&B shows this run at {self._run.url}", flush=True)
        return self._run.id

    def write(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        import wandb

        self._run.finish(exit_code=int(failed))
        wandb.teardown()  # ends its service, which would hold our standard output open


class Mlflow:
    """A run on an MLflow server, in a database or in a folder, wherever `uri` leads."""

    name = "mlflow"

    def __init__(self, run_name: str, settings: Mapping[str, Any], uri: str, *, experiment: str) -> None:
        self.run_name, self.settings, self.uri, self.experiment = run_name, settings, uri, experiment

    def load(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Its own 7 attempts of 120 s are longer than the end of a run waits.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        if "://" not in self.uri or self.uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a second yes
        from mlflow import MlflowClient  # noqa: F401
        from mlflow.entities import Metric, Param  # noqa: F401

    def open(self, run: str | None) -> str:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        if run is None:
            self._run = self._client.create_run(self._experiment_id(), run_name=self.run_name).info.run_id
            self._describe()
        else:
            self._run = run
            self._client.update_run(run, status="RUNNING")
        return self._run

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else self._client.create_experiment(self.experiment)

    def _describe(self) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in self.settings.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self._run, params=params[start : start + PARAMS_PER_CALL])

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(self._run, metrics=metrics[start : start + METRICS_PER_CALL])

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line but its step: what was not finite is null there and left out."""
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ("train.learning_rate", value); what is named like a secret is left out."""
    for name, value in settings.items():
        if SECRET_NAME.search(name):
            continue
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the keys, tokens and passwords of the environment and without the user part of addresses."""
    for name, value in environment.items():
        if value and SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return SECRET_IN_URL.sub("://***@", text)


def _warn(sink: Sink, reason: str) -> None:
    short = without_secrets(" ".join(reason.split()))[:LONGEST_REASON]
    print(f"warning: {sink.name} gets no more of this run: {short}", file=sys.stderr, flush=True)
