"""Floating-point operations: counted on one plain forward of each tower, and what this machine can do of them in a second."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipbench.models.open_clip import OpenClipEncoder

_ATTENTION = ("bmm", "baddbmm")
MATMUL_SIZE, MATMUL_RUNS = 2048, 5


@dataclass(frozen=True)
class TowerFlops:
    """Operations (2 a multiply-add) of one image, and of one text at full context: `linear` and `attention` add up to it."""

    image: float
    linear: float
    attention: float
    context: int

    def texts(self, lengths: Sequence[int]) -> float:
        """Return the operations of texts of these lengths in tokens: linear layers grow with the length, attention with its square.

        All but exact: the projection of the one row that is read out, .01 % of a text, is scaled with the rest.
        """
        shares = [length / self.context for length in lengths]
        return sum(self.linear * share + self.attention * share**2 for share in shares)

    def full_texts(self, n: int) -> float:
        """Return the operations of n texts at full context."""
        return n * (self.linear + self.attention)


def tower_flops(encoder: OpenClipEncoder) -> TowerFlops:
    """Return what one plain forward of each tower costs, counted by torch."""
    tokens = encoder.tokens(["a photo"])
    text = _counted(lambda: encoder.forward_texts(tokens))
    pixels = encoder.pixels([Image.new("RGB", (64, 64))])
    image = _counted(lambda: encoder.forward_images(pixels))
    attention = sum(count for name, count in text.items() if name in _ATTENTION)
    return TowerFlops(sum(image.values()), sum(text.values()) - attention, attention, tokens.shape[1])


def token_lengths(encoder: OpenClipEncoder, texts: Sequence[str]) -> list[int]:
    """Return each text's tokens up to its end token, which is the largest of a CLIP vocabulary."""
    lengths: list[int] = (encoder.tokens(texts).argmax(dim=-1) + 1).tolist()
    return lengths


def matmul_flops_per_second() -> float:
    """Return the best of five float32 products of two 2048 x 2048 matrices, at the current threads."""
    left, right = torch.rand(MATMUL_SIZE, MATMUL_SIZE), torch.rand(MATMUL_SIZE, MATMUL_SIZE)
    left @ right
    return 2 * MATMUL_SIZE**3 / min(_seconds(lambda: left @ right) for _ in range(MATMUL_RUNS))


def _counted(call: Callable[[], object]) -> dict[str, float]:
    """Operations by operator; fused attention and the fused encoder layer are switched off, for the counter may not know them."""
    with _unfused(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    counts: dict[Any, float] = counter.get_flop_counts()["Global"]
    return {str(operator).rpartition(".")[2]: count for operator, count in counts.items()}


@contextmanager
def _unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
