"""Figures: the notebook's matrix, with the pictures above the columns and the captions at the rows."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from clipbench.result import FloatArray

THUMBNAIL = 160


def figure_name(experiment: str, model: str) -> str:
    """Return a file name that is safe everywhere: letters, digits, dot, dash."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{experiment}-{model}").strip("-.")[:120] + ".png"


def matrix_figure(
    cosines: FloatArray,
    ids: Sequence[str],
    captions: Mapping[str, str],
    pictures: Mapping[str, Image.Image],
    title: str,
) -> bytes:
    """Return a PNG of a (texts, images) cosine matrix.

    `captions` and `pictures` by item id; where one is missing the id stands in. In every row the best image is framed: green when
    it is the caption's own, red when it is not.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    n = len(ids)
    figure = Figure(figsize=(3.6 + 1.0 * n, 1.8 + 1.05 * n), dpi=100, layout="constrained")
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
    labels = [
        "\n".join(textwrap.wrap(plain_text(captions.get(i, i)), 30, max_lines=4, placeholder=" ...")) for i in ids
    ]
    axes.set_yticks(range(n), labels, fontsize=11)
    _thumbnails(axes, ids, pictures)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -1.6)
    for side in ("left", "top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    figure.suptitle(plain_text(title), fontsize=14)
    figure.supxlabel("framed: each caption's best image (green: its own, red: another's)", fontsize=10)
    stream = io.BytesIO()
    # The layout makes room for labels as if the square matrix filled its axes: "tight" takes what it drew, whole.
    figure.savefig(stream, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": ""})
    return stream.getvalue()


def _thumbnails(axes, ids: Sequence[str], pictures: Mapping[str, Image.Image]) -> None:  # type: ignore[no-untyped-def]  # matplotlib's Axes
    axes.set_xticks([])
    for column, item in enumerate(ids):
        if item not in pictures:
            axes.text(column, -0.7, plain_text(item)[:16], ha="center", va="bottom", size=9, rotation=30)
            continue
        picture = pictures[item].copy()
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        half_width = 0.46 * picture.width / max(picture.size)
        half_height = 0.46 * picture.height / max(picture.size)
        extent = (column - half_width, column + half_width, -1.06 + half_height, -1.06 - half_height)
        axes.imshow(np.asarray(picture), extent=extent, aspect="equal", zorder=2)


def _frame(column: int, row: int, colour: str):  # type: ignore[no-untyped-def]  # matplotlib's Rectangle
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=3)


def plain_text(text: str) -> str:
    """Text from data is shown as it is: no mathtext, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
