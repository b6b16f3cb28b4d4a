"""The encoder: images or texts in, float32 rows out; the check that every encoder's rows pass; and a user's own encoder.

Your own is `package.module:factory`, or any object with `encode_images` and `encode_texts`: this is how torch.compile, int8, ONNX,
transformers or a remote service come in. The suite calls the object as it is.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.errors import CheckpointError, EncoderError, UnknownModelError, UsageError
from clipbench.models.device import synchronized
from clipbench.types import JsonObject, ModelIdentity, Tower

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ready:
    """A call that is timed: `start` gives raw rows, which the device may still have to compute; calling it waits for them."""

    start: Callable[[], object]
    device: str

    def __call__(self) -> object:
        """Return the raw rows once the device has them."""
        return synchronized(self.start(), self.device)


class Optimized(Protocol):
    """The same rows with less work; `embed` checks a sample of them against the reference path."""

    def names(self, tower: Tower) -> tuple[str, ...]:
        """Return what is done otherwise than on the reference path; empty where nothing is."""

    def prepare(self, image: Image.Image) -> Any:
        """Return what the model is given for an image. Safe in several threads."""

    def start_images(self, prepared: Sequence[Any]) -> Callable[[], Rows]:
        """Start the model on what `prepare` gave, in one batch; return a call that waits for (images, dim) float32 raw rows."""

    def encode_texts(self, texts: Sequence[str], batch_size: int, positions: int, progress: Any) -> Rows:
        """Return (texts, dim) float32 raw rows, in the order given; `positions`: tokens per batch, 0 for whole texts' worth."""


class Encoder(Protocol):
    """A model with its preprocessing and tokenizer. `encode_*` is the reference path: the call that production makes.

    `preprocessing` is one line that changes whenever a pixel that the model is given would; `card`: counts and sizes, read off
    the live model.
    """

    identity: ModelIdentity
    preprocessing: str
    card: Mapping[str, int]

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        """Return (images, dim) float32 rows of RGB images, in one batch, as the model gives them: not normalised."""

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Return (texts, dim) float32 rows, in one batch, as the model gives them: not normalised."""

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        """Return a call that runs the model alone on one batch, prepared beforehand where we can."""

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        """Return `ready_images` of texts."""

    def observed(self) -> JsonObject:
        """Return what is found of the live model: weights, tensors, activation, preprocessing, tokenizer, dim, logit scale."""

    def close(self) -> None:
        """Free the model's memory."""

    def by_id(self, tower: Tower, names: Sequence[str]) -> Rows | None:
        """Return the rows of items by their ids, or of texts, for an encoder that has rows and encodes nothing; else None."""
        return None

    def asked(self) -> JsonObject:
        """Return what whoever made this encoder chose, beside what the session knows."""
        return {}

    def optimized(self) -> Optimized | None:
        """Return the same rows with less work, or None for an encoder that is not ours: it is called as it is."""
        return None

    def depends_on(self) -> JsonObject | None:
        """Return everything of the encoder that its rows depend on, or None where that is not known: nothing is kept then."""
        return None

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many of the texts the tokenizer cuts at the context length, or None where that is not known."""
        return None

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return a context in which the model runs with the other activation (its name).

        None where nobody can have mistaken one for the other: weights that come from no path, one activation only.
        """
        return None


def checked_rows(raw: Any, n: int, what: str) -> Rows:
    """Return `raw`, a numpy array or a torch tensor on any device and of any float type, as (n, dim) float32.

    Raises: EncoderError when it is not n rows of real numbers, or a row is zero, NaN or infinite (the message names the row).
    """
    if raw.is_complex() if hasattr(raw, "is_complex") else np.iscomplexobj(raw):
        raise EncoderError(f"{what} returned complex numbers; return real ones: the imaginary part would be dropped")
    if hasattr(raw, "detach"):
        raw = raw.detach().float().cpu().numpy()
    try:
        rows = np.asarray(raw, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"{what} returned {type(raw).__name__}, which is no array of numbers: {error}") from error
    if rows.ndim != 2 or rows.shape[0] != n:
        raise EncoderError(f"{what} returned shape {rows.shape} for {n} inputs; expected ({n}, dim): one row per input")
    _lengths(rows, what)
    return rows


def unit_rows(rows: npt.NDArray[np.floating[Any]], what: str = "an encoder") -> Rows:
    """Return (n, dim) rows as float32 of length 1: the one definition of normalising. Lengths are taken in float64.

    Raises: EncoderError when a row is zero, NaN or infinite (the message names the row).
    """
    unit: Rows = (rows.astype(np.float64) / _lengths(rows, what)[:, None]).astype(np.float32)
    return unit


