"""The faults: named ways in which a model gets worse in real life, each done to a loaded encoder, each to one stage.

A declared fault says so (precision, prompts and preprocessing stand in the run); an undeclared one happens behind the
encoder's back, and only what the model does can give it away. A new fault is one row of FAULTS.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from clipbench.errors import UsageError, closest
from clipbench.settings import Precision

if TYPE_CHECKING:
    import torch

    from clipbench.models.open_clip import OpenClipEncoder

NOISE = 0.01
PROMPT = "a photo of {caption}"
PREFIX = "a photo of "
_MLP = re.compile(r"(^|\.)mlp\.|(^|\.)intermediate\.dense$|(?<!attention)\.output\.dense$")
_INT8 = 127


@dataclass(frozen=True)
class Fault:
    """One way to degrade. `stage`: the first stage of the probe that it changes.

    `degrade` changes a freshly loaded encoder in place and returns "", or why the fault does not apply to it. `precision`
    is what the encoder is loaded with; `prompt`, where given, is declared for the natural images.
    """

    name: str
    stage: str
    what: str
    degrade: Callable[["OpenClipEncoder", int], str] = lambda encoder, seed: ""
    precision: Precision = "fp32"
    prompt: str = ""


def fault(name: str) -> Fault:
    """Return the fault of that name. Raises: UsageError with the closest names."""
    known = {f.name: f for f in FAULTS}
    if name not in known:
        raise UsageError(f"unknown fault {name!r}; closest: {closest(name, known) or ', '.join(known)}")
    return known[name]


def _int8_mlps(encoder: "OpenClipEncoder", seed: int) -> str:
    """Weights rounded to int8 by output channel, inputs by token: dynamic quantisation, computed in float32.

    Done by rounding, since torch's own dynamic quantisation is deprecated and depends on the processor.
    """
    from torch import nn

    found = [m for name, m in encoder.model.named_modules() if isinstance(m, nn.Linear) and _MLP.search(name)]
    if not found:
        return "no linear layer of an MLP"
    with _new_weights(encoder):
        for module in found:
            module.weight.copy_(_int8(module.weight))
            module.register_forward_pre_hook(lambda _module, inputs: (_int8(inputs[0]),))
    return ""


def _int8(values: "torch.Tensor") -> "torch.Tensor":
    """Each row rounded to 255 levels, symmetric, its largest value kept."""
    step = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / _INT8
    return (values / step).round() * step


def _noise(encoder: "OpenClipEncoder", seed: int) -> str:
    """Gaussian noise of 1 % of each tensor's own standard deviation; tensors of one element have none."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with _new_weights(encoder):
        for _, tensor in sorted(encoder.model.named_parameters()):
            if tensor.numel() > 1:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_((NOISE * tensor.std() * noise.to(tensor.device)).to(tensor.dtype))
    return ""


@contextmanager
def _new_weights(encoder: "OpenClipEncoder") -> Iterator[None]:
    """Weights change here: another checkpoint, which hashes differently and came from no file."""
    import torch

    from clipbench.models.checkpoint import weights_sha256

    with torch.no_grad():
        yield
    sha256 = weights_sha256(encoder.model.state_dict())
    encoder.identity = replace(encoder.identity, weights_sha256=sha256, file_sha256="")


def _other_activation(encoder: "OpenClipEncoder", seed: int) -> str:
    """GELU in place of QuickGELU or the reverse, undeclared: what open_clip issue 1109 does to OpenAI's weights."""
    from open_clip.transformer import QuickGELU
    from torch import nn

    if not encoder.identity.activation:
        return "the architecture has one activation"
    found, wanted = (QuickGELU, nn.GELU) if encoder.identity.activation == "quickgelu" else (nn.GELU, QuickGELU)
    for parent, name in [(m, n) for m in encoder.model.modules() for n, c in m.named_children() if type(c) is found]:
        setattr(parent, name, wanted())
    return ""


def _bilinear(encoder: "OpenClipEncoder", seed: int) -> str:
    why = _bilinear_undeclared(encoder, seed)
    encoder.preprocessing = encoder.preprocessing.replace("bicubic", "bilinear")
    return why


def _bilinear_undeclared(encoder: "OpenClipEncoder", seed: int) -> str:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    stated: dict[str, Any] = dict(encoder.model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]  # set by open_clip
    configuration = PreprocessCfg(**stated)
    if configuration.interpolation != "bicubic":
        return f"the resize is {configuration.interpolation} already"
    encoder.preprocess = image_transform_v2(replace(configuration, interpolation="bilinear"), is_train=False)
    return ""


def _swapped_channels(encoder: "OpenClipEncoder", seed: int) -> str:
    original = encoder.preprocess
    encoder.preprocess = lambda image: original(Image.merge("RGB", image.split()[::-1]))
    return ""


class _Prefixed:
    """A tokenizer with words of its own before every text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Any:
        return self._tokenizer([PREFIX + text for text in texts])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _forgotten_prefix(encoder: "OpenClipEncoder", seed: int) -> str:
    encoder.tokenizer = _Prefixed(encoder.tokenizer)
    return ""


FAULTS: tuple[Fault, ...] = (
    Fault("bf16", "precision", "bfloat16 in place of float32", precision="bf16"),
    Fault("int8_mlps", "weights", "int8 weights and activations in the MLPs' linear layers", _int8_mlps),
    Fault("other_activation", "activation", "GELU in place of QuickGELU, or the reverse", _other_activation),
    Fault("bilinear", "preprocessed_tensor", "bilinear in place of bicubic resize, declared", _bilinear),
    Fault(
        "bilinear_undeclared",
        "preprocessed_tensor",
        "bilinear in place of bicubic resize, undeclared",
        _bilinear_undeclared,
    ),
    Fault("swapped_channels", "preprocessed_tensor", "BGR in place of RGB, undeclared", _swapped_channels),
    Fault("noise", "weights", "1 % noise on every weight", _noise),
    Fault("another_prompt", "texts", f"the natural images' prompt is {PROMPT!r}, declared", prompt=PROMPT),
    Fault("forgotten_prefix", "tokens", f"{PREFIX!r} before every text, undeclared", _forgotten_prefix),
)
