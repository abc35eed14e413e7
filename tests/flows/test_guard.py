"""Nothing that a flow started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.guarded import GUARD, guarded, start_guarded
from tests.flows.tiny_project import until

# A parent, and a child in a session of its own that ignores SIGTERM, as a stuck rank would.
STUBBORN = (
    "import signal, time, pathlib, os, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}, sys.argv[1]], start_new_session=True)"


def written(path: Path) -> int:
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def test_leaving_the_block_ends_descendants_in_other_sessions_too(tmp_path: Path) -> None:
    process = start_guarded(
        [sys.executable, "-c", PARENT, str(tmp_path / "pid")], environment={}, output=subprocess.DEVNULL, grace=0.5
    )
    rank = written(tmp_path / "pid")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(rank)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process could answer")
def test_asking_the_guard_to_end_ends_everything_below_it(tmp_path: Path) -> None:
    process = start_guarded(
        [sys.executable, "-c", PARENT, str(tmp_path / "pid")], environment={}, output=subprocess.DEVNULL, grace=0.5
    )
    rank = written(tmp_path / "pid")
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(rank)
    assert process.stdin is not None
    process.stdin.close()


def test_a_parent_killed_outright_takes_everything_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, sys.argv[1], '0.5', sys.executable, '-c', sys.argv[3], sys.argv[2]], "
        "stdin=subprocess.PIPE, start_new_session=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(GUARD), str(tmp_path / "pid"), PARENT])
    rank = written(tmp_path / "pid")
    below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    until(lambda: not psutil.pid_exists(rank) and not any(one.is_running() for one in below), seconds=30)


def test_a_command_that_ends_gives_its_output_and_status() -> None:
    code = "import shutil, sys; print(shutil.which('python')); sys.exit(7)"
    with guarded([sys.executable, "-c", code], environment={}, output=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        assert process.wait() == 7
    assert Path(said.strip()).parent == Path(sys.executable).parent
