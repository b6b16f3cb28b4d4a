"""Encoders through open_clip: the nine OpenAI models, any other architecture and tag, a local checkpoint, random weights.

Source: mlfoundations/open_clip; issue 1109 there is why the activation is never left to its default.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import nn

from clipbench.models.device import synchronized
from clipbench.models.encoder import Rows, may_be_truncated, unit_rows
from clipbench.models.shortcuts import OpenClipShortcuts
from clipbench.result import ModelIdentity

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TELLING_TEXTS = ("a photo of a dog.", "  Größe, ÉTÉ & naïve — 3.14 日本語 🐈", "antidisestablishmentarianism " * 100)


class OpenClipEncoder:
    """A model made by open_clip with its own preprocessing and tokenizer, in eval mode, without gradients."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], torch.Tensor],
        identity: ModelIdentity,
        activation_in_doubt: bool = False,
        file: Path | None = None,
    ) -> None:
        self._activation_in_doubt = activation_in_doubt
        self.file = file
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        configuration = PreprocessCfg(**_preprocess_cfg(model))
        self.preprocess: Callable[[Image.Image], torch.Tensor] = image_transform_v2(configuration, is_train=False)
        self.preprocessing = _describe(configuration)
        self.card: Mapping[str, int] = MappingProxyType(_card(model, tokenizer))
        self.is_loaded = True

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return (images, 3, height, width) float32 on the CPU: the model's own preprocessing."""
        return torch.stack([self.preprocess(image) for image in images])

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (texts, context_length) int64 on the CPU: the model's own tokenizer, which cuts what is too long."""
        return self.tokenizer(list(texts))

    def forward_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the model's raw (images, dim) output for prepared pixels, on the device."""
        pixels = pixels.to(device=self.identity.device, dtype=_DTYPES[self.identity.precision])
        with torch.inference_mode():
            return self.model.encode_image(pixels)  # type: ignore[no-any-return, operator]  # open_clip is untyped

    def forward_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the model's raw (texts, dim) output for tokens, on the device."""
        with torch.inference_mode():
            return self.model.encode_text(tokens.to(self.identity.device))  # type: ignore[no-any-return, operator]  # open_clip is untyped

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        """Return (images, dim) float32 unit rows of RGB images, in one batch."""
        return unit_rows(self.forward_images(self.pixels(images)), len(images), f"{self.identity.name}: encode_image")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        """Return (texts, dim) float32 unit rows, in one batch."""
        return unit_rows(self.forward_texts(self.tokens(texts)), len(texts), f"{self.identity.name}: encode_text")

    def shortcuts(self) -> OpenClipShortcuts | None:
        """Return the same rows with less work; None for a class derived from this one, whose calls are its own business."""
        return OpenClipShortcuts(self) if type(self) is OpenClipEncoder else None

    def tokenizer_sha256(self) -> str:
        """Return a hash over what the tokenizer makes of a few texts: it tells tokenizers apart by what they do."""
        return hashlib.sha256(self.tokens(_TELLING_TEXTS).cpu().numpy().tobytes()).hexdigest()

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many of the texts the tokenizer cuts at the context length, or None for a tokenizer of another kind.

        Texts too short for that are not tokenized for this.
        """
        length = self.card["context_length"]
        long = [text for text in texts if may_be_truncated(text, length)]
        if hasattr(self.tokenizer, "encode"):
            return sum(len(self.tokenizer.encode(text)) + 2 > length for text in long)
        if not hasattr(self.tokenizer, "tokenizer"):
            return None
        if not long:
            return 0
        rows = self.tokenizer.tokenizer(long, truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > length for row in rows)

    def ready_images(self, images: Sequence[Image.Image]) -> Callable[[], object]:
        """Return a call of the model alone on these images, preprocessed and on the device beforehand."""
        pixels = self.pixels(images).to(device=self.identity.device, dtype=_DTYPES[self.identity.precision])
        return lambda: synchronized(self.forward_images(pixels), self.identity.device)

    def ready_texts(self, texts: Sequence[str]) -> Callable[[], object]:
        """Return a call of the model alone on these texts, tokenized and on the device beforehand."""
        tokens = self.tokens(texts).to(self.identity.device)
        return lambda: synchronized(self.forward_texts(tokens), self.identity.device)

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return a context that swaps GELU and QuickGELU in every block.

        None where nobody can have mistaken one for the other: weights that do not come from a path, or an architecture
        without the choice.
        """
        if not (self._activation_in_doubt and self.identity.activation):
            return None
        other = "gelu" if self.identity.activation == "quickgelu" else "quickgelu"
        found = QuickGELU if other == "gelu" else nn.GELU
        if not any(type(child) is found for child in self.model.modules()):
            return None
        return _swapped_activation(self.model, other)

    def close(self) -> None:
        """Let go of the model; the session gives its memory back."""
        self.model = nn.Identity()


@contextmanager
def _swapped_activation(model: nn.Module, other: str) -> Iterator[str]:
    found, wanted = (nn.GELU, QuickGELU) if other == "quickgelu" else (QuickGELU, nn.GELU)
    places = [(m, name, child) for m in model.modules() for name, child in m.named_children() if type(child) is found]
    try:
        for parent, name, _ in places:
            setattr(parent, name, wanted())
        yield other
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _preprocess_cfg(model: nn.Module) -> dict[str, Any]:
    configuration: dict[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr, assignment]  # set by open_clip
    return configuration


def _describe(configuration: PreprocessCfg) -> str:
    """One line that changes whenever a pixel would."""
    size = configuration.size if isinstance(configuration.size, int) else "x".join(map(str, configuration.size))
    mean, std = (",".join(f"{v:.8g}" for v in values) for values in (configuration.mean, configuration.std))
    fill = f", fill {configuration.fill_color}" if configuration.resize_mode != "shortest" else ""
    resize = f"resize {configuration.resize_mode} to {size} {configuration.interpolation}{fill}"
    return f"{configuration.mode}, {resize}, centre crop, mean {mean}, std {std}"


def _card(model: Any, tokenizer: Any) -> dict[str, int]:
    """Counts and sizes read off the live model, not off any table."""
    count = {name: p.numel() for name, p in model.named_parameters()}
    image = sum(n for name, n in count.items() if name.startswith("visual."))
    scale = sum(n for name, n in count.items() if name in ("logit_scale", "logit_bias"))
    size = model.visual.image_size
    text = getattr(model, "text", model)
    dim = model.text_projection.shape[-1] if hasattr(model, "text_projection") else text.output_dim
    return {
        "params": sum(count.values()),
        "params_image": image,
        "params_text": sum(count.values()) - image - scale,
        "image_size": int(size if isinstance(size, int) else size[0]),
        "context_length": int(getattr(tokenizer, "context_length", 0) or model.context_length),
        "vocab_size": int(text.vocab_size),
        "embed_dim": int(dim),
    }
