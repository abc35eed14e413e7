"""The door to ultralytics: imported quietly and offline, its models built from YAML and read without running their pickles."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.workload import ROOT

if TYPE_CHECKING:
    from torch import nn

MODELS = Path(__file__).parent / "models"


def prepare_ultralytics() -> None:
    """Set what must be set before the first import: no look-ups, no telemetry, no files in the user's home, our own threads.

    Its import sets OMP_NUM_THREADS to 1 where that is unset, and looks for a font on the network where none is at hand.
    """
    folder = Path(os.environ.setdefault("YOLO_CONFIG_DIR", str(ROOT / ".slipway")))
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "1"
    font = folder / "Ultralytics" / "Arial.ttf"
    if not font.exists():
        import matplotlib

        font.parent.mkdir(parents=True, exist_ok=True)
        bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        with suppress(FileExistsError):
            os.symlink(bundled, font) if os.name != "nt" else font.write_bytes(bundled.read_bytes())
    threads = os.environ.get("OMP_NUM_THREADS")
    import ultralytics.utils
    from PIL import Image
    from ultralytics.utils import patches

    # It replaces Pillow's own open by one that installs packages where a file is no picture.
    Image.open = patches._image_open
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    ultralytics.utils.SETTINGS["sync"] = False


def make_model(name: str, classes: Sequence[str], *, pretrained: bool, sha256: str | None = None) -> nn.Module:
    """A segmentation network for these classes, float32, in training mode.

    `name` is a YAML beside this file (digits-seg), an Ultralytics YAML (yolov8n-seg.yaml), or weights (a .pt file, or the
    name of one that Ultralytics publishes): from those, every tensor that fits is taken over where `pretrained` asks for it.

    Raises:
        SlipwayError: when there is no such model, it does not segment, or its hash is not the one that is set.
    """
    prepare_ultralytics()
    import torch

    with torch.device("cpu"):  # its classes hold tensors, which would stay on the device of whoever builds first (meta)
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import SegmentationModel

    config, weights = _architecture(name, pretrained=pretrained, sha256=sha256)
    build: Any = SegmentationModel  # its annotations know the path of a YAML alone
    model = build({**config, "nc": len(classes)}, nc=len(classes), verbose=False)
    model.args = get_cfg()
    model.names = dict(enumerate(classes))
    if weights is not None:
        own = model.state_dict()
        fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
        model.load_state_dict({**own, **fitting})
        print(f"{name}: {len(fitting)} of {len(own)} tensors taken over; the rest depends on the number of classes")
    return model


def _architecture(name: str, *, pretrained: bool, sha256: str | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The architecture of a model and, where they are asked for and there are any, its weights."""
    if not name.endswith(".pt"):
        return _config(name, asked=name), None
    if not pretrained and not Path(name).exists():
        return _config(f"{Path(name).stem}.yaml", asked=name), None
    config, weights = _weights(Path(name), sha256)
    return config, weights if pretrained else None


def _config(name: str, *, asked: str) -> dict[str, Any]:
    """The architecture in a YAML file of ours or of ultralytics, whose names hold a letter for the scale (yolov8n-seg.yaml).

    `asked` is what the settings say, for the error.
    """
    import yaml
    from ultralytics.nn.tasks import yaml_model_load

    own = MODELS / f"{name.removesuffix('.yaml')}.yaml"
    if own.exists():
        return yaml.safe_load(own.read_text(encoding="utf-8"))
    # Only a file, or a plain name: ultralytics would download an address, and take a pattern for whatever it meets first.
    sought = name.endswith(".yaml") and (Path(name).is_file() or re.fullmatch(r"[\w.-]+", name))
    config: Any = None
    if sought:
        with suppress(FileNotFoundError):
            config = yaml_model_load(name)
    if not isinstance(config, dict) or not {"backbone", "head"} <= config.keys():
        raise SlipwayError(f"train.model = {asked!r}: {_known()}")
    if not str(config["head"][-1][2]).startswith("Segment"):
        raise SlipwayError(
            f"train.model = {asked!r} finds no masks (its last layer is {config['head'][-1][2]}): use a -seg one"
        )
    return config


def _known() -> str:
    """Which models there are, as an error goes on."""
    import ultralytics

    ours = ", ".join(sorted(path.stem for path in MODELS.glob("*.yaml")))
    theirs = ", ".join(
        sorted(path.name for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("yolo[v1-9]*-seg.yaml"))
    )
    return (
        f"neither a model of Slipway ({ours}), a YAML of ultralytics ({theirs}, with a scale as in yolov8n-seg.yaml), "
        "nor a .pt file that exists or that ultralytics publishes (yolov8n-seg.pt)"
    )


def _weights(path: Path, sha256: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and tensors of an Ultralytics checkpoint, read without running code from it."""
    from ultralytics.nn.tasks import torch_safe_load

    # Absolute: ultralytics deletes a damaged file that bears the bare name of a published one, and fetches that again.
    found = _found(path).absolute()
    if sha256 is not None:
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise SlipwayError(
                f"{found} has sha256 {digest}, but train.weights_sha256 = {sha256}: the file is not the one you meant"
            )
    try:
        checkpoint, _ = torch_safe_load(str(found), safe_only=True)
    except (TypeError, ImportError, AttributeError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise SlipwayError(
            f"{found} was refused: it is damaged, or holds more than the weights of an ultralytics model ({error})"
        ) from error
    model: Any = checkpoint.get("ema") or checkpoint.get("model")
    if type(model).__name__ != "SegmentationModel":
        raise SlipwayError(f"{found} holds a {type(model).__name__}, not a segmentation model: use a -seg one")
    return model.yaml, model.float().state_dict()


def _found(path: Path) -> Path:
    """The file, downloaded where ultralytics publishes one of that name. For other names nothing is looked up anywhere."""
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    if path.is_file():
        return path
    if path.name not in GITHUB_ASSETS_NAMES or not path.parent.is_dir():
        raise SlipwayError(f"train.model = {str(path)!r}: {_known()}")
    try:
        found = Path(attempt_download_asset(path))
    except OSError as error:
        raise SlipwayError(
            f"train.model = {str(path)!r}: no such file, and it could not be downloaded ({error}); give a path, or use a YAML"
        ) from error
    if not found.is_file():
        raise SlipwayError(
            f"train.model = {str(path)!r}: no such file, and its download gave none; give a path, or use a YAML"
        )
    return found
