"""The figures of a result, as PNG: the notebook's cosine matrix, the confusion matrix, and the notebook's top-5 bars.

Text from data is drawn as it is: see `literal`.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import Dataset, Item
from clipbench.errors import ClipbenchError, sanitize
from clipbench.types import Answers, FloatArray, IntArray, Result

THUMBNAIL = 160
MOST_ITEMS, MOST_CLASSES, MOST_COUNTED = 64, 100, 5_000
"""Items that a matrix or bars are drawn of; classes that are drawn; classes that pairs are counted of, 200 MB."""
CLASSES_OF_MANY = 80
WRITTEN_FROM = 0.05
TOP = 5


def figure_of(result: Result, dataset: Dataset | None) -> bytes | None:
    """Return the figure of a result as PNG, decided by the evidence that it carries; None where there is nothing to draw.

    A matrix of cosines with own pairs is drawn as the notebook's matrix, classes that were answered as a confusion matrix, a
    matrix of probabilities as top-5 bars; the first of these that is not too large to be looked at. Pictures and captions come from
    `dataset` when it is the one that was measured; without it ids stand in.
    """
    label = result.model.label
    matrices = [matrix for matrix in result.matrices.values() if 0 < len(matrix.rows) <= MOST_ITEMS and matrix.columns]
    if matching := next((m for m in matrices if m.kind == "cosine" and m.is_matching), None):
        title = f"{result.experiment}: {label}, cosine of texts (rows) and images (columns)"
        captions = {item.id: item.captions[0] for item in _measured(result, dataset) if item.captions}
        return matrix_figure(matching.values, matching.rows, captions, _pictures(result, dataset), title)
    if (answers := class_answers(result)) and len(answers.candidates) <= MOST_COUNTED:
        title = f"{result.experiment}: {label} on {result.dataset.name}, n={result.dataset.n:,}"
        return confusion_figure(answers.confusion(), result.protocol.classes, title)
    if table := next((m for m in matrices if m.kind == "probability"), None):
        title = f"{result.experiment}: {label}, five most probable of {len(table.columns)} labels"
        return labels_figure(table.values, table.rows, table.columns, _pictures(result, dataset), title)
    return None


def class_answers(result: Result) -> Answers | None:
    """Return what each item was taken for, where one class of the result's list is right for it; None where there is no such."""
    classes = result.protocol.classes
    found = (a for a in result.answers.values() if a.labels is not None and len(a.candidates) == len(classes))
    return next(found, None) if classes else None


def matrix_figure(
    cosines: FloatArray,
    ids: Sequence[str],
    captions: Mapping[str, str],
    pictures: Mapping[str, Image.Image],
    title: str,
) -> bytes:
    """Return a PNG of a (texts, images) cosine matrix, with the pictures above the columns and the captions at the rows.

    `captions` and `pictures` by item id; where one is missing the id stands in. In every row the best image is framed: green when
    it is the caption's own, red when it is not.
    """
    n = len(ids)
    figure = new_figure(3.6 + 1.0 * n, 1.8 + 1.05 * n)
    axes = figure.add_subplot()
    axes.imshow(cosines, cmap="viridis", vmin=float(cosines.min()), vmax=float(cosines.max()))
    middle = (float(cosines.min()) + float(cosines.max())) / 2
    for row in range(n):
        best = int(np.argmax(cosines[row]))
        own = best == row and int((cosines[row] == cosines[row, best]).sum()) == 1
        for column in range(n):
            colour = "black" if cosines[row, column] > middle else "white"
            axes.text(column, row, f"{cosines[row, column]:.2f}", ha="center", va="center", size=13, color=colour)
        axes.add_patch(_frame(best, row, "#2ecc40" if own else "#ff4136"))
    labels = ["\n".join(textwrap.wrap(literal(captions.get(i, i)), 30, max_lines=4, placeholder=" ...")) for i in ids]
    axes.set_yticks(range(n), labels, fontsize=11)
    _thumbnails(axes, ids, pictures)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -1.6)
    axes.spines[:].set_visible(False)
    figure.suptitle(literal(title), fontsize=14)
    figure.supxlabel("framed: each caption's best image (green: its own, red: another's)", fontsize=10)
    # The layout makes room for labels as if the square matrix filled its axes: "tight" takes what it drew, whole.
    return to_png(figure, bbox_inches="tight", pad_inches=0.15)


def classes_to_draw(confusion: FloatArray | IntArray, most: int, of_more: int) -> list[int]:
    """Return the classes to draw, ascending: all that occur or are picked, or, of more than `most`, the `of_more` most confused."""
    wrong = confusion - np.diag(np.diag(confusion))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    occurring = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    if len(occurring) > most:
        occurring = np.sort(np.argsort(-mistakes, kind="stable")[:of_more])
    return [int(c) for c in occurring]


