"""Outlines as people draw them, made into polygons that can be filled: inside the frame, simple, with an area."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.polygon import orient

from workloads.segmentation.labels.drawn import Shape, Unusable

Points = NDArray[np.float64]
Polygon = NDArray[np.float32]
# A hundredth of a pixel: what six digits of a normalised label still hold in a picture of 10,000 pixels, so that the same
# label reads the same in every format.
DECIMALS = 2
MIN_AREA = 0.01
FARTHEST = 1e9
FARTHEST_SHARE = 2
NUMBERS = {int, float}
# A ring that fills all it winds round (a keyhole, parts joined by a line) keeps its points although it touches itself.
KEPT_SHARE = 0.999


def polygons_of(
    shapes: Sequence[Shape], sizes: Sequence[tuple[int, int]], line_width: float
) -> tuple[list[list[Polygon]], list[list[str]]]:
    """For each shape its polygons (flat x1, y1, ..., pixels), and why parts of it were refused.

    `sizes` are the (width, height) of each shape's image: shapes of many images are judged together.
    """
    polygons: list[list[Polygon]] = [[] for _ in shapes]
    reasons: list[list[str]] = [[] for _ in shapes]
    owners = [index for index, shape in enumerate(shapes) for _ in shape.parts]
    parts = [part for shape in shapes for part in shape.parts]
    quick = _at_once([shapes[owner] for owner in owners], [sizes[owner] for owner in owners], parts, line_width)
    for owner, part, ready in zip(owners, parts, quick, strict=True):
        if ready is not None:
            polygons[owner].append(ready)
            continue
        width, height = sizes[owner]
        try:
            points = coordinates(part)
            if shapes[owner].unit == "shares":
                points = in_pixels(points, width, height)
            line = shapes[owner].kind == "line"
            rings = buffered(points, line_width, width, height) if line else repaired(points, width, height)
            polygons[owner] += [ring.astype(np.float32).ravel() for ring in rings]
        except Unusable as error:
            reasons[owner].append(str(error))
    return polygons, reasons


def _at_once(
    shapes: Sequence[Shape], sizes: Sequence[tuple[int, int]], parts: list[Any], line_width: float
) -> list[Polygon | None]:
    """The polygons of the parts that need no attention, None for the others; `shapes` and `sizes` are one for each part."""
    ready: list[Polygon | None] = [None] * len(parts)
    for kind, fewest in (("polygon", 6), ("line", 4)):
        plain = [
            index for index, part in enumerate(parts) if shapes[index].kind == kind and _is_numbers_in_pairs(part, fewest)
        ]
        if not plain:
            continue
        try:
            numbers = np.fromiter(chain.from_iterable(parts[index] for index in plain), np.float64)
        except OverflowError:  # an integer of hundreds of digits
            continue
        whose = np.repeat(np.arange(len(plain)), [len(parts[index]) // 2 for index in plain])
        frames = np.array([sizes[index] for index in plain], np.float64)
        shares = np.array([shapes[index].unit == "shares" for index in plain])
        points = _in_frames(numbers.reshape(-1, 2), frames[whose], shares[whose])
        drawn = _outlines(points, whose, frames) if kind == "polygon" else _bands(points, whose, frames, line_width)
        for index, polygon in zip(plain, drawn, strict=True):
            ready[index] = polygon
    return ready


def _is_numbers_in_pairs(part: Any, fewest: int) -> bool:
    return type(part) is list and len(part) >= fewest and not len(part) % 2 and set(map(type, part)) <= NUMBERS


def _in_frames(points: Points, frames: Points, shares: NDArray[np.bool_]) -> Points:
    """Points [n, 2] in rounded pixels of their frames [n, 2]; what `coordinates` and `in_pixels` refuse is outside them."""
    far = ~(np.abs(points) <= np.where(shares, FARTHEST_SHARE, FARTHEST)[:, None])
    near: Points = np.where(far, -1.0, points)
    return np.round(near * np.where(shares[:, None], frames, 1.0), DECIMALS)


def _outlines(points: Points, whose: NDArray[np.intp], frames: Points) -> list[Polygon | None]:
    """Outlines that are simple, with an area and inside their frame [m, 2], as they stand."""
    starts = np.searchsorted(whose, np.arange(len(frames)))
    inside = np.logical_and.reduceat(((points >= 0) & (points <= frames[whose])).all(1), starts)
    outlines = shapely.polygons(shapely.linearrings(points, indices=whose))
    good = inside & shapely.is_valid(outlines) & (shapely.area(outlines) >= MIN_AREA)
    flat = points.astype(np.float32).ravel()
    ends = [*starts[1:].tolist(), len(points)]
    rings = zip(starts.tolist(), ends, good.tolist(), strict=True)
    return [flat[2 * start : 2 * end] if fine else None for start, end, fine in rings]


def _bands(points: Points, whose: NDArray[np.intp], frames: Points, line_width: float) -> list[Polygon | None]:
    """Lines that become one ring inside their frame [m, 2]."""
    bands = band(shapely.linestrings(points, indices=whose), line_width)
    bounds = shapely.bounds(bands)
    inside = (bounds[:, :2] >= 0).all(1) & (bounds[:, 2:] <= frames).all(1)
    simple = (shapely.get_type_id(bands) == shapely.GeometryType.POLYGON) & (shapely.get_num_interior_rings(bands) == 0)
    good = inside & simple & (shapely.area(bands) >= MIN_AREA)
    corners, owners = shapely.get_coordinates(bands, return_index=True)
    flat = np.round(corners, DECIMALS).astype(np.float32).ravel()
    starts = np.searchsorted(owners, np.arange(len(bands) + 1)).tolist()
    rings = zip(starts, starts[1:], good.tolist(), strict=False)
    return [flat[2 * start : 2 * end - 2] if fine else None for start, end, fine in rings]


def coordinates(part: Any) -> Points:
    """A flat list x1, y1, x2, y2... as points [n, 2].

    Raises:
        Unusable: when it is not a list of finite numbers in pairs.
    """
    if not isinstance(part, list):
        raise Unusable("coordinates are not a list of numbers")
    if not part:
        raise Unusable("fewer than 3 points: none at all")
    for value in part:
        if type(value) not in NUMBERS:
            raise Unusable(f"coordinate is not a number: {'null' if value is None else repr(value)[:40]}")
    if len(part) % 2:
        raise Unusable("odd number of coordinates")
    try:
        points = np.array(part, np.float64).reshape(-1, 2)
    except OverflowError:
        raise Unusable("coordinate is beyond any image: a number of hundreds of digits") from None
    if not np.isfinite(points).all():
        raise Unusable("coordinate is NaN or infinite")
    if np.abs(points).max() > FARTHEST:
        raise Unusable(f"coordinate is beyond any image: {np.abs(points).max():g}")
    return points


def in_pixels(points: Points, width: int, height: int) -> Points:
    """Shares of width and height as pixels.

    Raises:
        Unusable: when they cannot be shares.
    """
    if np.abs(points).max() > FARTHEST_SHARE:
        raise Unusable(f"coordinates are not shares of the image: {np.abs(points).max():g} is far beyond 1")
    return points * (width, height)


def repaired(points: Points, width: int, height: int) -> list[Points]:
    """The polygons that an outline fills within the frame; one that crosses itself gives what the even-odd rule fills.

    That is what OpenCV's fillPoly draws, so nothing that was meant is lost. Raises Unusable when nothing is left.
    """
    points = np.round(points, DECIMALS)
    if _num_distinct(points) < 3:
        raise Unusable("fewer than 3 points")
    _meets_frame(points, width, height)
    outline = shapely.Polygon(points)
    filled = outline if outline.is_valid else shapely.make_valid(outline)
    if filled.area < MIN_AREA:
        raise Unusable("no area")
    if _outside(points, width, height):
        return _rings(filled.intersection(shapely.box(0, 0, width, height)))
    if outline is filled or outline.area >= KEPT_SHARE * filled.area:
        return [points]
    return _rings(filled)


def buffered(points: Points, line_width: float, width: int, height: int) -> list[Points]:
    """A line as the thin polygon that is `line_width` pixels wide round it, within the frame."""
    points = np.round(points, DECIMALS)
    if _num_distinct(points) < 2:
        raise Unusable("fewer than 2 points in a line")
    area = band(shapely.LineString(points), line_width)
    left, top, right, bottom = shapely.bounds(area).tolist()
    if left < 0 or top < 0 or right > width or bottom > height:
        area = area.intersection(shapely.box(0, 0, width, height))
    return _rings(area)


def band(lines: Any, line_width: float) -> Any:
    """What is within half of `line_width` pixels of a line, or of each of an array of lines."""
    return shapely.buffer(lines, line_width / 2, cap_style="flat", join_style="mitre", mitre_limit=2)


def box(left: Any, top: Any, right: Any, bottom: Any) -> list[Any]:
    """The four corners of a box as one part of a shape."""
    return [left, top, right, top, right, bottom, left, bottom]


def extent(left: float, top: float, width: float, height: float) -> list[Any]:
    """The four corners of a box given by its size. Sums of huge numbers become infinite and are refused as such later."""
    return box(left, top, float(left) + float(width), float(top) + float(height))


def circle(centre: Sequence[float], edge: Sequence[float]) -> list[float]:
    """A circle, given by its centre and a point on it, as a part with 36 corners."""
    radius, angles = np.hypot(edge[0] - centre[0], edge[1] - centre[1]), np.linspace(0, 2 * np.pi, 36, endpoint=False)
    corners = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
    return corners.ravel().tolist()


def _num_distinct(points: Points) -> int:
    return len(set(map(tuple, points.tolist())))


def _meets_frame(points: Points, width: int, height: int) -> None:
    low, high = points.min(0), points.max(0)
    if (high <= 0).any() or low[0] >= width or low[1] >= height:
        raise Unusable(f"outside the image: x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g} of {width} x {height}")


def _outside(points: Points, width: int, height: int) -> bool:
    return bool((points < 0).any() or (points > (width, height)).any())


def _rings(area: shapely.Geometry) -> list[Points]:
    """The polygons of a geometry as rings, holes cut open; raises Unusable when it has none with an area."""
    rings = [np.round(keyhole(one), DECIMALS) for one in _polygons(area) if one.area >= MIN_AREA]
    if not rings:
        raise Unusable("outside the image: nothing of it is left within the frame")
    return rings


def _polygons(area: shapely.Geometry) -> list[shapely.Polygon]:
    if isinstance(area, shapely.Polygon):
        return [area]
    return [one for part in getattr(area, "geoms", ()) for one in _polygons(part)]


def keyhole(polygon: shapely.Polygon) -> Points:
    """A polygon with holes as one ring, each hole joined to it by a bridge without width at the nearest corners."""
    if not shapely.get_num_interior_rings(polygon):
        return shapely.get_coordinates(polygon)[:-1]
    polygon = orient(polygon)
    ring = shapely.get_coordinates(polygon.exterior)[:-1]
    for interior in polygon.interiors:
        hole = shapely.get_coordinates(interior)[:-1]
        distances = np.hypot(*(ring[:, None] - hole[None]).transpose(2, 0, 1))
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        turned = np.roll(hole, -int(there), axis=0)
        ring = np.concatenate([ring[: here + 1], turned, turned[:1], ring[here:]])
    return ring
