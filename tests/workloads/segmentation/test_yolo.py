"""The door to ultralytics: models by name, weights that cannot run code, and nothing left in the user's home."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import SlipwayError
from workloads.segmentation.yolo import make_model

ROOT = Path(__file__).parents[3]
CLASSES = ("pole", "crossarm", "insulator")


class _WritesAFile:
    """Unpickled with pickle, it writes `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def _num_parameters(name: str) -> int:
    return sum(value.numel() for value in make_model(name, CLASSES, pretrained=False).parameters())


def _save_as_ultralytics(path: Path, classes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A .pt of a small network in the layout of Ultralytics' trainer (half precision, in `ema`); gives its tensors."""
    torch.manual_seed(3)
    model = make_model("digits-seg", classes, pretrained=False).half()
    torch.save({"epoch": -1, "model": None, "ema": model, "train_args": {"imgsz": 32}, "version": "8.4.0"}, path)
    return {name: value.float() for name, value in model.state_dict().items()}


def test_the_small_model_of_this_workload_builds_for_any_classes() -> None:
    model = make_model("digits-seg", CLASSES, pretrained=False)
    assert model.names == {0: "pole", 1: "crossarm", 2: "insulator"}
    predictions = model.eval()(torch.zeros(1, 3, 64, 64))[0]
    assert (predictions[0] if isinstance(predictions, tuple) else predictions).shape[1] == 4 + 3 + 16


def test_the_letter_in_a_name_is_the_scale() -> None:
    small, medium = _num_parameters("yolov8n-seg.yaml"), _num_parameters("yolov8m-seg.yaml")
    assert 3.2e6 < small < 3.5e6
    assert 27e6 < medium < 28e6
    assert _num_parameters("yolov8n-seg.pt") == small


@pytest.mark.parametrize(
    "name",
    [
        *("no-such-model", "no-such-model.yaml", "no-such-model.pt", "*.yaml", "coco8-seg.yaml", "yolov8n-seg"),
        *("https://127.0.0.1:9/a.yaml", "https://127.0.0.1:9/a.pt", "https://127.0.0.1:9/yolov8n-seg.pt"),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SlipwayError) as caught:
        make_model(name, CLASSES, pretrained=True)
    assert all(word in str(caught.value) for word in (repr(name).replace("//", "/")[-12:], "digits-seg", "yolov8-seg.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_masks_is_refused() -> None:
    with pytest.raises(SlipwayError, match=r"'yolov8n.yaml' finds no masks .*Detect.*-seg"):
        make_model("yolov8n.yaml", CLASSES, pretrained=False)


def test_published_weights_that_cannot_be_fetched_are_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SlipwayError, match=r"'yolov8x-seg.pt': no such file, and it could not be downloaded"):
        make_model("yolov8x-seg.pt", CLASSES, pretrained=True)
    assert list(tmp_path.iterdir()) == []


def test_weights_made_by_ultralytics_are_taken_over_wherever_they_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pt"
    theirs = _save_as_ultralytics(path, ("cat", "dog"))
    ours = make_model(str(path), CLASSES, pretrained=True).state_dict()
    fitting = {name for name in ours if theirs[name].shape == ours[name].shape}
    assert 0 < len(ours) - len(fitting) < 10
    assert all(torch.equal(ours[name], theirs[name]) for name in fitting)
    assert {value.dtype for value in ours.values()} <= {torch.float32, torch.int64}
    assert f"{len(fitting)} of {len(ours)} tensors taken over" in capsys.readouterr().out


def test_without_pretrained_a_file_gives_its_architecture_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    theirs = _save_as_ultralytics(path, CLASSES)
    ours = make_model(str(path), CLASSES, pretrained=False).state_dict()
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["model.0.conv.weight"], theirs["model.0.conv.weight"])


@pytest.mark.parametrize("place", ["alone", "as the model", "beside a good model"])
def test_weights_that_hold_code_are_refused_and_the_code_does_not_run(place: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    evil = _WritesAFile(proof)
    good = make_model("digits-seg", CLASSES, pretrained=False)
    if place == "alone":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save({"model": evil} if place == "as the model" else {"model": good, "train_args": evil}, path)
    with pytest.raises(SlipwayError, match=r"evil.pt was refused"):
        make_model(str(path), CLASSES, pretrained=True)
    assert not proof.exists()
    torch.load(path, weights_only=False) if place != "alone" else pickle.loads(path.read_bytes())
    assert proof.read_text() == "ran"  # it would have


def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("yolov8n-seg.pt")
    _save_as_ultralytics(path, CLASSES)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SlipwayError, match=r"yolov8n-seg.pt was refused: it is damaged"):
        make_model(str(path), CLASSES, pretrained=True)
    assert path.stat().st_size == 20_000


def test_a_file_without_a_segmentation_model_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "plain.pt")
    with pytest.raises(SlipwayError, match=r"plain.pt holds a NoneType, not a segmentation model"):
        make_model(str(tmp_path / "plain.pt"), CLASSES, pretrained=True)


def test_weights_with_another_hash_are_refused_with_both(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "other.pt"
    _save_as_ultralytics(path, CLASSES)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    make_model(str(path), CLASSES, pretrained=True, sha256=digest)
    with pytest.raises(SlipwayError, match=rf"{digest}.*weights_sha256 = {'0' * 64}"):
        make_model(str(path), CLASSES, pretrained=True, sha256="0" * 64)


@pytest.mark.parametrize("configured", [False, True])
def test_nothing_is_written_into_the_users_home(configured: bool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {"PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if configured:
        environment["YOLO_CONFIG_DIR"] = str(tmp_path / "configured")
    code = (
        "from workloads.segmentation.yolo import make_model; make_model('digits-seg', ['a'], pretrained=False)\n"
        "from ultralytics import YOLO; from ultralytics.utils import USER_CONFIG_DIR; print(USER_CONFIG_DIR)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[-1]).is_relative_to(tmp_path / "configured" if configured else ROOT / ".slipway")
    assert [path for path in home.rglob("*") if path.is_file()] == []
