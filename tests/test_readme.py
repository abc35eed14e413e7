"""Every command of the README is run by some test as it stands there or for a smaller workload, or is listed here with the reason why not."""

from __future__ import annotations

import re
import shlex

import pytest
from typer._click.exceptions import ClickException, MissingParameter

from cli.main import VERBS, _verb
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


def shown_in_docs() -> list[tuple[str, str, bool]]:
    """Every command `slipway` of the pages: the page, its words without comment, and whether it is a line to copy. In the text a verb may
    be named without what it needs."""
    found: list[tuple[str, str, bool]] = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        command = r"(?:\.venv/bin/)?slipway ([a-z][^`\n]*)"
        found += [(name, told.group(1), True) for line in lines if (told := re.match(rf"(?:\$ )?{command}", line))]
        found += [(name, words, False) for words in re.findall(rf"`{command}`", text)]
    return [(page, re.sub(r"\s#.*", "", words).strip(), whole) for page, words, whole in found]


def test_every_command_of_the_docs_has_a_verb_and_options_that_exist() -> None:
    """Typer reads it as it would before running it."""
    commands = shown_in_docs()
    assert sum(whole for *_, whole in commands) >= 7 and len(commands) > 20
    assert [fault for page, words, whole in commands if (fault := fault_of(words, whole=whole))] == []


@pytest.mark.parametrize("words", ["rolout 8,8", "rollout 8,8 --time 4", "use", "scale segmentation --ranks two"])
def test_a_command_that_typer_would_refuse_is_noticed(words: str) -> None:
    assert fault_of(words, whole=True)


def fault_of(words: str, *, whole: bool) -> str | None:
    """What is wrong with a command; where it need not be whole, it may lack arguments."""
    verb, *arguments = shlex.split(words)
    if verb not in VERBS:
        return f"there is no verb {verb}"
    try:
        _verb(verb).make_context(verb, arguments)
    except MissingParameter as error:
        return error.format_message() if whole else None
    except ClickException as error:
        return f"slipway {words}: {error.format_message()}"


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
