"""Builds `.venv` from requirements.lock, and nothing twice: `python cli/environment.py`, as `make environment` does.

It runs before anything is installed, so it needs no more than Python itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PROGRAMS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = PROGRAMS / ("python.exe" if os.name == "nt" else "python")
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "slipway-environment"
OLDEST, TOO_NEW = (3, 11), (3, 14)
# Started as .venv/bin/dvc, DVC would not find this environment's `python`, which the stages in dvc.yaml call: every program
# of the environment therefore puts its own folder first on the PATH. Python runs this line when it starts.
PATH_LINE = (
    "import os, sys; "
    "os.environ.setdefault('PATH', os.defpath); "
    "os.environ['PATH'].startswith(os.path.dirname(sys.executable) + os.pathsep) or "
    "os.environ.update(PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH'])\n"
)


def main() -> None:
    """Build the environment unless the one that is there was built from the same files.

    Raises:
        SystemExit: with what failed and the way out.
    """
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted and works():
        return
    if not works():
        make()
    print("installing what requirements.lock lists into .venv (a few gigabytes the first time)", flush=True)
    with_pip("--no-deps", "--require-hashes", "-r", str(only_uv()))
    install(
        ["sync", "--compile-bytecode", "--require-hashes", str(LOCK)], ["--no-deps", "--require-hashes", "-r", str(LOCK)]
    )
    project = ["--no-deps", "--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", str(ROOT)]
    install(["install", *project], project)
    packages = run([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(packages) / "slipway_path.pth").write_text(PATH_LINE, encoding="utf-8")
    STAMP.write_text(wanted, encoding="utf-8")
    print(f"the environment is ready: {VENV}", flush=True)


def fingerprint() -> str:
    """Names an environment by what it is made from, and by where it lies: it cannot be moved."""
    files = [LOCK, ROOT / "pyproject.toml", Path(__file__)]
    return hashlib.sha256(b"\0".join([str(ROOT).encode(), *(path.read_bytes() for path in files)])).hexdigest()


def works() -> bool:
    """Whether .venv holds a Python that starts and is one of those that Slipway runs on."""
    check = f"import sys; from importlib.util import find_spec; sys.exit(not find_spec('pip') or not {OLDEST} <= sys.version_info < {TOO_NEW} or sys.prefix != {str(VENV)!r})"
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", check], capture_output=True).returncode == 0


def make() -> None:
    """A new, empty .venv."""
    if not OLDEST <= sys.version_info < TOO_NEW:
        raise SystemExit(
            f"error: Slipway runs on Python 3.11 to 3.13, and this is {sys.version.split()[0]} ({sys.executable})"
        )
    print(f"making .venv with Python {sys.version.split()[0]}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {sys.executable} cannot make an environment: {(done.stdout + done.stderr).strip()}")


def only_uv() -> Path:
    """A file with uv's own lines of the lock, so that it too is checked by its hash."""
    found = re.search(r"^uv==.*?(?=^\S)", LOCK.read_text(encoding="utf-8") + "\n#", re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"error: {LOCK} does not list uv: `make lock` writes it anew")
    path = VENV / "uv.lock.txt"
    path.write_text(found[0], encoding="utf-8")
    return path


def install(by_uv: list[str], by_pip: list[str]) -> None:
    """Through uv, which is many times faster; through pip where uv fails, because only pip reads pip's own settings."""
    program = PROGRAMS / ("uv.exe" if os.name == "nt" else "uv")
    done = subprocess.run([str(program), "pip", *by_uv[:1], "--python", str(PYTHON), *by_uv[1:]], cwd=ROOT)
    if done.returncode:
        print("uv could not install it; trying pip, which takes longer", flush=True)
        with_pip(*by_pip)


def with_pip(*arguments: str) -> None:
    """`pip install`, silent unless it fails."""
    run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def run(command: list[str]) -> str:
    """What a command printed; its failure ends ours."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: this failed (status {done.returncode}), see above: {' '.join(command)}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
