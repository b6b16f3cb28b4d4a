"""Your own encoder: `package.module:factory`, or any object with `encode_images` and `encode_texts`.

This is how torch.compile, int8, ONNX, transformers or a remote service come in: the suite calls the object as it is.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from PIL import Image

from clipbench.errors import CheckpointError, UnknownModelError
from clipbench.models.device import synchronized
from clipbench.models.encoder import Rows, unit_rows
from clipbench.result import ModelIdentity

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


def made_by(name: str) -> Any:
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