def _lengths(rows: npt.NDArray[np.floating[Any]], what: str) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        kind = "NaN" if np.isnan(lengths[bad[0]]) else "infinity" if lengths[bad[0]] else "a zero row"
        raise EncoderError(
            f"{what} returned {kind} for input {bad[0]} ({bad.size} of {len(rows)} rows); check the weights and the precision"
        )
    return np.asarray(lengths)


_SHA256 = re.compile(r"([0-9a-f]{64})?")


def find_factory(name: str) -> Callable[[], Any]:
    """Return the callable that `package.module:factory` names; the current folder is looked in last. Raises: UnknownModelError."""
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


def encoder_of_factory(name: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Return what the factory returns, called with these arguments.

    Raises: UnknownModelError for no such factory; CheckpointError when the factory raises.
    """
    factory = find_factory(name)
    try:
        return factory(**arguments)
    except Exception as error:  # somebody else's factory may raise anything
        raise CheckpointError(
            f"--model {name}: the factory failed: {type(error).__name__}: {error}; call it by hand to see where"
        ) from error


def as_encoder(made: Any, name: str, device: str, precision: str) -> Encoder:
    """Return an encoder of this package as it is, under this name, and any other object as a `CustomEncoder`.

    Raises: UsageError when an encoder of this package was made in another precision than the session's; as `CustomEncoder`.
    """
    if Encoder not in type(made).__mro__:
        return CustomEncoder(made, name, device, precision)
    encoder: Encoder = made
    if encoder.identity.precision != precision:
        raise UsageError(
            f"{name} was made in {encoder.identity.precision}, not in --precision {precision}; ask for that one"
        )
    encoder.identity = replace(encoder.identity, name=name)
    return encoder


class CustomEncoder(Encoder):
    """Wraps an object with `encode_images(images) -> (images, dim)` and `encode_texts(texts) -> (texts, dim)`.

    Images arrive as RGB PIL images. Rows may be numpy arrays or torch tensors and need not be unit rows. Optional
    attributes of the object: `identity` fields as a mapping (`pretrained`, `weights_sha256`, ...), `preprocessing`, `card`, `config`
    (JSON values: what was chosen when it was made), `logit_scale`, `logit_bias`.
    """

    def __init__(self, wrapped: Any, name: str, device: str = "cpu", precision: str = "fp32") -> None:
        for method in ("encode_images", "encode_texts"):
            if not callable(getattr(wrapped, method, None)):
                raise UnknownModelError(
                    f"{name}: {type(wrapped).__name__} has no method {method}; an encoder needs both"
                )
        self._wrapped = wrapped
        stated = {"pretrained": "factory", "device": device, "precision": precision, **getattr(wrapped, "identity", {})}
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
        config = getattr(wrapped, "config", {})
        try:
            self._config: JsonObject = json.loads(json.dumps(dict(config), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UnknownModelError(f"{name}: config = {config!r} is no mapping of JSON values: {error}") from error

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        rows = self._wrapped.encode_images(list(images))
        return checked_rows(rows, len(images), f"{self.identity.name}: encode_images")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        rows = self._wrapped.encode_texts(list(texts))
        return checked_rows(rows, len(texts), f"{self.identity.name}: encode_texts")

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        return Ready(lambda: self._wrapped.encode_images(list(images)), self.identity.device)

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        return Ready(lambda: self._wrapped.encode_texts(list(texts)), self.identity.device)

    def asked(self) -> JsonObject:
        return {"config": self._config} if self._config else {}

    def observed(self) -> JsonObject:
        """Return what the object states of itself; what it does not state cannot be observed."""
        found: JsonObject = {"preprocessing": self.preprocessing, "device": self.identity.device}
        found |= {"weights": self.identity.weights_sha256} if self.identity.weights_sha256 else {}
        found |= {"activation": self.identity.activation} if self.identity.activation else {}
        numbers = {name: getattr(self._wrapped, name, None) for name in ("logit_scale", "logit_bias")}
        return found | {name: float(value) for name, value in numbers.items() if value is not None}

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return what the object's own `count_truncated` says, or None where it has none."""
        count = getattr(self._wrapped, "count_truncated", None)
        return int(count(list(texts))) if callable(count) else None

    def close(self) -> None:
        self._wrapped = None
