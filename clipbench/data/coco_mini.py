"""The packaged miniature of COCO: our annotations, in COCO's format, over pictures that installed packages carry.

`fixtures/coco_mini/annotations/` holds boxes and captions written for clipbench, boxes checked by drawing them; no picture
is in the repository. Each image row names its package, the module it is found under and its SHA-256. Twelve pictures is
enough to run every step, never enough to judge a model.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from clipbench.data.dataset import ImageRef
from clipbench.data.layout import read_json
from clipbench.errors import DataUnavailableError
from clipbench.paths import fixtures


class PackagedCoco(NamedTuple):
    """A root in COCO's layout, less its image folder, and where each `file_name` is instead."""

    root: Path
    images: Mapping[str, ImageRef]


def packaged_coco() -> PackagedCoco:
    """Return the miniature's root and images, for `coco_crops(mini.root, images=mini.images)` and its neighbours.

    Raises: DataUnavailableError when a package is not installed, or holds another picture than the pinned one.
    """
    root = fixtures() / "coco_mini"
    rows = read_json(root / "annotations" / "instances_val2017.json")["images"]
    images = {row["file_name"]: _packaged_image(row) for row in rows}
    for image in images.values():
        image.check()
    return PackagedCoco(root, images)


def _packaged_image(row: Mapping[str, str]) -> ImageRef:
    """The picture whose `file_name` starts with the folder of its module."""
    spec = importlib.util.find_spec(row["module"])
    if spec is None or not spec.submodule_search_locations:
        raise DataUnavailableError(
            f"{row['file_name']} comes with the package {row['package']}, which is not installed; "
            'pip install "clipbench[demo]"'
        )
    return ImageRef(Path(spec.submodule_search_locations[0]).parent / row["file_name"], row["sha256"])
