"""Encoders through open_clip: the nine OpenAI models, any other architecture and tag, a local checkpoint, random weights.

Source: mlfoundations/open_clip; issue 1109 there is why the activation is never left to its default.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import nn

from clipbench.errors import CheckpointError, WeightsUnavailableError
from clipbench.models.checkpoint import Checkpoint, load_into, read_checkpoint, weights_sha256, without_derived
from clipbench.models.device import synchronized
from clipbench.models.encoder import Rows, unit_rows
from clipbench.models.resolve import checkpoint_config
from clipbench.models.weights import fetch_tag
from clipbench.models.zoo import ModelSpec
from clipbench.result import ModelIdentity
from clipbench.settings import Precision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


class OpenClipEncoder:
    """A model made by open_clip with its own preprocessing and tokenizer, in eval mode, without gradients."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], torch.Tensor],
        identity: ModelIdentity,
        activation_in_doubt: bool = False,
    ) -> None:
        self._activation_in_doubt = activation_in_doubt
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        configuration = PreprocessCfg(**_preprocess_cfg(model))
        self.preprocess: Callable[[Image.Image], torch.Tensor] = image_transform_v2(configuration, is_train=False)
        self.preprocessing = _describe(configuration)
        self.card: Mapping[str, int] = MappingProxyType(_card(model, tokenizer))

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

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many of the texts the tokenizer cuts at the context length, or None for a tokenizer of another kind.

        A token is at least one byte, so short texts are not tokenized for this.
        """
        length = self.card["context_length"]
        long = [text for text in texts if len(text.encode(errors="replace")) + 2 > length]
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


def load_open_clip(spec: ModelSpec, device: str, precision: Precision, offline: bool) -> OpenClipEncoder:
    """Return the encoder that a spec names: tag, path or random weights.

    Raises: WeightsUnavailableError when the weights (or a tokenizer from a hub) cannot be had; CheckpointError when a
    checkpoint is corrupt or foreign.
    """
    forced: dict[str, Any] = {}
    checkpoint: Checkpoint | None = None
    path = Path()
    if spec.source == "tag":
        tag = open_clip.get_pretrained_cfg(spec.architecture, spec.pretrained)
        forced = {key: tag[key] for key in _PREPROCESS_KEYS if key in tag}
        path = fetch_tag(spec.name, spec.pretrained, tag, offline)
        checkpoint = read_checkpoint(path)
    elif spec.source == "path":
        beside = checkpoint_config(Path(spec.pretrained))
        forced = dict(beside.get("preprocess_cfg", {})) if beside else {}
        path = Path(spec.pretrained)
        checkpoint = read_checkpoint(path)
    if checkpoint is not None:
        model = _create(spec, precision, device, forced, offline)
        load_into(model, checkpoint, path)
        tensors = without_derived(model, checkpoint.tensors)
    else:
        model, tensors = _random(spec, precision, device, offline)
    identity = ModelIdentity(
        name=spec.name,
        pretrained=spec.pretrained,
        weights_sha256=weights_sha256(tensors),
        file_sha256=checkpoint.file_sha256 if checkpoint else "",
        activation=spec.activation,
        precision=precision,
        device=device,
    )
    with _hub_errors(spec, offline):
        tokenizer = open_clip.get_tokenizer(spec.architecture)
    return OpenClipEncoder(model, tokenizer, identity, activation_in_doubt=spec.source == "path")


def load_directory(folder: Path, name: str, device: str, precision: Precision) -> OpenClipEncoder:
    """Return the encoder in a folder with `open_clip_config.json` and safetensors weights, made by open_clip's factory.

    Raises: CheckpointError when the folder does not hold what open_clip expects.
    """
    location = f"local-dir:{folder}"
    checkpoint = read_checkpoint(folder / "open_clip_model.safetensors")
    try:
        with _quiet():
            model = open_clip.create_model(location, precision=precision, device=device)
            tokenizer = open_clip.get_tokenizer(location)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"open_clip cannot load {folder}: {error}; remove the folder and run again") from error
    identity = ModelIdentity(
        name=name,
        pretrained=name,
        weights_sha256=weights_sha256(checkpoint.tensors),
        file_sha256=checkpoint.file_sha256,
        precision=precision,
        device=device,
    )
    return OpenClipEncoder(model, tokenizer, identity)


def _create(spec: ModelSpec, precision: str, device: str, preprocess: Mapping[str, Any], offline: bool) -> nn.Module:
    quick = {"quick_gelu": spec.activation == "quickgelu"} if spec.activation else {}
    with _quiet(), _hub_errors(spec, offline):
        model: nn.Module = open_clip.create_model(
            spec.architecture,
            pretrained=None,
            precision=precision,
            device=device,
            force_preprocess_cfg={k: v for k, v in preprocess.items() if k in _PREPROCESS_KEYS},
            pretrained_image=False,
            pretrained_text=False,
            **quick,
        )
    return model


def _random(spec: ModelSpec, precision: str, device: str, offline: bool) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Seeded initialisation on the CPU in fp32, hashed there, then cast: the same weights for every device and precision."""
    seed = int(spec.pretrained.partition(":")[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(spec, "fp32", "cpu", {}, offline)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if precision == "fp32":
        return model.to(device), tensors
    cast = _create(spec, precision, device, {}, offline)
    cast.load_state_dict(tensors)
    return cast, tensors


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns through the root logger of things that are decided here on purpose (no weights, activation)."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _hub_errors(spec: ModelSpec, offline: bool) -> Iterator[None]:
    """Some architectures fetch a text tower's configuration or tokenizer from a hub: say so when it cannot be had."""
    try:
        yield
    except (OSError, ImportError) as error:
        state = "offline" if offline else "not reachable"
        raise WeightsUnavailableError(
            f"{spec.label}: its text tower or tokenizer comes from a model hub, which is {state}: {error}; "
            f"connect once, or choose one of the models of `clipbench models`"
        ) from error


def _preprocess_cfg(model: nn.Module) -> dict[str, Any]:
    configuration: dict[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr, assignment]  # set by open_clip
    return configuration


def _describe(configuration: PreprocessCfg) -> str:
    """One line that changes whenever a pixel would."""
    size = configuration.size if isinstance(configuration.size, int) else "x".join(map(str, configuration.size))
    mean, std = (",".join(f"{v:.8g}" for v in values) for values in (configuration.mean, configuration.std))
    return f"RGB, resize {configuration.resize_mode} to {size} {configuration.interpolation}, centre crop, mean {mean}, std {std}"


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
