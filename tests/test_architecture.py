"""The house stands as DESIGN says: imports go one way, and what must be light is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.loading import loaded

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "torchvision",
    "prefect",
    "dvc",
    "pyarrow",
    "transformers",
    "ultralytics",
    "onnxruntime",
    "pandas",
    "matplotlib",
    "fastapi",
    "uvicorn",
}


def modules(room: str) -> list[str]:
    files = sorted((ROOT / room).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


def test_imports_go_one_way() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_nouns_import_nothing_heavy() -> None:
    assert not loaded(f"import {', '.join(modules('contracts'))}") & HEAVY


def test_serving_imports_no_torch() -> None:
    assert not loaded(f"import {', '.join(modules('serving'))}") & {"torch", "torchvision", "prefect", "dvc", "ultralytics"}


def test_the_verbs_are_listed_without_importing_what_they_need() -> None:
    assert not loaded("from cli.main import app\ntry: app(['--help'])\nexcept SystemExit: pass") & HEAVY


def test_only_the_verb_that_serves_imports_a_web_server() -> None:
    verbs = [name for name in modules("cli") if name != "cli.serve"]
    assert not loaded(f"import {', '.join(verbs)}") & {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("room", ["contracts", "engine", "serving", "workloads", "tasks", "flows", "cli"])
def test_every_module_says_in_its_first_sentence_what_it_is(room: str) -> None:
    import ast

    silent = [
        path for path in (ROOT / room).rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent
