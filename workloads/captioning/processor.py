"""What an encoder's own processor does to a picture, as numbers that `seeing` follows; what that cannot do is refused here."""

from __future__ import annotations

from typing import Any

from contracts.errors import SlipwayError

# What `seeing` divides a picture's bytes by.
WHITE = 255


def picture(processor: Any, *, name: str) -> dict[str, Any]:
    """Of the processor of the encoder `name`: size in pixels, whether it is cut from the middle of a picture and how long that one's
    shorter side is then (`resize`), resampling (Pillow's number), mean and deviation of a channel, as shares of white.

    A processor with another `rescale_factor`, or none, has its mean and deviation counted in shares of white too: the pixels come
    out the same.

    Raises:
        SlipwayError: when it does what `seeing` does not.
    """
    if strange := _strange(processor):
        raise SlipwayError(
            f"prepare.encoder {name}: its processor {strange}; captioning knows processors that stretch a picture to a square, and"
            " those that scale the shorter side (shortest_edge) and cut a square from the middle"
        )
    size, crop = dict(processor.size), _crops(processor)
    side = size["shortest_edge"] if crop else size["height"]
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    scale = WHITE * (processor.rescale_factor if processor.do_rescale else 1)
    return {
        "size": int(dict(processor.crop_size)["height"] if crop else side),
        "resize": int(side),
        "crop": crop,
        "resample": int(processor.resample),
        "mean": [float(value) / scale for value in mean],
        "std": [float(value) / scale for value in std],
    }


def _crops(processor: Any) -> bool:
    return bool(getattr(processor, "do_center_crop", False))


def _strange(processor: Any) -> str | None:
    """What the processor does that `seeing` does not, in words; None where there is nothing."""
    size, crop = dict(processor.size), _crops(processor)
    if not processor.do_resize:
        return "leaves pictures as large as they are (do_resize is false)"
    if getattr(processor, "do_pad", False):
        return "pads pictures (do_pad)"
    if crop and set(size) != {"shortest_edge"}:
        return f"cuts the middle from a picture stretched to {size}"
    if not crop and set(size) != {"height", "width"}:
        return f"scales pictures to {size} and cuts nothing from them (do_center_crop is false)"
    seen = dict(processor.crop_size) if crop else size
    if seen["height"] != seen["width"]:
        return f"makes pictures {seen['width']} pixels wide and {seen['height']} high"
    return None
