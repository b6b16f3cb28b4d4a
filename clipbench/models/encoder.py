"""The encoder: images or texts in, unit-norm float32 rows out; and the check that every encoder's rows pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.errors import EncoderError
from clipbench.result import ModelIdentity
from clipbench.settings import Settings

Rows = npt.NDArray[np.float32]


class Shortcuts(Protocol):
    """The same rows with less work. `of_images` and `of_texts` name what is done otherwise than in the plain call."""

    @property
    def of_images(self) -> tuple[str, ...]:
        """What `start_images` does otherwise."""
        ...

    @property
    def of_texts(self) -> tuple[str, ...]:
        """What `rows_of_texts` does otherwise."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """Return what the model is given for an image. Safe in several threads."""
        ...

    def start_images(self, prepared: Sequence[Any]) -> Callable[[], Rows]:
        """Start the model on what `prepare` gave, in one batch; return a call that gives (images, dim) float32 unit rows."""
        ...

    def rows_of_texts(self, texts: Sequence[str], settings: Settings) -> Rows:
        """Return (texts, dim) float32 unit rows, in the order given."""
        ...


class Encoder(Protocol):
    """A model with its preprocessing and tokenizer. `encode_*` is the plain call: what production makes, no shortcut."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        ...

    @property
    def preprocessing(self) -> str:
        """One line that changes whenever a pixel that the model is given would."""
        ...

    @property
    def card(self) -> Mapping[str, int]:
        """Counts and sizes, read off the live model."""
        ...

    @property
    def is_loaded(self) -> bool:
        """False for an encoder whose model is loaded when it is first asked for."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        """Return (images, dim) float32 unit rows of RGB images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Return (texts, dim) float32 unit rows."""
        ...

    def shortcuts(self) -> Shortcuts | None:
        """Return the same rows with less work, or None for an encoder that is not ours: it is called as it is."""
        ...

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many of the texts the tokenizer cuts at the context length, or None where that is not known."""
        ...

    def ready_images(self, images: Sequence[Image.Image]) -> Callable[[], object]:
        """Return a call that runs the model alone on one batch, prepared beforehand, waits for the device, and returns its
        raw rows."""
        ...

    def ready_texts(self, texts: Sequence[str]) -> Callable[[], object]:
        """Return a call that runs the model alone on one batch, prepared beforehand, waits for the device, and returns its
        raw rows."""
        ...

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return a context in which the model runs with the other activation (its name), or None where there is none."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


def may_be_truncated(text: str, context_length: int) -> bool:
    """Return False for a text that no tokenizer cuts: a token is at least one byte, and two are start and end."""
    return len(text.encode(errors="replace")) + 2 > context_length


def unit_rows(raw: Any, n: int, what: str) -> Rows:
    """Return `raw` as (n, dim) float32 rows of length 1: the one definition of normalising.

    `raw` is a numpy array or a torch tensor on any device, of any float type. Norms are taken in float64.

    Raises: EncoderError when it is not n rows, or a row is zero, NaN or infinite (the message names the row).
    """
    if hasattr(raw, "detach"):
        raw = raw.detach().float().cpu().numpy()
    try:
        rows = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{what} returned {type(raw).__name__}, which is no array of numbers: {error}") from error
    if rows.ndim != 2 or rows.shape[0] != n:
        raise EncoderError(f"{what} returned shape {rows.shape} for {n} inputs; expected ({n}, dim): one row an input")
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise EncoderError(
            f"{what} returned {_kind(norms[bad[0]])} for input {bad[0]} ({bad.size} of {n} rows); check the weights and the precision"
        )
    unit: Rows = (rows / norms[:, None]).astype(np.float32)
    return unit


def _kind(norm: float) -> str:
    return "NaN" if np.isnan(norm) else "infinity" if np.isinf(norm) else "a zero row"
