"""Shorter token batches: which text towers give the same rows without the padding behind a text, and how they are called so.

A causal tower reads a text out at its end token, and nothing behind that is looked at; a BERT tower masks its padding. Both are
recognised by what they are made of, never by name; every other layout has no cut and takes the plain call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder, MeanPooler
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn
from torch.func import functional_call


@dataclass(frozen=True)
class TextCut:
    """How a tower is called on tokens cut short.

    `lengths(tokens)`: (texts,) int64, how many leading positions of (texts, context_length) tokens decide each row.
    `forward(tokens)`: raw (texts, dim) of (texts, length) tokens, where length is at least the longest of them needs.
    """

    lengths: Callable[[torch.Tensor], torch.Tensor]
    forward: Callable[[torch.Tensor], torch.Tensor]


def text_cut(model: Any) -> TextCut | None:
    """Return how to cut the texts of an open_clip model, or None where its layout is not one that is known to allow it."""
    if "encode_text" in vars(model):
        return None
    if type(model) is CLIP:
        return _causal(model, model.encode_text, model.text_pool_type, model.text_eos_id)
    text: Any = getattr(model, "text", None)
    if type(model) is not CustomTextCLIP or "forward" in vars(text):
        return None
    if type(text) is TextTransformer and text.cls_emb is None and not text.use_pad_mask and not text.output_tokens:
        return _causal(text, text.__call__, text.pool_type, text.eos_id)
    if type(text) is HFTextEncoder and text.config.model_type == "bert" and type(text.pooler) is MeanPooler:
        pad = text.config.pad_token_id
        return TextCut(lambda tokens: _last(tokens != pad), text)
    return None


class _Called(nn.Module):
    """A tower whose call is one of its methods, so that `functional_call` can run it with other tensors."""

    def __init__(self, tower: nn.Module, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.tower, self._call = tower, call

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._call(tokens)


def _causal(tower: Any, call: Callable[[torch.Tensor], torch.Tensor], pool: str, eos: int) -> TextCut | None:
    """open_clip adds whole positions and a whole mask to what it is given: both are cut to the tokens' length for the call."""
    mask = tower.attn_mask
    if pool not in ("argmax", "eos") or mask is None or not torch.equal(mask, _causal_mask(mask)):
        return None
    called = _Called(tower, call)

    def lengths(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens if pool == "argmax" else torch.eq(tokens, eos).int()).argmax(dim=-1) + 1

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        cut = {
            "tower.positional_embedding": tower.positional_embedding[:length],
            "tower.attn_mask": tower.attn_mask[:length, :length],
        }
        return functional_call(called, cut, (tokens,))  # type: ignore[no-any-return]  # typed as Any

    return TextCut(lengths, forward)


def _causal_mask(like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, float("-inf")).triu(1)


def _last(present: torch.Tensor) -> torch.Tensor:
    """The 1-based place of the last True in each row, 1 where there is none."""
    places = torch.arange(1, present.shape[1] + 1, device=present.device)
    return (present * places).amax(dim=-1).clamp(min=1)
