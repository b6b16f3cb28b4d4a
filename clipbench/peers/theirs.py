"""The peers: the package clip-benchmark, called as its command line calls it, and plain open_clip.

All run the encoder's own model, tokenizer and preprocessing: the very same weights. clip-benchmark's mixed precision is off.
"""

import contextlib
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipbench.data.dataset import Item
from clipbench.experiments.retrieval import KS
from clipbench.models.encoder import Rows, unit_rows
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.peers.work import Outcome, PeerError

BATCH, WORKERS = 64, 4
"""Defaults of clip-benchmark's command line; in retrieval a batch is 64 images and all their captions."""

WAYS = ("image", "text")


def clip_benchmark_version() -> str:
    """Return the installed version. Raises: PeerError with the command that installs it."""
    try:
        return importlib.metadata.version("clip-benchmark")
    except importlib.metadata.PackageNotFoundError as error:
        raise PeerError('the peer clip-benchmark is not installed; pip install "clipbench[test]"') from error


def classifier(encoder: OpenClipEncoder, classes: Sequence[str], templates: Sequence[str]) -> Outcome:
    """Return {"rows": (classes, dim)} from clip-benchmark's zero_shot_classifier."""
    module = _metrics("zeroshot_classification")
    theirs = [template.replace("{}", "{c}") for template in templates]
    with contextlib.redirect_stderr(io.StringIO()):
        columns = module.zero_shot_classifier(encoder.model, encoder.tokenizer, list(classes), theirs, "cpu", amp=False)
    return {"rows": columns.T.numpy()}


def retrieval(encoder: OpenClipEncoder, items: Sequence[Item], workers: int = WORKERS) -> Outcome:
    """Return image_rows, text_rows and recalls from clip-benchmark's retrieval over a DataLoader of the image files.

    `recalls` (2 x KS,) float64: image retrieval before text retrieval at each k.
    """
    return _evaluate(_Recorded(encoder.model), encoder, _Captioned(items, encoder.preprocess), workers)


def encoded_captions(encoder: OpenClipEncoder, items: Sequence[Item]) -> Outcome:
    """Return {"rows": (texts, dim)} from clip-benchmark's retrieval, given image rows that cost nothing."""
    blank = torch.ones(encoder.card["embed_dim"])
    found = _evaluate(_Recorded(encoder.model, has_images=False), encoder, _Captioned(items, blank=blank), workers=0)
    return {"rows": found["text_rows"]}


def loop(encoder: OpenClipEncoder, items: Sequence[Item], batch: int) -> Outcome:
    """Return image_rows and text_rows of a loop over open_clip as anybody writes it by hand."""
    texts = [caption for item in items for caption in item.captions]
    image_rows, text_rows = [], []
    with torch.inference_mode():
        for start in range(0, len(items), batch):
            images = [Image.open(item.image.path).convert("RGB") for item in items[start : start + batch]]
            pixels = torch.stack([encoder.preprocess(image) for image in images])
            image_rows.append(normalize(encoder.model.encode_image(pixels), dim=-1))  # type: ignore[operator]  # open_clip is untyped
        for start in range(0, len(texts), batch):
            tokens = encoder.tokenizer(texts[start : start + batch])
            text_rows.append(normalize(encoder.model.encode_text(tokens), dim=-1))  # type: ignore[operator]  # open_clip is untyped
    return {"image_rows": torch.cat(image_rows).numpy(), "text_rows": torch.cat(text_rows).numpy()}


def bare_forward(encoder: OpenClipEncoder, batches: Sequence[torch.Tensor]) -> Outcome:
    """Return {"rows": (images, dim)} of the image tower alone on pixels that are ready."""
    with torch.inference_mode():
        rows = torch.cat([encoder.model.encode_image(batch) for batch in batches])  # type: ignore[operator]  # open_clip is untyped
    return {"rows": unit_rows(rows, len(rows), "the bare forward pass")}


class _Recorded:
    """A model as clip-benchmark calls it, which keeps what it returned: that is what the check looks at."""

    def __init__(self, model: Any, has_images: bool = True) -> None:
        self._model, self._has_images = model, has_images
        self.images: list[torch.Tensor] = []
        self.texts: list[torch.Tensor] = []

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images.append(self._model.encode_image(pixels) if self._has_images else pixels)
        return self.images[-1]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.texts.append(self._model.encode_text(tokens))
        return self.texts[-1]

    def rows(self) -> dict[str, Rows]:
        images, texts = torch.cat(self.images), torch.cat(self.texts)
        return {
            "image_rows": unit_rows(images, len(images), "clip-benchmark: encode_image"),
            "text_rows": unit_rows(texts, len(texts), "clip-benchmark: encode_text"),
        }


class _Captioned:
    """A data set as clip-benchmark's are: preprocessed images from their files (or a blank tensor) with their captions."""

    def __init__(
        self,
        items: Sequence[Item],
        preprocess: Callable[[Image.Image], torch.Tensor] | None = None,
        blank: torch.Tensor | None = None,
    ) -> None:
        self._items, self._preprocess, self._blank = items, preprocess, blank

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> tuple[Any, tuple[str, ...]]:
        item = self._items[place]
        if self._preprocess is None:
            return self._blank, item.captions
        return self._preprocess(Image.open(item.image.path).convert("RGB")), item.captions


def _evaluate(model: _Recorded, encoder: OpenClipEncoder, dataset: Any, workers: int) -> dict[str, npt.NDArray[Any]]:
    module, ks = _metrics("zeroshot_retrieval"), [k for k in KS if k < len(dataset)]
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars; workers over cores
        warnings.simplefilter("ignore")
        loader: Any = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=_collate)
        found = module.evaluate(model, loader, encoder.tokenizer, "cpu", amp=False, recall_k_list=ks)
    return model.rows() | {"recalls": np.array([found[f"{way}_retrieval_recall@{k}"] for k in ks for way in WAYS])}


def _collate(batch: Sequence[tuple[torch.Tensor, tuple[str, ...]]]) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
    """As clip_benchmark.datasets.builder.image_captions_collate_fn, whose module needs packages that it does not require."""
    return torch.stack([image for image, _ in batch]), [texts for _, texts in batch]


def _metrics(module: str) -> Any:
    clip_benchmark_version()
    return importlib.import_module(f"clip_benchmark.metrics.{module}")
