"""Flags of the crops that the attack and its reference take."""

import argparse
import math

from dejavu_utils.cli import positive_int, zero_or_one
from dejavu_utils.crops import RULES
from dejavu_utils.errors import InputError


def add_crop_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of attack.boxes.CropRule for background crops; each with dashes or underscores within its name."""

    def add(name, **kwargs):
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", **kwargs)

    add(
        "crop_rule",
        choices=RULES,
        default="paper",
        help="paper: the largest gap within a strip between box edges; exact: the largest empty rectangle",
    )
    add("min_px", type=positive_int, default=100, help="a crop's shorter side is longer than this, pixels")
    add(
        "box_margin",
        type=float,
        default=0.0,
        help="boxes grow by it on every side before a crop is cut: below 1 a fraction of the box's side, else pixels",
    )
    add(
        "scale_boxes",
        type=zero_or_one,
        nargs="?",
        const=1,
        default=0,
        help="1: scale boxes from the <size> in the XML to the image's; 0: where these differ, the image has no crop",
    )


def check_crop_flags(args: argparse.Namespace) -> None:
    """InputError for values of `add_crop_flags` that cannot work."""
    if not 0 <= args.box_margin < math.inf:
        raise InputError(f"--box_margin {args.box_margin}: must be 0 or more")
