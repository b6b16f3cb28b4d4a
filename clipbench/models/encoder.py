"""The encoder: images or texts in, unit-norm float32 rows out; the check that every encoder's rows pass; and a user's own encoder.

Your own is `package.module:factory`, or any object with `encode_images` and `encode_texts`: this is how torch.compile, int8, ONNX,
transformers or a remote service come in. The suite calls the object as it is.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.errors import CheckpointError, EncoderError, UnknownModelError
from clipbench.models.device import synchronized
from clipbench.result import ModelIdentity
from clipbench.settings import Settings

Rows = npt.NDArray[np.float32]


class Shortcuts(Protocol):
    """The same rows with less work. `of_images` and `of_texts` name what is done otherwise than in the reference path."""

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
    """A model with its preprocessing and tokenizer. `encode_*` is the reference path: what production makes, no shortcut."""

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


_SHA256 = re.compile(r"([0-9a-f]{64})?")


def find_factory(name: str) -> Callable[[], Any]:
    """Return the callable that `package.module:factory` names. The current folder is looked in last.

    Raises: UnknownModelError when the module cannot be imported or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # somebody else's module may raise anything
        what = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UnknownModelError(
            f"--model {name}: cannot import {module_name!r}: {what}; is it installed or in this folder?"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UnknownModelError(
            f"--model {name}: {module_name} has no callable {attribute!r}; a factory returns the encoder"
        )
    return factory  # type: ignore[no-any-return]  # a plugin point: its result is checked in CustomEncoder


def encoder_of_factory(name: str) -> Any:
    """Return what the factory returns.

    Raises: UnknownModelError when it has no such factory; CheckpointError when the factory raises, with its last line.
    """
    factory = find_factory(name)
    try:
        return factory()
    except Exception as error:  # somebody else's factory may raise anything
        raise CheckpointError(
            f"--model {name}: the factory failed: {type(error).__name__}: {error}; call it by hand to see where"
        ) from error


class CustomEncoder:
    """Wraps an object with `encode_images(images) -> (images, dim)` and `encode_texts(texts) -> (texts, dim)`.

    Images arrive as RGB PIL images. Rows may be numpy arrays or torch tensors and need not be unit rows. Optional
    attributes of the object: `identity` fields as a mapping (`pretrained`, `weights_sha256`, ...), `preprocessing`, `card`.
    """

    def __init__(self, wrapped: Any, name: str, device: str = "cpu", precision: str = "fp32") -> None:
        for method in ("encode_images", "encode_texts"):
            if not callable(getattr(wrapped, method, None)):
                raise UnknownModelError(
                    f"{name}: {type(wrapped).__name__} has no method {method}; an encoder needs both"
                )
        self._wrapped = wrapped
        stated = {"pretrained": "factory", "device": device, "precision": precision} | dict(
            getattr(wrapped, "identity", {})
        )
        unknown = stated.keys() - {f.name for f in fields(ModelIdentity)} | {"name"} & stated.keys()
        if unknown or stated.get("activation", "") not in ("", "gelu", "quickgelu"):
            known = ", ".join(f.name for f in fields(ModelIdentity) if f.name != "name")
            raise UnknownModelError(
                f"{name}: identity = {stated}; expected some of {known}, activation gelu or quickgelu"
            )
        for key in ("weights_sha256", "file_sha256"):
            if not _SHA256.fullmatch(str(stated.get(key, ""))):
                raise UnknownModelError(f"{name}: identity has {key} = {stated[key]!r}; expected 64 hexadecimal digits")
        self.identity = ModelIdentity(name=name, **stated)
        self.preprocessing = str(getattr(wrapped, "preprocessing", "the encoder's own"))
        self.card: Mapping[str, int] = MappingProxyType(dict(getattr(wrapped, "card", {})))
        self.is_loaded = True

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        """Return (images, dim) float32 unit rows."""
        return unit_rows(self._wrapped.encode_images(list(images)), len(images), f"{self.identity.name}: encode_images")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Return (texts, dim) float32 unit rows."""
        return unit_rows(self._wrapped.encode_texts(list(texts)), len(texts), f"{self.identity.name}: encode_texts")

    def shortcuts(self) -> None:
        """Return None: an encoder that is not ours is called as it is."""
        return

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return what the object's own `count_truncated` says, or None where it has none."""
        count = getattr(self._wrapped, "count_truncated", None)
        return int(count(list(texts))) if callable(count) else None

    def ready_images(self, images: Sequence[Image.Image]) -> Callable[[], object]:
        """Return the whole call, preparation included: an encoder that is not ours has no other seam."""
        return lambda: synchronized(self._wrapped.encode_images(list(images)), self.identity.device)

    def ready_texts(self, texts: Sequence[str]) -> Callable[[], object]:
        """Return the whole call, tokenizing included."""
        return lambda: synchronized(self._wrapped.encode_texts(list(texts)), self.identity.device)

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return None: its activation is its own business."""
        return None

    def close(self) -> None:
        """Let go of the object."""
        self._wrapped = None