def confusion_figure(confusion: FloatArray | IntArray, names: Sequence[str], title: str) -> bytes:
    """Return a PNG of a (classes, classes) confusion matrix, row the true class, as shares of the row.

    Hits are blue, confusions orange (full colour from one half on); shares of 5 % and more are written in percent. With 80
    classes the picture is about 2,800 pixels wide, and every name and number can be read at full size.
    """
    classes = classes_to_draw(confusion, MOST_CLASSES, CLASSES_OF_MANY)
    sizes = confusion.sum(axis=1)
    shares = (confusion / np.maximum(sizes, 1)[:, None])[np.ix_(classes, classes)]
    n = len(classes)
    cell = max(0.29, min(0.6, 9 / max(n, 1)))
    figure = new_figure(max(7.0, 3.2 + cell * n), max(4.5, 2.6 + cell * n))
    axes = figure.add_subplot()
    hits = np.eye(n, dtype=bool)
    axes.imshow(np.ma.masked_array(shares, ~hits | (shares == 0)), cmap="Blues", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_array(shares, hits | (shares == 0)), cmap="Oranges", vmin=0, vmax=0.5)
    for row, column in np.argwhere(shares >= WRITTEN_FROM):
        dark = shares[row, column] > (0.6 if row == column else 0.35)
        percent = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, percent, ha="center", va="center", size=9, color="white" if dark else "black")
    words = [literal(names[c])[:28] for c in classes]
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
    figure.suptitle("\n".join(textwrap.wrap(literal(title) + part, max(50, int(10 * cell * n)))), fontsize=15)
    return to_png(figure)


def labels_figure(
    probabilities: FloatArray, ids: Sequence[str], names: Sequence[str], pictures: Mapping[str, Image.Image], title: str
) -> bytes:
    """Return a PNG of each item's five most probable labels as bars beside its picture, two items per row.

    `probabilities`: (images, classes), rows in the order of `ids`, columns of `names`. Where a picture is missing its id
    stands in; fewer than five classes give fewer bars.
    Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, its last figure.
    """
    rows = -(-len(ids) // 2)
    figure = new_figure(16.0, 0.9 + 2.7 * rows)
    grid = figure.add_gridspec(rows, 4, width_ratios=(1, 1.3, 1, 1.3))
    for place, item in enumerate(ids):
        row, half = divmod(place, 2)
        picture = figure.add_subplot(grid[row, 2 * half])
        picture.axis("off")
        if item in pictures:
            small = pictures[item].copy()
            small.thumbnail((400, 400))
            picture.imshow(np.asarray(small))
        picture.set_title(literal(item)[:40], fontsize=12)
        _bars(figure.add_subplot(grid[row, 2 * half + 1]), probabilities[place], names)
    figure.suptitle(literal(title), fontsize=15)
    return to_png(figure)


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, in inches, that no window will ever show."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def to_png(figure: Any, **options: Any) -> bytes:
    """Return a matplotlib figure as PNG, without the name of the software; `options` are those of its savefig."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": ""}, **options)
    return stream.getvalue()


def literal(text: str) -> str:
    """Return text that matplotlib draws as it is: no mathtext, sanitized."""
    return sanitize(text).replace("$", r"\$")


def _pictures(result: Result, dataset: Dataset | None) -> Mapping[str, Image.Image]:
    pictures = {}
    for item in _measured(result, dataset):
        try:
            pictures[item.id] = item.image.open()
        except ClipbenchError:
            continue  # the id stands in for a picture that cannot be opened any more
    return pictures


def _measured(result: Result, dataset: Dataset | None) -> tuple[Item, ...]:
    return dataset.items if dataset and dataset.fingerprint == result.dataset.fingerprint else ()


def _thumbnails(axes: Any, ids: Sequence[str], pictures: Mapping[str, Image.Image]) -> None:
    axes.set_xticks([])
    for column, item in enumerate(ids):
        if item not in pictures:
            axes.text(column, -0.7, literal(item)[:16], ha="center", va="bottom", size=9, rotation=30)
            continue
        picture = pictures[item].copy()
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        half_width = 0.46 * picture.width / max(picture.size)
        half_height = 0.46 * picture.height / max(picture.size)
        extent = (column - half_width, column + half_width, -1.06 + half_height, -1.06 - half_height)
        axes.imshow(np.asarray(picture), extent=extent, aspect="equal", zorder=2)


def _frame(column: int, row: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=3)


def _bars(axes: Any, row: FloatArray, names: Sequence[str]) -> None:
    top = np.argsort(-row, kind="stable")[:TOP]
    axes.barh(range(len(top)), row[top], color=["#1f77b4"] + ["#9ecae1"] * (len(top) - 1))
    axes.set_yticks(range(len(top)), [literal(names[c].replace("_", " "))[:24] for c in top], fontsize=12)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    for place, c in enumerate(top):
        axes.text(row[c] + 0.015, place, f"{row[c]:.3f}", va="center", size=11)
