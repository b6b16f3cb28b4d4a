"""Images that cost what COCO's cost to decode, in COCO's official layout: made on the spot from packaged photographs.

Every picture is a crop of its own of a colour photograph that an installed package carries, mirrored or not, resized, with a
film's grain, so that a file is nearly as large as COCO's are; captions are made of word lists, boxes and their classes drawn.

Source: COCO val2017 (https://cocodataset.org): mostly 640 x 480, some upright; 0.16 MB a file; 5 captions an image.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipbench.data.coco import read_json
from clipbench.data.packaged import packaged_coco
from clipbench.errors import UsageError
from clipbench.peers.captions import captions
from clipbench.result import JsonObject

LONG, SHORT = 640, 480
UPRIGHT_SHARE = 0.25
QUALITY = 93
GRAIN = 10.0
"""The grain's standard deviation, of 255: what brings the mean file near COCO's 0.16 MB."""

BOXES_AN_IMAGE = 2
"""COCO has 7.3: fewer make a first run over all experiments affordable, and a saving on it smaller, never larger."""

CAPTIONS_AN_IMAGE = 5
SPLIT = "val2017"


def write_coco_like(root: Path, images: int, seed: int = 0) -> Path:
    """Write `images` distinct JPEG files with boxes and captions under `root` in COCO's official layout; return `root`.

    The first images of a seed are the same whatever their number is. Raises: UsageError for fewer than two images;
    DataUnavailableError when the packages with the photographs are not installed.
    """
    if images < 2:
        raise UsageError(f"{images} image(s): expected 2 or more, so that there is something to choose from")
    for folder in (SPLIT, "annotations"):
        (root / folder).mkdir(parents=True)
    photographs = _photographs()
    rows = [_write_image(root / SPLIT, number, photographs, seed) for number in range(images)]
    categories = read_json(packaged_coco().root / "annotations" / f"instances_{SPLIT}.json")["categories"]
    boxes = [box for row in rows for box in _boxes(row, categories, seed)]
    written = enumerate(captions(images * CAPTIONS_AN_IMAGE, seed))
    texts = [{"id": k, "image_id": rows[k // CAPTIONS_AN_IMAGE]["id"], "caption": caption} for k, caption in written]
    about = {"info": {"description": "COCO-like, made by clipbench.peers"}, "images": rows}
    _write(root, "instances", about | {"annotations": boxes, "categories": categories})
    _write(root, "captions", about | {"annotations": texts})
    return root


def mean_file_bytes(root: Path) -> float:
    """Return the mean size of the image files under `root`, in bytes."""
    return float(np.mean([path.stat().st_size for path in (root / SPLIT).iterdir()]))


def _write(root: Path, what: str, content: JsonObject) -> None:
    (root / "annotations" / f"{what}_{SPLIT}.json").write_text(json.dumps(content), encoding="utf-8")


def _photographs() -> list[Image.Image]:
    """The packaged colour photographs, in a fixed order: drawings and grey pictures would compress too well."""
    found = []
    for _, ref in sorted(packaged_coco().images.items()):
        with Image.open(ref.path) as image:
            if image.mode == "RGB":
                found.append(image.copy())
    return found


def _write_image(folder: Path, number: int, photographs: Sequence[Image.Image], seed: int) -> JsonObject:
    """Write one picture and return its row of the annotation files."""
    generator = np.random.default_rng((seed, number))
    image = photographs[int(generator.integers(len(photographs)))]
    width, height = (SHORT, LONG) if generator.random() < UPRIGHT_SHARE else (LONG, SHORT)
    scale = min(image.width / width, image.height / height) * generator.uniform(0.6, 1.0)
    left = generator.uniform(0, image.width - scale * width)
    top = generator.uniform(0, image.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    part = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(part, dtype=np.float32)[:, :: int(generator.choice((1, -1)))]
    grain = GRAIN * generator.standard_normal((height, width, 1), dtype=np.float32)
    row = {"id": number + 1, "file_name": f"{number + 1:012d}.jpg", "width": width, "height": height}
    picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
    picture.save(folder / str(row["file_name"]), "JPEG", quality=QUALITY)
    return row


def _boxes(row: JsonObject, categories: Sequence[JsonObject], seed: int) -> list[JsonObject]:
    generator = np.random.default_rng((seed, row["id"], 1))
    boxes = []
    for place in range(BOXES_AN_IMAGE):
        sides = generator.uniform(0.1, 0.7, 2) * (row["width"], row["height"])
        corner = generator.uniform(0, 1, 2) * ((row["width"], row["height"]) - sides)
        boxes.append(
            {
                "id": row["id"] * BOXES_AN_IMAGE + place,
                "image_id": row["id"],
                "category_id": categories[int(generator.integers(len(categories)))]["id"],
                "bbox": [round(float(value), 2) for value in (*corner, *sides)],
                "area": round(float(sides.prod()), 2),
                "iscrowd": 0,
            }
        )
    return boxes
