"""Every command of the README is run by some test as it stands there or for a smaller workload, or is listed here with the reason why not."""

from __future__ import annotations

import re

from tests.readme import ROOT, commands

NOT_RUN = {
    "make demo": "minutes; the same pipeline runs on a smaller preset in tests/test_every_workload.py",
    "make test": "it is what runs this",
    ".venv/bin/slipway run captioning": "minutes; the preset small runs in tests/test_every_workload.py",
    ".venv/bin/slipway run algorithm_distillation": "minutes; the preset small runs in tests/test_every_workload.py",
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": "the tests' server has a free port; tests/flows/conftest.py sets the variable",
    ".venv/bin/slipway profile segmentation": "minutes: tests/cli/test_profile.py profiles smaller steps",
}


def run_by_tests() -> set[str]:
    """The commands that test files hand to `readme_command`."""
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    return {command for text in files for command in re.findall(r'readme_command\("([^"]+)"\)', text)}


def test_every_command_of_the_readme_is_run_or_has_a_reason_why_not() -> None:
    shown, run = set(commands()), run_by_tests()
    assert run
    assert not shown - run - set(NOT_RUN), "the README shows commands that no test runs: add them to one, or to NOT_RUN"
    assert not (run | set(NOT_RUN)) - shown, "the README does not show these any more"
    assert not run & set(NOT_RUN), "these are run: take them out of NOT_RUN"


def test_every_target_of_make_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(?:.*`)?make (\w+)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= {"demo", "test", "check"}
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    assert links
    assert [path for path in links if not (ROOT / path).exists()] == []


def test_every_test_that_the_docs_name_exists() -> None:
    named = [
        place
        for page in (ROOT / "docs").rglob("*.md")
        for place in re.findall(r"`([\w/]+\.py::test_\w+)`", page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    for place in named:
        file, test = place.split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place
