from pathlib import Path

import pytest
from helpers import read_json

from dejavu_utils.crops import background_crop, corner_crop

CASES = read_json(Path(__file__).parents[1] / "data/crops.json")


def short_side(crop):
    return None if crop is None else min(crop[2] - crop[0], crop[3] - crop[1])


def test_paper_rule_gives_the_published_crops():
    for case in CASES:
        crop = background_crop(case["width"], case["height"], case["boxes"], case["min_px"])
        assert short_side(crop) == case["short_side"], case
        assert crop == (case["crop"] and tuple(case["crop"])), case  # of equals the last


def test_boxes_outside_the_image_hide_nothing():
    for box in ((100, 300, 400, 400), (-50, 20, -10, 90), (100, -80, 400, -5)):
        xmin, ymin, xmax, ymax = background_crop(500, 256, [box], 10)
        assert 0 <= xmin < xmax <= 500 and (ymin, ymax) == (0, 256)


@pytest.mark.parametrize(
    "boxes, crop",
    [
        ([(50, 50, 30, 60)], None),  # reversed
        ([], None),  # no object annotated
        ([(10, 10, 210, 90)], None),  # beyond the width
        ([(-20, -5, 60, 500)], (60, 0, 200, 160)),  # negative and too tall: clipped
    ],
)
def test_unusual_boxes(boxes, crop):
    assert background_crop(200, 160, boxes, 40) == crop


def test_shorter_side_must_exceed_min_px():
    assert background_crop(100, 100, [(60, 0, 100, 100)], 60) is None
    assert background_crop(100, 100, [(60, 0, 100, 100)], 59) == (0, 0, 60, 100)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="best"):
        background_crop(100, 100, [(0, 0, 9, 9)], 10, "best")


def test_corner_crop_is_the_lower_left_corner():
    assert corner_crop(500, 375, 0.3) == (0, 375 - 112, 150, 375)
    with pytest.raises(ValueError, match="0"):
        corner_crop(500, 375, 0)
