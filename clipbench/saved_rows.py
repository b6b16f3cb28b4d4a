"""Saved rows: what `--save-embeddings` writes beside a run and `clipbench compare --index` reads. Imports no torch.

One .npz file per model and data set, in `embeddings/` beside `run.json`: image_rows, text_rows, image_ids, text_ids, text_image,
and `about`, a JSON text with experiment, model and data set. Your own index is a .npy file. Nothing pickled is read.
"""

import ast
import dataclasses
import io
import json
import math
import re
import struct
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from clipbench.errors import ClipbenchError
from clipbench.paths import file_name, free_bytes, read_bytes, read_text, stored_records, zip_directory
from clipbench.storage import write_atomically
from clipbench.types import DatasetIdentity, ModelIdentity, Result

if TYPE_CHECKING:
    from clipbench.experiments import Measured

FOLDER = "embeddings"
UNIT_WITHIN = 0.01
"""How far a row's length may be from 1: float16 rows of 1,024 dims are within .001; longer rows are not unit rows."""

_BLOCK = 1 << 16
_ARRAYS = ("about", "image_rows", "text_rows", "image_ids", "text_ids", "text_image")
_MAX_HEADER = 10_000  # characters, where numpy.load stops too; numpy.save writes about 120
_PICKLE = "it is pickled or no numpy file (a pickle runs code when it is read, so it is refused)"
_INDEX = "expected (rows, dim) float16, float32 or float64, one row per item"
_HINT = "make it with `pytest benchmarks --save-embeddings`"

Rows = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


class EmbeddingsFileError(ClipbenchError):
    """A file of rows that is absent, damaged, foreign, or refused (exit code 2)."""


@dataclass(frozen=True)
class SavedRows:
    """The rows of one retrieval experiment on one encoder.

    `image_rows`: (images, dim) and `text_rows`: (texts, dim), float32 unit rows; `text_image`: (texts,) int64, the image of each
    text. `image_ids` and `text_ids` are the run's own.
    """

    experiment: str
    model: ModelIdentity
    dataset: DatasetIdentity
    image_rows: Rows
    text_rows: Rows
    image_ids: tuple[str, ...]
    text_ids: tuple[str, ...]
    text_image: Ints

    @classmethod
    def of(cls, result: Result, measured: "Measured") -> "SavedRows":
        """Return the rows behind a result. Raises: ValueError for an experiment that gives none to search."""
        images, texts, text_image = measured.images, measured.texts, measured.text_image
        if images is None or texts is None or text_image is None:
            raise ValueError(f"{result.key} has no rows to save: which image each text belongs to is not known")
        return cls(
            result.experiment,
            result.model,
            result.dataset,
            images.rows,
            texts.rows,
            images.ids,
            texts.ids,
            text_image.astype(np.int64),
        )


def write_rows(folder: Path, saved: SavedRows) -> Path:
    """Write the rows into `folder`/embeddings, whole or not at all, and return the file.

    Raises: OSError when the disk is full or the folder cannot be written.
    """
    about = {k: dataclasses.asdict(v) for k, v in (("model", saved.model), ("dataset", saved.dataset))}
    stream = io.BytesIO()
    np.savez(
        stream,
        about=np.array(json.dumps({"schema": 1, "experiment": saved.experiment, **about}, sort_keys=True)),
        image_rows=saved.image_rows.astype(np.float32, copy=False),
        text_rows=saved.text_rows.astype(np.float32, copy=False),
        image_ids=np.array(saved.image_ids, dtype=np.str_),
        text_ids=np.array(saved.text_ids, dtype=np.str_),
        text_image=saved.text_image.astype(np.int64),
    )
    model, dataset = saved.model, saved.dataset
    words = (model.name, Path(model.pretrained).name, model.precision, saved.experiment, dataset.name)
    path = folder / FOLDER / file_name(words, ".npz", (model.pretrained, dataset.fingerprint))
    write_atomically(path, stream.getvalue())
    return path


