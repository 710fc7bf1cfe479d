"""Pure geometry of the crops that the attack embeds: background crop (two rules), corner crop and
whole image.

Boxes and crops are (xmin, ymin, xmax, ymax) in pixels, the origin in the upper left corner, as in
Pascal VOC and PIL.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax
RULES = ("paper", "exact")  # of background crops


def background_crop(
    width: int, height: int, boxes: Sequence[Box], min_px: int = 100, rule: str = "paper"
) -> Box | None:
    """The part of an image that shows no annotated object, or None where there is none.

    width, height: size of the image in pixels. boxes: sequence of (xmin, ymin, xmax, ymax). min_px:
    the crop's shorter side must be longer than this many pixels. rule:

    * "paper" (Meehan et al. 2023, arXiv 2304.13850): cut the image into vertical strips at the x edges of all boxes;
      in every strip take the y gaps that no box over that strip covers; of all these rectangles take the one with the
      largest shorter side, of equals the last (left to right, then top to bottom). A box that reaches beyond the
      image's width gives no crop.
    * "exact": the empty rectangle with the largest shorter side; neighboring strips may join, boxes are clipped.

    Returns (xmin, ymin, xmax, ymax), or None if no rectangle is large enough, if there are no boxes
    (then nothing says where the object is) or if a box is reversed. ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"crop rule {rule!r} is not one of {', '.join(RULES)}")
    if not boxes or any(x1 < x0 or y1 < y0 for x0, y0, x1, y1 in boxes):
        return None
    if rule == "paper" and any(x1 > width for _, _, x1, _ in boxes):
        return None
    boxes = [_clipped(box, width, height) for box in boxes]
    if rule == "paper":
        edges = {0, width}
        for left, _, right, _ in boxes:
            edges |= {left, right}
        strips = list(itertools.pairwise(sorted(edges)))
    else:  # every maximal empty rectangle begins behind a box and ends before one
        boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
        lefts = sorted({0, *(box[2] for box in boxes)})
        rights = sorted({width, *(box[0] for box in boxes)})
        strips = list(itertools.product(lefts, rights))
    best = None
    best_side = 0
    for left, right in strips:
        for top, bottom in _gaps(height, boxes, left, right):
            side = min(right - left, bottom - top)
            if side > min_px and side >= best_side:  # of equals the last
                best = (left, top, right, bottom)
                best_side = side
    return best


def corner_crop(width: int, height: int, fraction: float = 0.3) -> Box:
    """The lower left corner, int(fraction x side) pixels of each side (at least one), as (xmin,
    ymin, xmax, ymax).

    ValueError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"corner crop fraction {fraction} is not in (0, 1]")
    crop_width = max(1, int(fraction * width))
    crop_height = max(1, int(fraction * height))
    return 0, height - crop_height, crop_width, height


def _clipped(box: Box, width: int, height: int) -> Box:
    x0, y0, x1, y1 = (max(0, x) for x in box)
    return min(x0, width), min(y0, height), min(x1, width), min(y1, height)


def _gaps(height: int, boxes: Sequence[Box], left: int, right: int) -> Iterator[tuple[int, int]]:
    """The y intervals within [0, height] that no box between two x edges covers, from top to
    bottom."""
    covered = [(y0, y1) for x0, y0, x1, y1 in boxes if x0 < right and x1 > left]
    end = 0
    for y0, y1 in sorted(covered):
        if y0 > end:
            yield end, y0
        end = max(end, y1)
    if height > end:
        yield end, height


@dataclass(frozen=True)
class CropRule:
    """How the attack's crops are taken.

    name: paper or exact (background crops, `background_crop`), corner or whole. min_px: a
    background crop's shorter side is longer, in pixels. margin: boxes grow by it on every side
    before the crop is cut: below 1 a fraction of the box's side, else pixels. scale: scale boxes
    from the <size> in the XML to the image's. fraction: side of the corner / of the image.
    """

    name: str = "paper"
    min_px: int = 100
    margin: float = 0.0
    scale: bool = False
    fraction: float = 0.3

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "CropRule":
        """The rule of a script's flags, or of an attack's results.json; older ones lack box_margin
        and scale_boxes."""
        if settings.get("use_corner_crop"):
            return cls("corner", fraction=settings["corner_crop_frac"])
        margin = settings.get("box_margin", 0)
        scale = bool(settings.get("scale_boxes", 0))
        return cls(settings["crop_rule"], settings["min_px"], margin, scale)

    @property
    def reads_boxes(self) -> bool:
        """Does the crop depend on the image's boxes? Then not every image has one."""
        return self.name in RULES

    def crop(self, size: tuple[int, int], boxes: Sequence[Box] = ()) -> Box | None:
        """The crop of an image of (width, height) pixels; None where no background is large
        enough."""
        if self.name == "whole":
            return 0, 0, *size
        if self.name == "corner":
            return corner_crop(*size, self.fraction)
        return background_crop(*size, boxes, self.min_px, self.name)

    def __str__(self) -> str:
        """What is cut out, the same text for the same rule: TrainingImages.crops; "" for whole
        images."""
        if self.name == "whole":
            return ""
        if self.name == "corner":
            return f"lower left corner, {self.fraction:g} of each side"
        grown = f", boxes grown by {self.margin:g}" if self.margin else ""
        return f"background, {self.name} rule, above {self.min_px} px{grown}{', boxes scaled' if self.scale else ''}"


DEFAULT_CROP_RULE = CropRule()  # the published one
WHOLE_IMAGE = CropRule("whole")
