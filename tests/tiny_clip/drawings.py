"""Drawn pictures with captions and boxes: 20 classes, five shapes in four colours, as many as wanted, the same bytes every time.

`python -m tiny_clip.drawings folders ROOT` (in tests/) writes class folders for `--zero-shot NAME=ROOT`, `... coco ROOT` COCO's layout for
`--coco ROOT`; 5,000 pictures take seconds. They are hard on purpose: hues of red and orange overlap, small things drown in noise, a
second thing competes with the one that the folder names. Some are portrait or landscape, some stored grey, with a palette, with an alpha
channel, or sideways with an EXIF orientation, so that a fault in reading them shows.
"""

import argparse
import colorsys
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring")
HUES = {"red": (0.0, 8.0), "orange": (25.0, 8.0), "green": (120.0, 15.0), "blue": (225.0, 15.0)}
"""Mean and standard deviation in degrees."""

CLASSES = tuple(f"{colour} {shape}" for colour in HUES for shape in SHAPES)
BACKGROUNDS = {
    "white": (235, 235, 235), "grey": (128, 128, 128), "black": (25, 25, 25), "brown": (110, 70, 35),
    "purple": (115, 50, 140), "yellow": (225, 205, 70),
}  # fmt: skip
FORMATS = ((64, 64), (64, 64), (64, 64), (72, 60), (60, 72), (80, 60), (60, 80))
"""Width and height in pixels."""

SIZES = {"small": (0.2, 0.3), "": (0.3, 0.45), "big": (0.45, 0.65)}
"""Of the picture's shorter side."""

COUNTS = ("", "a", "two", "three", "four")
OPENINGS = ("", "", "a photo of ", "a picture of ", "we see ", "an image with ", "a drawing that shows ")
CAPTIONS = 5
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Thing:
    """One shape: its class, its box (left, top, width, height) in pixels, its size in words."""

    label: int
    box: tuple[float, float, float, float]
    size: str


@dataclass(frozen=True)
class Drawing:
    """A picture, what is on it (the first thing is what it is a picture of), and the colour of its background."""

    image: Image.Image
    things: tuple[Thing, ...]
    background: str


def generator(seed, number):
    """Return the random generator of one picture: no picture depends on another."""
    return np.random.default_rng([seed, number])


def draw(rng, labels, sizes=None):
    """Return a drawing of these classes; `sizes` are words of SIZES, drawn where not given."""
    width, height = FORMATS[rng.integers(len(FORMATS))]
    name = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    image = Image.new("RGB", (width, height), tuple(np.add(BACKGROUNDS[name], rng.integers(-20, 21, 3)).tolist()))
    canvas = ImageDraw.Draw(image)
    things, taken = [], []
    for place, label in enumerate(labels):
        size = sizes[place] if sizes else tuple(SIZES)[rng.integers(3)]
        side = rng.uniform(*SIZES[size]) * min(width, height)
        box = _free_box(rng, side, width, height, taken)
        taken.append(box)
        things.append(Thing(label, box, size))
        colour, shape = CLASSES[label].split()
        _draw_shape(canvas, shape, box, rng.uniform(-0.2, 0.2), _rgb(rng, colour))
    pixels = np.asarray(image, dtype=np.float32)
    light = rng.uniform(-0.5, 0.5, 2) @ np.stack(
        np.meshgrid(*(np.linspace(-30, 30, n) for n in (width, height)))
    ).reshape(2, -1)
    pixels = (
        pixels
        + light.reshape(height, width, 1)
        + rng.uniform(3, 28) * rng.standard_normal(pixels.shape, dtype=np.float32)
    )
    return Drawing(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), tuple(things), name)


def _free_box(rng, side, width, height, taken):
    """The least covered of a few places."""
    best, least = None, math.inf
    for _ in range(8 if taken else 1):
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        covered = sum(
            max(0.0, min(left + side, x + w) - max(left, x)) * max(0.0, min(top + side, y + h) - max(top, y))
            for x, y, w, h in taken
        )
        if covered < least:
            best, least = (left, top, side, side), covered
    return tuple(round(number, 1) for number in best)


def _rgb(rng, colour):
    mean, spread = HUES[colour]
    hue = (mean + spread * rng.standard_normal()) / 360 % 1.0
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 1.0), rng.uniform(0.5, 1.0)))


_SQUARE = np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
_TRIANGLE = np.array([(0.0, -1.0), (0.9, 0.75), (-0.9, 0.75)])
_ARM = np.array([(-0.3, -0.3), (-0.3, -1.0), (0.3, -1.0)])
_CROSS = np.concatenate([_ARM @ np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), k) for k in range(4)])


def _turned(angle):
    return np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])


def _draw_shape(canvas, shape, box, turn, colour):
    left, top, side, _ = box
    x, y, radius = left + side / 2, top + side / 2, side / 2
    around = [x - radius, y - radius, x + radius, y + radius]
    if shape == "circle":
        canvas.ellipse(around, fill=colour)
    elif shape == "ring":
        canvas.ellipse(around, outline=colour, width=max(2, round(0.3 * radius)))
    else:
        corners = {"square": _SQUARE, "triangle": _TRIANGLE, "cross": _CROSS}[shape] @ _turned(turn) * radius + (x, y)
        canvas.polygon([tuple(corner) for corner in corners.tolist()], fill=colour)


def captions(rng, drawing, n=CAPTIONS):
    """Return n captions in different words: some leave out sizes, places or the background, some begin with a capital and end in a stop."""
    return tuple(_caption(rng, drawing) for _ in range(n))