def read_rows(path: Path) -> SavedRows:
    """Return what `write_rows` wrote.

    Raises: EmbeddingsFileError for a file that is absent, damaged, pickled, or of another schema.
    """
    try:
        arrays = _archived(path)
        about = json.loads(str(arrays["about"]))
        if about["schema"] != 1:
            raise ValueError(f"it has schema {about['schema']!r}, this clipbench reads 1")
        images, texts, text_image = (arrays[name] for name in ("image_rows", "text_rows", "text_image"))
        image_ids, text_ids = arrays["image_ids"], arrays["text_ids"]
        if (
            {rows.dtype.kind + str(rows.ndim) for rows in (images, texts)} != {"f2"}
            or image_ids.dtype.kind + text_ids.dtype.kind + text_image.dtype.kind != "UUi"
            or image_ids.shape != (len(images),)
            or not text_ids.shape == text_image.shape == (len(texts),)
            or images.shape[1] != texts.shape[1]
            or ((text_image < 0) | (text_image >= len(images))).any()
            or not (np.isfinite(images).all() and np.isfinite(texts).all())
        ):
            raise ValueError("its rows and ids do not fit each other")
        return SavedRows(
            about["experiment"],
            ModelIdentity(**about["model"]),
            DatasetIdentity(**about["dataset"]),
            images,
            texts,
            tuple(image_ids.tolist()),
            tuple(text_ids.tolist()),
            text_image,
        )
    except ClipbenchError as error:
        raise EmbeddingsFileError(f"{error}; {_HINT}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise EmbeddingsFileError(f"{path} cannot be read: {_why(error)}; {_HINT}") from error


def saved_beside(run: Path) -> list[Path]:
    """Return the files of rows beside a run's JSON file, by name; empty where none was saved."""
    return sorted((run.parent / FOLDER).glob("*.npz"))


def read_index(path: Path) -> Rows:
    """Return the (rows, dim) float16, float32 or float64 array of a .npy file, checked.

    Row i is item i of the index. Rows of another length than 1 (within .01) are refused and not scaled, since scaling would change
    what an inner-product index finds. The file is read into memory, which somebody else's change to it cannot reach.

    Raises: EmbeddingsFileError for a file that is absent, pickled, no .npy, of another shape or type, empty, larger than the memory that
    is free (a sample will do), or with a row that is not finite or not of length 1 (the message names the first).
    """
    array = read_matrix(path)
    _check_unit(path, array)
    return array


def read_matrix(path: Path) -> Rows:
    """Return the (rows, dim) array of a .npy file, whatever the length of its rows. Raises: as `read_index`, less what is about lengths."""
    try:
        content = read_bytes(path, free_bytes())
        if content[:4] == b"PK\x03\x04":
            raise ValueError("it is an archive of several arrays")
        array = _array(content)
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise ValueError(f"it is {array.shape} {array.dtype}")
    except ClipbenchError as error:
        raise EmbeddingsFileError(f"{error}; {_INDEX}") from error
    except ValueError as error:
        raise EmbeddingsFileError(f"{path} cannot be read: {_why(error)}; {_INDEX}") from error
    return array


def read_queries(path: Path) -> tuple[str, ...]:
    """Return the queries of a UTF-8 text file, one per line; blank lines are left out, repeated queries are kept.

    Raises: EmbeddingsFileError for a file that is absent, not UTF-8, or without a query.
    """
    try:
        lines = read_text(path).splitlines()
    except ClipbenchError as error:
        raise EmbeddingsFileError(f"{error}; expected UTF-8 text, one query per line") from error
    if not (queries := tuple(text for line in lines if (text := line.strip()))):
        raise EmbeddingsFileError(f"{path} holds no query; expected one per line, as your users type them")
    return queries


def _archived(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npz file as numpy.savez writes it: stored, not compressed. Its checksums are verified before it is looked at."""
    content = read_bytes(path, free_bytes() // 2)
    archive = zip_directory(io.BytesIO(content))
    records = stored_records(archive, len(content))
    if lacking := [name for name in _ARRAYS if f"{name}.npy" not in records]:
        raise ValueError(f"{lacking[0]} is not a file in the archive")
    try:
        return {name: _array(archive.read(f"{name}.npy")) for name in _ARRAYS}
    except (EOFError, struct.error, OverflowError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _array(content: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file's bytes, which it shares; every byte of them is a value's. Raises: ValueError."""
    stream = io.BytesIO(content)
    shape, order, dtype = _header(stream)
    start = stream.tell()
    size, expected = len(content) - start, math.prod(shape) * dtype.itemsize
    if size != expected or not dtype.itemsize:
        raise ValueError(f"it holds {size} bytes of values, expected {expected} for {shape} {dtype}")
    if not expected:
        return np.zeros(shape, dtype)
    letters = np.dtype("u4").newbyteorder(dtype.byteorder)
    if dtype.kind == "U" and np.frombuffer(content, letters, offset=start).max() > sys.maxunicode:
        raise ValueError("its texts hold what is no letter")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


def _check_unit(path: Path, rows: Rows) -> None:
    """Raises: EmbeddingsFileError naming the first of the (rows, dim) that is not finite or no unit row."""
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(rows[start : start + _BLOCK], dtype=np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_WITHIN))
        if bad.size:
            length = lengths[bad[0]]
            what = f"has length {length:.4g}" if np.isfinite(length) else "is not finite"
            raise EmbeddingsFileError(
                f"{path}: row {start + bad[0]} {what}; expected unit rows (length 1 within {UNIT_WITHIN}), as a search "
                f"by cosine takes; divide each row by its length"
            )


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """The (shape, order, type) of a .npy stream, which is left at the first value.

    numpy's own reader lets the errors of Python's tokenizer through, and any text may stand in a damaged header.
    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY":
        raise ValueError(_PICKLE)
    length = stream.read(2 if start[6:7] == b"\x01" else 4)
    text = stream.read(min(int.from_bytes(length, "little"), _MAX_HEADER)).decode("latin-1")
    try:
        with warnings.catch_warnings(action="ignore"):  # damaged text warns of escapes and literals
            header = ast.literal_eval(text)
        shape, order, kind = header["shape"], header["fortran_order"], header["descr"]
    except (
        ValueError,
        TypeError,
        KeyError,
        SyntaxError,
        MemoryError,
        RecursionError,
    ) as error:  # all that it documents
        raise ValueError("its header is damaged") from error
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or type(order) is not bool:
        raise ValueError("its header is damaged")
    if not isinstance(kind, str) or not (found := re.fullmatch(r"[<>|=]?([a-zA-Z])[0-9]*", kind)):
        raise ValueError("its values are no plain numbers")
    if found[1] == "O":
        raise ValueError(_PICKLE)
    try:
        return shape, "F" if order else "C", np.dtype(kind)
    except (TypeError, ValueError) as error:
        raise ValueError("its header is damaged") from error


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
