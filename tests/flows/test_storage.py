"""What DVC keeps of a pipeline comes back: in this folder, and in another clone through a remote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.flows.tiny_project import dvc, run


def test_data_and_models_come_back_from_the_remote_in_another_clone(
    project: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, variables = project
    dvc(folder, variables, "repro", "quantize@tiny", "layout@tiny")
    dvc(folder, variables, "push")
    assert (folder / ".slipway" / "remote" / "files").is_dir(), "the remote of .dvc/config is not this folder"
    run(["git", "add", "-A"], folder, variables)
    run(["git", "commit", "-q", "-m", "trained"], folder, variables)
    run(["git", "clone", "-q", str(folder), str(tmp_path / "clone")], tmp_path, variables)
    clone = tmp_path / "clone"
    dvc(clone, variables, "remote", "modify", "--local", "local", "url", str(folder / ".slipway" / "remote"))
    dvc(clone, variables, "pull", "quantize@tiny", "fit@tiny", "fetch@tiny", "layout@tiny")
    for file in ("data/fit/tiny/model", "data/fit/tiny/result.json", "data/quantize/tiny/comparison.json"):
        assert (clone / file).read_bytes() == (folder / file).read_bytes()
    assert "accuracy" in dvc(clone, variables, "metrics", "show")
    assert "Running stage" not in dvc(clone, variables, "repro", "quantize@tiny", "layout@tiny")


def test_outputs_that_were_deleted_come_back_without_training_again(project: tuple[Path, dict[str, str]]) -> None:
    folder, variables = project
    dvc(folder, variables, "repro", "quantize@tiny")
    shutil.rmtree(folder / "data" / "fit")
    said = dvc(folder, variables, "repro", "-s", "fit@tiny")
    assert "is cached - skipping run, checking out outputs" in said


def test_dvc_finds_the_environments_python_without_activation(tmp_path: Path) -> None:
    """The line that cli/environment.py puts into the environment does it; here it stands in a folder that Python starts with."""
    from cli.environment import PATH_LINE

    site = tmp_path / "site"
    site.mkdir()
    (site / "slipway_path.pth").write_text(PATH_LINE)
    (site / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})")
    variables = {name: value for name, value in os.environ.items() if name != "PATH"}
    variables |= {"PATH": os.defpath, "PYTHONPATH": str(site)}
    ask = "import os; print(os.environ['PATH'])"
    code = f"import shutil, subprocess; print(shutil.which('python'), flush=True); subprocess.run(['python', '-c', {ask!r}])"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    python, path = done.stdout.splitlines()
    assert Path(python).parent == Path(sys.executable).parent
    assert path.split(os.pathsep).count(str(Path(sys.executable).parent)) == 1
    assert not done.stderr