def _caption(rng, drawing):
    counted = Counter(thing.label for thing in drawing.things)
    single = {thing.label: thing for thing in drawing.things}
    with_size, with_place, with_background = rng.random(3) < (0.6, 0.6, 0.6)
    phrases = []
    for label, count in counted.items():
        words = f"{single[label].size} {CLASSES[label]}".strip() if with_size and count == 1 else CLASSES[label]
        article = COUNTS[count] if count > 1 else "an" if words[0] in "aeiou" else "a"
        place = f" {where(single[label], drawing.image)}" if with_place and count == 1 else ""
        phrases.append(f"{article} {words}{'s' if count > 1 else ''}{place}")
    text = OPENINGS[rng.integers(len(OPENINGS))] + " and ".join(phrases)
    text += f" on a {drawing.background} background" if with_background else ""
    return f"{text[0].upper()}{text[1:]}." if rng.random() < 0.5 else text


def where(thing, image):
    """Return the place of a thing in words: one of nine."""
    left, top, width, height = thing.box
    column = min(2, int(3 * (left + width / 2) / image.width))
    row = min(2, int(3 * (top + height / 2) / image.height))
    words = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip()
    return f"at the {words}" if words else "in the middle"


def pictured(seed, number):
    """Return (drawing, generator) of a picture of class `number % 20`, three in ten with a smaller thing of another class."""
    rng = generator(seed, number)
    label = number % len(CLASSES)
    if rng.random() < 0.3:
        other = (label + rng.integers(1, len(CLASSES))) % len(CLASSES)
        return draw(rng, (label, int(other)), (("", "big")[rng.integers(2)], "small")), rng
    return draw(rng, (label,), (("small", "", "", "big", "big")[rng.integers(5)],)), rng


def scene(seed, number):
    """Return (drawing, generator) of one to four things, often several of a class."""
    rng = generator(seed, number)
    labels = rng.integers(len(CLASSES), size=rng.integers(1, 4)).tolist()
    if len(labels) < 3 and rng.random() < 0.4:
        labels += labels[:1] * int(rng.integers(1, 3))
    small = ("small", "")[rng.integers(2)]
    return draw(rng, labels, [small] * len(labels) if len(labels) > 2 else None), rng


def save(image, path, rng, is_turned=False):
    """Write a picture and return its path: six in ten .jpg, the others .png, of all one in 100 each grey, with a palette, with alpha.

    `is_turned`: one JPEG in 50 is stored sideways, with the EXIF orientation that says so.
    """
    form = rng.random()
    if form < 0.6:
        path, exif = path.with_suffix(".jpg"), Image.Exif()
        if is_turned and form < 0.012:
            image, exif[ORIENTATION] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(path, quality=90, exif=exif)
        return path
    mode = "L" if form < 0.61 else "P" if form < 0.62 else "RGBA" if form < 0.63 else "RGB"
    path = path.with_suffix(".png")
    image.convert(mode, palette=Image.Palette.ADAPTIVE).save(path, compress_level=1)
    return path


def write_folders(root, n=5000, seed=1):
    """Write n pictures as `root/CLASS/NUMBER.png` or .jpg and return the root; the classes take turns."""
    for name in CLASSES:
        (root / name.replace(" ", "_")).mkdir(parents=True, exist_ok=True)
    for number in range(n):
        drawing, rng = pictured(seed, number)
        folder = CLASSES[drawing.things[0].label].replace(" ", "_")
        save(drawing.image, root / folder / f"{number:05d}", rng, is_turned=True)
    return root


def write_coco(root, n=5000, seed=2):
    """Write n pictures with boxes and five captions each in COCO's layout of val2017 and return the root."""
    images, boxes, texts = [], [], []
    for folder in ("val2017", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(n):
        drawing, rng = scene(seed, number)
        path = save(drawing.image, root / "val2017" / f"{number + 1:012d}", rng)
        width, height = drawing.image.size
        images.append({"id": number + 1, "file_name": path.name, "width": width, "height": height})
        for thing in drawing.things:
            row = {"image_id": number + 1, "category_id": thing.label + 1, "bbox": list(thing.box), "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, **row})
        for caption in captions(rng, drawing):
            texts.append({"id": len(texts) + 1, "image_id": number + 1, "caption": caption})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    info = {"description": f"clipbench's drawn pictures, seed {seed}"}
    parts = {"instances": {"annotations": boxes, "categories": categories}, "captions": {"annotations": texts}}
    for name, part in parts.items():
        content = json.dumps({"info": info, "images": images, **part})
        (root / f"annotations/{name}_val2017.json").write_text(content, encoding="utf-8")
    return root


def main(arguments=None):
    """Write a set."""
    parser = argparse.ArgumentParser(prog="python -m tiny_clip.drawings", description="Write drawn pictures.")
    parser.add_argument("layout", choices=("folders", "coco"))
    parser.add_argument("root", type=Path)
    parser.add_argument("-n", type=int, default=5000, help="pictures (default: 5,000)")
    parser.add_argument(
        "--seed", type=int, help="default: 1 for folders, 2 for coco; 0 is what the model was trained on"
    )
    given = parser.parse_args(arguments)
    write, seed = (write_folders, 1) if given.layout == "folders" else (write_coco, 2)
    write(given.root, given.n, seed if given.seed is None else given.seed)


if __name__ == "__main__":
    main()
