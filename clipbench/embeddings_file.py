"""Saved rows: what `--save-embeddings` writes beside a run and `clipbench compare --index` reads. Imports no torch.

One .npz file a model and data set, in `embeddings/` beside `run.json`. It holds image_rows, text_rows, image_ids, text_ids,
text_image, and `about`, a JSON text with experiment, model and data set. Nothing in it is pickled, and nothing pickled is read.
"""

import dataclasses
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import ClipbenchError
from clipbench.result import DatasetIdentity, ModelIdentity, write_whole

FOLDER = "embeddings"
UNIT_WITHIN = 0.01
"""How far a row's length may be from 1: float16 rows of 1,024 dims are within .001; longer rows are not unit rows."""

_BLOCK = 1 << 16
_ARRAYS = ("image_rows", "text_rows", "image_ids", "text_ids", "text_image")
_HINT = "make it with `pytest benchmarks --save-embeddings`"

Rows = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


class EmbeddingsFileError(ClipbenchError):
    """A file of rows that is absent, damaged, foreign, or refused (exit code 2)."""


@dataclass(frozen=True)
class SavedRows:
    """The rows of one retrieval experiment on one encoder.

    `image_rows`: (images, dim) float32 and `text_rows`: (texts, dim) float32, unit rows; `text_image`: (texts,) int64, the
    image of each text. `image_ids` and `text_ids` are the run's own.
    """

    experiment: str
    model: ModelIdentity
    dataset: DatasetIdentity
    image_rows: Rows
    text_rows: Rows
    image_ids: tuple[str, ...]
    text_ids: tuple[str, ...]
    text_image: Ints


def file_name(saved: SavedRows) -> str:
    """Return "<model>-<weights>-<precision>-<experiment>-<data set>.npz", safe everywhere: letters, digits, dot, dash."""
    model, dataset = saved.model, saved.dataset
    weights = Path(model.pretrained).name
    words = f"{model.name}-{weights}-{model.precision}-{saved.experiment}-{dataset.name}-{dataset.fingerprint[:8]}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:180] + ".npz"


def write_rows(folder: Path, saved: SavedRows) -> Path:
    """Write the rows into `folder`/embeddings, whole or not at all, and return the file.

    Raises: OSError when the disk is full or the folder cannot be written.
    """
    about = {k: dataclasses.asdict(v) for k, v in (("model", saved.model), ("dataset", saved.dataset))}
    stream = io.BytesIO()
    np.savez(
        stream,
        allow_pickle=False,
        about=np.array(json.dumps({"schema": 1, "experiment": saved.experiment, **about}, sort_keys=True)),
        image_rows=saved.image_rows.astype(np.float32),
        text_rows=saved.text_rows.astype(np.float32),
        image_ids=np.array(saved.image_ids, dtype=np.str_),
        text_ids=np.array(saved.text_ids, dtype=np.str_),
        text_image=saved.text_image.astype(np.int64),
    )
    path = folder / FOLDER / file_name(saved)
    write_whole(path, stream.getvalue())
    return path


def read_rows(path: Path) -> SavedRows:
    """Return what `write_rows` wrote.

    Raises: EmbeddingsFileError for a file that is absent, cut short, pickled, of another schema, or whose arrays do not
    fit each other: ids that repeat, rows that are not finite unit rows, an image without a text.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise EmbeddingsFileError(f"{path} is one array, expected the rows of a run; {_HINT}")
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in _ARRAYS}
        if about["schema"] != 1:
            raise EmbeddingsFileError(f"{path} has schema {about['schema']!r}, this clipbench reads 1; {_HINT} again")
        saved = SavedRows(
            about["experiment"],
            ModelIdentity(**about["model"]),
            DatasetIdentity(**about["dataset"]),
            arrays["image_rows"],
            arrays["text_rows"],
            tuple(arrays["image_ids"].tolist()),
            tuple(arrays["text_ids"].tolist()),
            arrays["text_image"],
        )
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        if isinstance(error, EmbeddingsFileError):
            raise
        raise EmbeddingsFileError(f"{path} cannot be read: {_why(error)}; {_HINT}") from error
    _check_saved(path, saved)
    return saved


def saved_beside(run: Path) -> list[Path]:
    """Return the files of rows beside a run's JSON file, by name; empty where none was saved."""
    return sorted((run.parent / FOLDER).glob("*.npz"))


def read_index(path: Path) -> Rows:
    """Return the (rows, dim) float16, float32 or float64 array of a .npy file, mapped from the disk and checked.

    Row i is item i of the index. Rows must be unit rows (length 1 within .01), as a search by cosine takes: rows of another
    length are refused and not scaled, since scaling would change what an inner-product index finds.

    Raises: EmbeddingsFileError for a file that is absent, pickled, no .npy, of another shape or type, empty, or with a
    row that is not finite or not of length 1 (the message names the first).
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise EmbeddingsFileError(
            f"{path} cannot be read: {_why(error)}; expected (rows, dim) numbers written by numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or array.size == 0:
        kind = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "an archive of several arrays"
        raise EmbeddingsFileError(
            f"{path} is {kind}; expected (rows, dim) float16, float32 or float64, one row an item"
        )
    check_unit(str(path), array)
    return array


def read_queries(path: Path) -> tuple[str, ...]:
    """Return the queries of a UTF-8 text file, one a line; blank lines are left out, repeated queries are kept.

    Raises: EmbeddingsFileError for a file that is absent, not UTF-8, or without a query.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddingsFileError(f"{path} cannot be read: {error}; expected UTF-8 text, one query a line") from error
    if not (queries := tuple(text for line in lines if (text := line.strip()))):
        raise EmbeddingsFileError(f"{path} holds no query; expected one a line, as your users type them")
    return queries


def check_unit(where: str, rows: Rows) -> None:
    """Raises: EmbeddingsFileError naming the first of the (rows, dim) that is not finite, or not of length 1 within .01."""
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(rows[start : start + _BLOCK], dtype=np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_WITHIN))
        if bad.size:
            length = lengths[bad[0]]
            what = f"has length {length:.4g}" if np.isfinite(length) else "is not finite"
            raise EmbeddingsFileError(
                f"{where}: row {start + bad[0]} {what}; expected unit rows (length 1 within {UNIT_WITHIN}), as a search "
                f"by cosine takes; divide each row by its length"
            )


def _check_saved(path: Path, saved: SavedRows) -> None:
    images, texts = saved.image_rows, saved.text_rows
    if (
        images.ndim != 2
        or images.shape[1:] != texts.shape[1:]
        or images.dtype.kind + texts.dtype.kind != "ff"
        or (len(images), len(texts)) != (len(saved.image_ids), len(saved.text_ids))
        or saved.text_image.shape != (len(texts),)
        or saved.text_image.dtype.kind != "i"
        or set(saved.text_image.tolist()) != set(range(len(images)))
    ):
        raise EmbeddingsFileError(
            f"{path}: image rows {images.shape}, text rows {texts.shape}, {len(saved.image_ids)} image ids and "
            f"{len(saved.text_ids)} text ids do not fit each other; the file is damaged, {_HINT} again"
        )
    for name, ids in (("image", saved.image_ids), ("text", saved.text_ids)):
        if len(set(ids)) != len(ids):
            raise EmbeddingsFileError(f"{path}: an {name} id stands twice; the file is damaged, {_HINT} again")
    check_unit(f"{path}: image rows", images)
    check_unit(f"{path}: text rows", texts)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if "pickle" in str(error) or "Python objects" in str(error):
        return "it is pickled or no numpy file (a pickle runs code when it is read, so it is refused)"
    return str(error) or type(error).__name__
