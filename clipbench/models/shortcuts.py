"""The same rows with less work, for encoders of open_clip models: what `embed` uses and checks against the plain call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from clipbench.models.device import to_device
from clipbench.models.encoder import Rows, unit_rows
from clipbench.models.text_cut import TextCut, text_cut
from clipbench.settings import Settings

if TYPE_CHECKING:
    from clipbench.models.open_clip import OpenClipEncoder

CHANNELS_LAST = "channels_last"
CUT_TEXTS = "cut_texts"


class OpenClipShortcuts:
    """`of_images` and `of_texts` name what is done otherwise than in the plain call; empty where nothing is."""

    def __init__(self, encoder: "OpenClipEncoder") -> None:
        self._encoder = encoder
        self._cut: TextCut | None = text_cut(encoder.model)
        on_cpu = encoder.identity.device == "cpu"
        self._is_channels_last = on_cpu and _is_convolutional(encoder.model.visual)  # type: ignore[arg-type]  # open_clip's tower
        self.of_images: tuple[str, ...] = (CHANNELS_LAST,) if self._is_channels_last else ()
        self.of_texts: tuple[str, ...] = (CUT_TEXTS,) if self._cut else ()

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Return (3, height, width) float32: the model's own preprocessing, pixel for pixel. Safe in several threads."""
        return self._encoder.preprocess(image)

    def start_images(self, prepared: Sequence[Any]) -> Callable[[], Rows]:
        """Start the model on what `prepare` gave, in one batch; return a call that waits and gives (images, dim) float32 unit rows.

        On a CPU, convolutions run over channels_last memory: measured 1.04 to 1.2 times as fast for RN50 at batch 4, 1.2 for lite;
        a ViT, whose one convolution cuts patches, gains nothing and is left alone, and no other device was measured.
        """
        pixels = torch.stack(tuple(prepared))
        if self._is_channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        raw = self._encoder.forward_images(to_device(pixels, self._encoder.identity.device))
        return partial(unit_rows, raw, len(prepared), f"{self._encoder.identity.name}: encode_image")

    def rows_of_texts(self, texts: Sequence[str], settings: Settings) -> Rows:
        """Return (texts, dim) float32 unit rows, in the order given: shortest first, each batch cut to its longest text.

        A batch has as many positions as `settings.text_positions`, or as the plain call's batch where that is 0. Without a cut
        for this tower: whole batches of `batch_size`, as in the plain call.
        """
        tokens = self._encoder.tokens(texts)
        needed = torch.full((len(texts),), tokens.shape[1]) if self._cut is None else self._cut.lengths(tokens)
        order = torch.argsort(needed, stable=True)
        budget = settings.text_positions if self._cut else 0
        slices = _batches(needed[order].tolist(), budget or settings.batch_size * tokens.shape[1])
        found: list[Rows] = []
        for start, end in settings.progress(slices, len(slices), "texts"):
            batch = order[start:end]
            raw = self._forward(tokens[batch, : int(needed[batch[-1]])])
            found.append(unit_rows(raw, len(batch), f"{self._encoder.identity.name}: encode_text"))
        rows: Rows = np.concatenate(found)[torch.argsort(order).numpy()]
        return rows

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._cut is None:
            return self._encoder.forward_texts(tokens)
        with torch.inference_mode():
            return self._cut.forward(tokens.to(self._encoder.identity.device))


def _batches(lengths: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Slices of ascending `lengths`: as many texts as stay within `budget` positions, padding counted; one at least."""
    slices, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > budget:
            slices.append((start, end))
            start = end
    return slices


def _is_convolutional(tower: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1
