"""Figures about classes: the confusion matrix with names a person can read, and the notebook's top-5 bars beside each picture."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipbench.report.figures import plain_text
from clipbench.result import FloatArray

MOST_CLASSES = 100
CLASSES_OF_MANY = 80
WRITTEN_FROM = 0.05
TOP = 5


def shown_classes(confusion: FloatArray) -> list[int]:
    """Return the classes a figure shows, ascending: all that occur or are picked, or, of more than 100, the 80 most confused."""
    wrong = confusion - np.diag(np.diag(confusion))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    occurring = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    if len(occurring) > MOST_CLASSES:
        occurring = np.sort(np.argsort(-mistakes, kind="stable")[:CLASSES_OF_MANY])
    return [int(c) for c in occurring]


def confusion_figure(confusion: FloatArray, names: Sequence[str], title: str) -> bytes:
    """Return a PNG of a (classes, classes) confusion matrix, row the true class, as shares of the row.

    Hits are blue, confusions orange (full colour from one half on); shares of 5 % and more are written in percent. With 80
    classes the picture is about 2,800 pixels wide, and every name and number can be read at full size.
    """
    classes = shown_classes(confusion)
    sizes = confusion.sum(axis=1)
    shares = (confusion / np.maximum(sizes, 1)[:, None])[np.ix_(classes, classes)]
    n = len(classes)
    cell = max(0.29, min(0.6, 9 / max(n, 1)))
    figure = _figure(max(7.0, 3.2 + cell * n), max(4.5, 2.6 + cell * n))
    axes = figure.add_subplot()
    hits = np.eye(n, dtype=bool)
    axes.imshow(np.ma.masked_array(shares, ~hits | (shares == 0)), cmap="Blues", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_array(shares, hits | (shares == 0)), cmap="Oranges", vmin=0, vmax=0.5)
    for row, column in np.argwhere(shares >= WRITTEN_FROM):
        dark = shares[row, column] > (0.6 if row == column else 0.35)
        percent = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, percent, ha="center", va="center", size=9, color="white" if dark else "black")
    words = [plain_text(names[c])[:28] for c in classes]
    axes.set_yticks(range(n), [f"{w} ({sizes[c]:.0f})" for w, c in zip(words, classes, strict=True)], fontsize=11)
    axes.set_xticks(range(n), words, rotation=90, fontsize=11)
    axes.tick_params(top=True, labeltop=n > 30, length=0)
    axes.set_xticks(np.arange(-0.5, n), minor=True)
    axes.set_yticks(np.arange(-0.5, n), minor=True)
    axes.grid(which="minor", color="#e6e6e6", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_ylabel("is (items)", fontsize=13)
    axes.set_xlabel("was taken for; percent of the row, blue: right, orange: confused", fontsize=13)
    part = f", {n} of {len(confusion)} classes" if n < len(confusion) else ""
    figure.suptitle("\n".join(textwrap.wrap(plain_text(title) + part, max(50, int(10 * cell * n)))), fontsize=15)
    return _png(figure)


def labels_figure(
    probabilities: FloatArray, ids: Sequence[str], names: Sequence[str], pictures: Mapping[str, Image.Image], title: str
) -> bytes:
    """Return a PNG of each item's five most probable labels as bars beside its picture, two items a row.

    `probabilities`: (images, classes), rows in the order of `ids`, columns of `names`. Where a picture is missing its id
    stands in; fewer than five classes give fewer bars.
    Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, its last figure.
    """
    rows = -(-len(ids) // 2)
    figure = _figure(16.0, 0.9 + 2.7 * rows)
    grid = figure.add_gridspec(rows, 4, width_ratios=(1, 1.3, 1, 1.3))
    for place, item in enumerate(ids):
        row, half = divmod(place, 2)
        picture = figure.add_subplot(grid[row, 2 * half])
        picture.axis("off")
        if item in pictures:
            small = pictures[item].copy()
            small.thumbnail((400, 400))
            picture.imshow(np.asarray(small))
        picture.set_title(plain_text(item)[:40], fontsize=12)
        _bars(figure.add_subplot(grid[row, 2 * half + 1]), probabilities[place], names)
    figure.suptitle(plain_text(title), fontsize=15)
    return _png(figure)


def _bars(axes: Any, row: FloatArray, names: Sequence[str]) -> None:
    top = np.argsort(-row, kind="stable")[:TOP]
    axes.barh(range(len(top)), row[top], color=["#1f77b4"] + ["#9ecae1"] * (len(top) - 1))
    axes.set_yticks(range(len(top)), [plain_text(names[c].replace("_", " "))[:24] for c in top], fontsize=12)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    for place, c in enumerate(top):
        axes.text(row[c] + 0.015, place, f"{row[c]:.3f}", va="center", size=11)


def _figure(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": ""})
    return stream.getvalue()
