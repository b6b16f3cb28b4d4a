"""From a COCO box to the pixels that are cut out. Pure arithmetic: no image is opened."""

import math
from collections.abc import Sequence

SQUARE_SCALE = 1.5
SQUARE_PADDING = 600

Crop = tuple[int, int, int, int]


def square_crop(box: Sequence[float], width: int, height: int) -> Crop:
    """Return the published crop: a square of 1.5 times the longer side, centred on the box, white outside the image.

    `box` is [left, top, width, height], `width` and `height` the image's, all in pixels; the result is (left, top,
    right, bottom), right and bottom exclusive. Left, top and sides are first cut to whole pixels (sides to at least 1),
    corners afterwards, so the crop is square to within one pixel. The image counts as padded by 600 px; what would
    reach further is cut off there, one pixel earlier at the right and the bottom.

    Source: SunzeY/AlphaCLIP train/dataset/mask_image_test.py, COCO_Masked_Test (functions masked_crop and crop).
    """
    padded_left, padded_top = int(box[0] + SQUARE_PADDING), int(box[1] + SQUARE_PADDING)
    box_width, box_height = max(1, int(box[2])), max(1, int(box[3]))
    side = max(box_width, box_height)
    left, right = _square_span(padded_left, box_width, side, width)
    top, bottom = _square_span(padded_top, box_height, side, height)
    return left, top, right, bottom


def _square_span(start: int, length: int, side: int, size: int) -> tuple[int, int]:
    """One axis of the square, in and out of padded coordinates."""
    middle_start, beyond, end = start - (side - length) / 2, (SQUARE_SCALE - 1) / 2 * side, size + 2 * SQUARE_PADDING
    low, high = middle_start - beyond, middle_start + side + beyond
    return max(0, int(low)) - SQUARE_PADDING, (int(high) if high < end else end - 1) - SQUARE_PADDING


def tight_crop(box: Sequence[float], width: int, height: int) -> Crop:
    """Return the box itself: (left, top, right, bottom), right and bottom exclusive, clipped to the image.

    Edges are rounded outwards (floor of left and top, ceiling of right and bottom), so that no pixel the box touches is
    lost and a box of positive area is at least 1 px wide and high.
    """
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    return left, top, min(width, math.ceil(box[0] + box[2])), min(height, math.ceil(box[1] + box[3]))


def is_empty(box: Sequence[float]) -> bool:
    """Return whether the box has no area."""
    return box[2] <= 0 or box[3] <= 0


def is_outside(box: Sequence[float], width: int, height: int) -> bool:
    """Return whether the box, which has an area, shares none of it with the image."""
    return box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0
