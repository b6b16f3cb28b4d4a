"""Encoders whose rows are planted, COCO-shaped folders to go with them, and clip-benchmark run on the same rows.

A picture says by its middle pixel which row of a table it gets; a text gets a row drawn from its own checksum. So the
whole path of an experiment runs (files, crops, batches, templates), and the rows are known beforehand.
"""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

PATCH = 12


class PlantedEncoder:
    """Rows by middle pixel (red + 256 x green) and by text; `decimals` rounds them, which makes ties."""

    def __init__(self, dim=16, seed=0, decimals=None):
        self.dim, self.decimals = dim, decimals
        self.table = self._rounded(np.random.default_rng(seed).standard_normal((4096, dim)))

    def image_row(self, number):
        return self.table[number % len(self.table)]

    def text_row(self, text):
        return self._rounded(np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dim))

    def encode_images(self, images):
        pixels = [image.getpixel((image.width // 2, image.height // 2)) for image in images]
        return np.stack([self.image_row(red + 256 * green) for red, green, _ in pixels])

    def encode_texts(self, texts):
        return np.stack([self.text_row(text) for text in texts])

    def _rounded(self, rows):
        return rows if self.decimals is None else np.round(rows, self.decimals) + 1e-3


def paint(path: Path, numbers) -> None:
    """Write a PNG of one patch a number, side by side; the number is the patch's colour."""
    picture = Image.new("RGB", (PATCH * len(numbers), PATCH))
    for place, number in enumerate(numbers):
        picture.paste((number % 256, number // 256, 77), (PATCH * place, 0, PATCH * (place + 1), PATCH))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_coco(root: Path, boxes, n_classes=12, captions=3) -> Path:
    """Write val2017 of `len(boxes)` images; `boxes[i]` are the labels of image i's patches, each patch a box."""
    images, annotations, texts = [], [], []
    for i, labels in enumerate(boxes):
        numbers = [len(annotations) + place for place in range(len(labels))] or [4000 + i]
        paint(root / "val2017" / f"{i:06d}.png", numbers)
        size = {"width": PATCH * len(numbers), "height": PATCH}
        images.append({"id": i + 1, "file_name": f"{i:06d}.png", **size})
        for place, label in enumerate(labels):
            box = [float(PATCH * place), 0.0, float(PATCH), float(PATCH)]
            row = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1, "bbox": box, "iscrowd": 0}
            annotations.append(row)
        for k in range(captions):
            texts.append({"id": len(texts) + 1, "image_id": i + 1, "caption": f"caption {k} of picture {i}"})
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": c + 1, "name": f"class {c}"} for c in range(n_classes)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_val2017.json").write_text(json.dumps(instances))
    (root / "annotations/captions_val2017.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return root


class TorchModel:
    """The planted rows as a model and a tokenizer of clip-benchmark: pictures are their own rows, a text its number."""

    def __init__(self, encoder):
        self.encoder, self.texts = encoder, []

    def tokenizer(self, texts):
        import torch

        self.texts += texts
        return torch.arange(len(self.texts) - len(texts), len(self.texts))

    def encode_image(self, images):
        return images

    def encode_text(self, tokens):
        import torch

        return torch.tensor(self.encoder.encode_texts([self.texts[t] for t in tokens]), dtype=torch.float32)


class Loader:
    """A data loader of clip-benchmark: batches of (rows, targets), and the classes."""

    def __init__(self, rows, targets, classes=(), size=7):
        import torch

        self.rows = torch.tensor(np.asarray(rows), dtype=torch.float32)
        self.targets, self.size = targets, size
        self.dataset = SimpleNamespace(classes=list(classes))

    def __iter__(self):
        starts = range(0, len(self.rows), self.size)
        return ((self.rows[s : s + self.size], self.targets[s : s + self.size]) for s in starts)
