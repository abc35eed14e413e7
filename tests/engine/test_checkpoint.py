"""Checkpoints are whole or not used, and never another run's."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from engine import checkpoint
from engine.beacon import WRITING
from engine.checkpoint import OWN_HASH, Checkpoints, copied


def _saved(folder: Path, *steps: int, fingerprint: str = "one", keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, fingerprint=fingerprint, keep=keep)
    for step in steps:
        checkpoints.save(step, {"weights": torch.full((3,), float(step)), "step": step})
        checkpoints.wait()
    return checkpoints


def test_the_newest_is_loaded_and_older_ones_are_pruned(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 1, 2, 3)
    assert [found.step for found in checkpoints.found()] == [2, 3]
    step, state = checkpoints.load() or (0, {})
    assert step == 3
    assert torch.equal(state["weights"], torch.full((3,), 3.0))


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    weights, checkpoints = torch.zeros(1000), Checkpoints(tmp_path, fingerprint="one")
    checkpoints.save(1, {"weights": weights})
    weights += 1
    checkpoints.wait()
    _, state = checkpoints.load() or (0, {})
    assert not state["weights"].any()


def test_a_copy_is_written_over_the_one_before_where_it_fits() -> None:
    before = copied({"weights": torch.zeros(3, 4), "moments": [torch.zeros(2)], "rates": torch.zeros(2), "step": 1})
    state = {"weights": torch.ones(3, 4).T, "moments": [torch.ones(2), torch.ones(3)], "rates": torch.ones(2), "step": 2}
    after = copied({**state, "average": torch.ones(1)}, into=before)
    assert after["rates"] is before["rates"]
    assert after["weights"].shape == (4, 3) and len(after["moments"]) == 2 and after["step"] == 2
    assert all(bool(value.all()) for value in (after["weights"], *after["moments"], after["rates"], after["average"]))
    assert not before["weights"].any() and not before["moments"][0].any()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "fingerprint"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = _saved(tmp_path, 1, 2)
    file = tmp_path / "step-000000002" / "state.pt"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (file.parent / "manifest.json").write_text("{")
    else:
        manifest = file.parent / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"one"', '"onf"'))
    step, _ = checkpoints.load() or (0, {})
    assert step == 1
    assert "step-000000002" in capsys.readouterr().out


def test_a_manifest_from_before_manifests_had_a_hash_is_believed(tmp_path: Path) -> None:
    checkpoints, manifest = _saved(tmp_path, 1), tmp_path / "step-000000001" / "manifest.json"
    older = {name: value for name, value in read_json(manifest).items() if name != OWN_HASH}
    assert older.keys() == {"step", "fingerprint", "sha256"}
    write_json(manifest, older)
    assert checkpoints.load() is not None
    write_json(manifest, {**older, "fingerprint": "theirs"})
    with pytest.raises(SlipwayError, match="fingerprint is theirs"):
        checkpoints.load()


def test_who_waits_for_a_write_says_that_it_goes_on_as_long_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "GROWTH_SECONDS", 0.01)
    marks: list[str] = []
    monkeypatch.setattr(checkpoint, "mark", marks.append)
    best, stands = tmp_path / ".best.safetensors.1.partial", threading.Event()
    deadline = time.monotonic() + 10

    def write() -> None:
        with best.open("wb", buffering=0) as file:
            while len(marks) < 4 and time.monotonic() < deadline:
                file.write(b"more")
                time.sleep(0.001)
        stands.wait(0.2)

    checkpoints = Checkpoints(tmp_path / "checkpoints", fingerprint="one")
    checkpoints.save(1, {}, first=write)
    checkpoints.wait()
    assert marks[:4] == [WRITING] * 4 and marks[-1] == "saving"
    assert len(marks) < 10, "it did not grow any more"


def test_what_comes_first_is_done_in_the_background_before_the_checkpoint_is_there(tmp_path: Path) -> None:
    checkpoints, may_go_on = Checkpoints(tmp_path, fingerprint="one"), threading.Event()
    checkpoints.save(1, {"step": 1}, first=may_go_on.wait)
    assert not checkpoints.found()
    may_go_on.set()
    checkpoints.wait()
    assert checkpoints.found()


def test_where_no_checkpoint_is_whole_it_is_said_that_training_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = _saved(tmp_path, 1)
    assert checkpoints.load() is not None and "anew" not in capsys.readouterr().out
    (tmp_path / "step-000000001" / "state.pt").write_bytes(b"")
    assert checkpoints.load() is None
    assert f"no checkpoint in {tmp_path} is whole: training begins anew" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    _saved(tmp_path, 5, fingerprint="theirs")
    with pytest.raises(SlipwayError, match=r"fingerprint is theirs, this run's is mine"):
        Checkpoints(tmp_path, fingerprint="mine").load()


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    partial = tmp_path / ".step-000000002.99.partial"
    partial.mkdir()
    (partial / "state.pt").write_bytes(b"half")
    step, _ = Checkpoints(tmp_path, fingerprint="one").load() or (0, {})
    assert step == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_a_failed_write_is_reported_and_the_old_ones_stay(tmp_path: Path, keep: int) -> None:
    """As many as are kept: none of them goes before the new one is there."""
    steps = list(range(1, keep + 1))
    checkpoints = _saved(tmp_path, *steps, keep=keep)
    (tmp_path / "step-000000003").write_text("in the way")
    checkpoints.save(3, {"step": 3})
    with pytest.raises(OSError, match="step-000000003"):
        checkpoints.wait()
    assert [found.step for found in checkpoints.found()] == steps
