"""Encoders through open_clip: the nine OpenAI models, any other architecture and tag, a local checkpoint, random weights, a folder.

First the encoder, then how it is loaded, then the same rows with less work, which `embed` uses and checks against the reference path.

Source: mlfoundations/open_clip; issue 1109 there is why the activation is never left to its default.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.hf_model import HFTextEncoder, MeanPooler
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from open_clip.transform import (
    CenterCropOrPad,
    MaybeConvertMode,
    MaybeToTensor,
    PreprocessCfg,
    ResizeKeepRatio,
    image_transform_v2,
)
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer
from PIL import Image
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

from clipbench.errors import CheckpointError, WeightsUnavailableError
from clipbench.models.checkpoint import load_into, read_checkpoint, tensor_hashes, weights_sha256
from clipbench.models.device import feed_of
from clipbench.models.encoder import Encoder, Ready, Rows, checked_rows
from clipbench.models.grammar import EXPECTED
from clipbench.models.weights import fetch_tag
from clipbench.models.zoo import ModelSpec, checkpoint_config
from clipbench.types import JsonObject, ModelIdentity, Tower

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FINGERPRINT_TEXTS = (
    "a photo of a dog.",
    "  Größe, ÉTÉ & naïve — 3.14 日本語 🐈",
    "antidisestablishmentarianism " * 100,
)


HUB_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "*.json", "*.txt", "*.model")
"""What of a hub's repository is fetched: settings, safetensors, tokenizer files."""


class OpenClipEncoder(Encoder):
    """A model made by open_clip with its own preprocessing and tokenizer, in eval mode, without gradients."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], torch.Tensor],
        identity: ModelIdentity,
        activation_in_doubt: bool = False,
        tensors: Mapping[str, torch.Tensor] | None = None,
        forced: Mapping[str, Any] | None = None,
    ) -> None:
        """`tensors`: the weights as they were read, before any cast; `forced`: the preprocessing that was asked for."""
        self._forced = dict(forced or {})
        self._activation_in_doubt = activation_in_doubt
        self._tensor_hashes = tensor_hashes(tensors or {})
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        configuration = PreprocessCfg(**model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]  # set by open_clip
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
        raw = self.forward_images(self.pixels(images))
        return checked_rows(raw, len(images), f"{self.identity.name}: encode_image")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        return checked_rows(self.forward_texts(self.tokens(texts)), len(texts), f"{self.identity.name}: encode_text")

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        pixels = self.pixels(images).to(device=self.identity.device, dtype=_DTYPES[self.identity.precision])
        return Ready(partial(self.forward_images, pixels), self.identity.device)

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        tokens = self.tokens(texts).to(self.identity.device)
        return Ready(partial(self.forward_texts, tokens), self.identity.device)

    def optimized(self) -> "OptimizedOpenClip | None":
        """Return the same rows with less work; None for a class derived from this one, whose calls are its own business."""
        return OptimizedOpenClip(self) if type(self) is OpenClipEncoder else None

    def asked(self) -> JsonObject:
        return {"preprocessing": self._forced} if self._forced else {}

    def observed(self) -> JsonObject:
        """Return what is found of the live model; `tensors` are the first 64 bits of each tensor's hash, by name."""
        scale, bias = (getattr(self.model, name, None) for name in ("logit_scale", "logit_bias"))
        found = {
            "weights": self.identity.weights_sha256,
            "tensors": dict(self._tensor_hashes),
            "activation": self.identity.activation,
            "preprocessing": self.preprocessing,
            "tokenizer": self.tokenizer_sha256(),
            "dim": self.card["embed_dim"],
            "device": self.identity.device,
        }
        found |= {} if scale is None else {"logit_scale": float(scale.exp())}
        return found | ({} if bias is None else {"logit_bias": float(bias)})

    def depends_on(self) -> JsonObject:
        optimized = self.optimized()
        return {
            "weights": self.identity.weights_sha256,
            "activation": self.identity.activation,
            "precision": self.identity.precision,
            "preprocessing": self.preprocessing,
            "tokenizer": self.tokenizer_sha256(),
            "architecture": _architecture(self.model),
            "optimizations": [] if optimized is None else [*optimized.names("images"), *optimized.names("texts")],
        }

    def tokenizer_sha256(self) -> str:
        """Return a hash over what the tokenizer makes of a few texts: it tells tokenizers apart by what they do."""
        return hashlib.sha256(self.tokens(_FINGERPRINT_TEXTS).cpu().numpy().tobytes()).hexdigest()

    def count_truncated(self, texts: Sequence[str]) -> int | None:
        """Return how many of the texts the tokenizer cuts at the context length, or None for a tokenizer of another kind."""
        length = self.card["context_length"]
        # A token is at least one byte, and two are start and end: shorter texts need no tokenizing.
        long = [text for text in texts if len(text.encode(errors="replace")) + 2 > length]
        if hasattr(self.tokenizer, "encode"):
            return sum(len(self.tokenizer.encode(text)) + 2 > length for text in long)
        if not hasattr(self.tokenizer, "tokenizer"):
            return None
        if not long:
            return 0
        rows = self.tokenizer.tokenizer(long, truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > length for row in rows)

    def other_activation(self) -> AbstractContextManager[str] | None:
        """Return a context that swaps GELU and QuickGELU in every block; None as `Encoder` says."""
        if not (self._activation_in_doubt and self.identity.activation):
            return None
        other = "gelu" if self.identity.activation == "quickgelu" else "quickgelu"
        found, wanted = (nn.GELU, QuickGELU) if other == "quickgelu" else (QuickGELU, nn.GELU)
        parents = ((parent, *child) for parent in self.model.modules() for child in parent.named_children())
        places = [(parent, name, child) for parent, name, child in parents if type(child) is found]
        return _swapped_activation(places, wanted, other) if places else None

    def close(self) -> None:
        """Let go of the model; the session gives its memory back."""
        self.model = nn.Identity()


@contextmanager
def _swapped_activation(
    places: Sequence[tuple[nn.Module, str, nn.Module]], wanted: type[nn.Module], other: str
) -> Iterator[str]:
    try:
        for parent, name, _ in places:
            setattr(parent, name, wanted())
        yield other
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _describe(configuration: PreprocessCfg) -> str:
    """One line that changes whenever a pixel would."""
    size = configuration.size if isinstance(configuration.size, int) else "x".join(map(str, configuration.size))
    mean, std = (",".join(f"{v:.8g}" for v in values) for values in (configuration.mean, configuration.std))
    fill = f", fill {configuration.fill_color}" if configuration.resize_mode != "shortest" else ""
    resize = f"resize {configuration.resize_mode} to {size} {configuration.interpolation}{fill}"
    return f"{configuration.mode}, {resize}, centre crop, mean {mean}, std {std}"


def _architecture(model: nn.Module) -> str:
    """A hash over every module's kind and settings: some of them (the number of heads) are in no tensor."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        plain = ((k, v) for k, v in vars(module).items() if isinstance(v, int | float | str))
        settings = sorted((k, v) for k, v in plain if k[0] != "_" and k != "training")
        digest.update(f"{name} {type(module).__qualname__} {settings}\n".encode())
    return digest.hexdigest()


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


_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def _preprocess_options(configuration: Mapping[str, Any]) -> JsonObject:
    """What a configuration asks of the preprocessing, as JSON has it."""
    chosen = {key: configuration[key] for key in _PREPROCESS_KEYS if configuration.get(key) is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}


def load_open_clip(spec: ModelSpec, device: str, precision: str, offline: bool) -> OpenClipEncoder:
    """Return the encoder that a spec names: tag, path or random weights.

    Raises: WeightsUnavailableError when weights or a hub's tokenizer cannot be had; CheckpointError for a corrupt or foreign checkpoint.
    """
    path, forced, file_sha256 = Path(spec.pretrained), {}, ""
    if spec.source == "tag":
        forced = open_clip.get_pretrained_cfg(spec.architecture, spec.pretrained)
        path = fetch_tag(spec.name, spec.pretrained, forced, offline)
    elif spec.source == "path":
        forced = (checkpoint_config(path) or {}).get("preprocess_cfg", {})
    asked = Asked.of(spec.arguments)
    forced = {**forced, **asked.preprocessing}
    if spec.source == "random":
        model, tensors = _random(spec, precision, device, offline)
    else:
        checkpoint = read_checkpoint(path)
        model = _create(spec, precision, device, forced, offline)
        tensors, file_sha256 = load_into(model, checkpoint, path, bool(asked.shape)), checkpoint.file_sha256
    identity = ModelIdentity(
        name=spec.name,
        pretrained=spec.pretrained,
        weights_sha256=weights_sha256(tensors),
        file_sha256=file_sha256,
        activation=spec.activation,
        precision=precision,
        device=device,
    )
    with _hub_errors(spec, offline):
        tokenizer = open_clip.get_tokenizer(spec.architecture, asked.shape.get("force_context_length"))
    stated = _preprocess_options(forced) | {k: v for k, v in asked.shape.items() if k == "force_image_size"}
    return OpenClipEncoder(model, tokenizer, identity, spec.source == "path", tensors, stated)


@dataclass(frozen=True)
class Asked:
    """What `--model-args` asks of open_clip: `shape` of the model (force_image_size, force_context_length), and `preprocessing`."""

    shape: Mapping[str, Any]
    preprocessing: Mapping[str, Any]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Asked":
        """Return arguments by what they are about."""
        images = {key.removeprefix("image_"): value for key, value in arguments.items() if key.startswith("image_")}
        return cls({key: value for key, value in arguments.items() if key.startswith("force_")}, images)


def load_directory(folder: Path, spec: ModelSpec, device: str, precision: str) -> OpenClipEncoder:
    """Return the encoder in a folder with `open_clip_config.json` and safetensors weights, the model made by open_clip's factory.

    Raises: CheckpointError when the folder does not hold what open_clip expects.
    """
    location, asked = f"local-dir:{folder}", Asked.of(spec.arguments)
    path = folder / "open_clip_model.safetensors"
    if checkpoint_config(path) is None:
        raise CheckpointError(f"{folder} has no open_clip_config.json; expected {EXPECTED['local-dir']}")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {path.name}; save the weights as safetensors, which run no code")
    checkpoint = read_checkpoint(path)
    preprocess = {k: v for k, v in asked.preprocessing.items() if k in _PREPROCESS_KEYS}
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                location,
                load_weights=False,
                precision=_stored_in(precision),
                device=device,
                pretrained_text=False,
                force_preprocess_cfg=preprocess,
                **asked.shape,
            )
            tokenizer = open_clip.get_tokenizer(location, asked.shape.get("force_context_length"))
    except (RuntimeError, ValueError, OSError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"open_clip cannot load {folder}: {error}; expected {EXPECTED['local-dir']}, tokenizer files included"
        ) from error
    tensors = load_into(model, checkpoint, path, bool(asked.shape))
    identity = ModelIdentity(
        name=spec.name,
        pretrained=spec.pretrained,
        weights_sha256=weights_sha256(tensors),
        file_sha256=checkpoint.file_sha256,
        precision=precision,
        device=device,
    )
    stated = _preprocess_options(preprocess) | {k: v for k, v in asked.shape.items() if k == "force_image_size"}
    return OpenClipEncoder(model, tokenizer, identity, tensors=tensors, forced=stated)


def _stored_in(precision: str) -> str:
    """open_clip's word for how weights are stored; TF32 is a way to multiply them."""
    return "fp32" if precision == "tf32" else precision


def _create(
    spec: ModelSpec, precision: str, device: str, preprocess: Mapping[str, Any], offline: bool, seed: int = 0
) -> nn.Module:
    """A model with initial weights drawn from `seed`; the process's own generator is left where it was."""
    quick = {"quick_gelu": spec.activation == "quickgelu"} if spec.activation else {}
    with _quiet(), _hub_errors(spec, offline), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = open_clip.create_model(
            spec.architecture,
            pretrained=None,
            precision=_stored_in(precision),
            device=device,
            force_preprocess_cfg={k: v for k, v in preprocess.items() if k in _PREPROCESS_KEYS},
            pretrained_image=False,
            pretrained_text=False,
            **quick,
            **Asked.of(spec.arguments).shape,
        )
    return model


def _random(spec: ModelSpec, precision: str, device: str, offline: bool) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Seeded initialisation on the CPU in fp32, hashed there, then cast: the same weights for every device and precision."""
    seed = int(spec.pretrained.partition(":")[2])
    preprocess = Asked.of(spec.arguments).preprocessing
    model = _create(spec, "fp32", "cpu", preprocess, offline, seed)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if _stored_in(precision) == "fp32":
        return model.to(device), tensors
    cast = _create(spec, precision, device, preprocess, offline)
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


CHANNELS_LAST = "channels_last"
CUT_TEXTS = "cut_texts"
SHARED_BEGINNINGS = "shared_beginnings"
WORDS = "words_tokenized_once"
NORMALIZED = "normalized_on_device"

TEXTS_BESIDE = 1024
"""Texts that a device with a queue is given at once: it works on them while the next ones are tokenized."""


class OptimizedOpenClip:
    """The rows of an `OpenClipEncoder` with less work."""

    def __init__(self, encoder: OpenClipEncoder) -> None:
        self._encoder = encoder
        self._cut: TextCut | None = text_cut(encoder.model)
        encode = getattr(encoder.tokenizer, "encode", None) if self._cut and _splits_words(encoder.tokenizer) else None
        self._word: Callable[[str], list[int]] | None = lru_cache(1 << 16)(encode) if encode else None
        on_cpu = encoder.identity.device == "cpu"
        convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.model.visual.modules())  # type: ignore[union-attr]  # open_clip's tower
        self._is_channels_last = on_cpu and convolutions > 1
        self._feed = feed_of(encoder.identity.device)
        self._split = split_preprocessing(encoder.preprocess)
        if self._split is not None:
            self._table = torch.from_numpy(self._split.table).to(encoder.identity.device)

    def names(self, tower: Tower) -> tuple[str, ...]:
        """Return what is done otherwise than on the reference path; empty where nothing is."""
        if tower == "images":
            on_device = self._split is not None and self._feed.is_queue
            return ((CHANNELS_LAST,) if self._is_channels_last else ()) + ((NORMALIZED,) if on_device else ())
        return (*(self._cut.names if self._cut else ()), *((WORDS,) if self._word else ()))

    def prepare(self, image: Image.Image) -> npt.NDArray[Any]:
        """Return what `start_images` takes: (3, height, width) float32 by the model's own preprocessing, or where a device with a
        queue can finish it, (height, width, 3) uint8, resized and cropped. Safe in several threads."""
        if self._split is None:
            return self._encoder.preprocess(image).numpy()
        pixels = np.asarray(self._split.resized(image))
        return pixels if self._feed.is_queue else self._split.looked_up(pixels)

    def start_images(self, prepared: Sequence[Any]) -> Callable[[], Rows]:
        """Start the model on what `prepare` gave, in one batch; return a call that waits and gives (images, dim) float32 rows.

        On a CPU, convolutions run over channels_last memory: measured 1.04 to 1.2 times as fast for RN50 at batch 4, 1.2 for lite;
        a ViT, whose one convolution cuts patches, gains nothing and is left alone, and no other device was measured.
        """
        with torch.inference_mode():
            pixels = self._feed.upload(prepared)
            if self._split is not None and self._feed.is_queue:
                pixels = _looked_up(pixels, self._table)
            if self._is_channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            raw = self._encoder.forward_images(pixels).clone()  # some towers return a view of all they computed
        return partial(checked_rows, raw, len(prepared), f"{self._encoder.identity.name}: encode_image")

    def encode_texts(self, texts: Sequence[str], batch_size: int, positions: int, progress: Any) -> Rows:
        """Return (texts, dim) float32 rows, in the order given: shortest first, each batch cut to its longest text.

        A batch has `positions` tokens, or where that is 0, or no cut is known, those of the reference path's `batch_size` texts. A
        device with a queue works on some texts while the next ones are tokenized, and is waited for once, at the end.
        """
        identity = self._encoder.identity
        whole = TextCut((), lambda t: torch.full((len(t),), t.shape[1]), lambda t: (t,), self._encoder.forward_texts)
        cut = self._cut or whole
        at_once = TEXTS_BESIDE if self._feed.is_queue else len(texts)
        order: list[int] = []
        found: list[torch.Tensor] = []
        for start in range(0, len(texts), at_once):
            tokens = self._tokens(texts[start : start + at_once])
            needed, keys = cut.lengths(tokens).tolist(), tokens.numpy().astype(">i4")
            own = sorted(range(len(tokens)), key=lambda k: (needed[k], keys[k].tobytes()))  # beginnings together
            budget = (positions if self._cut else 0) or batch_size * tokens.shape[1]
            slices = _batches([needed[k] for k in own], budget)
            inputs = [cut.inputs(tokens[own[first:end], : needed[own[end - 1]]]) for first, end in slices]
            with torch.inference_mode():
                for one in progress(_together(inputs, identity.device), len(slices), "texts"):
                    found.append(cut.forward(*one))
            order += [start + k for k in own]
        raw = checked_rows(torch.cat(found), len(texts), f"{identity.name}: encode_text")
        rows = np.empty_like(raw)
        rows[order] = raw
        return rows

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """What the model's own tokenizer gives, which tokenizes each word of plain text once."""
        if self._word is None:
            return self._encoder.tokens(texts)
        tokenizer: Any = self._encoder.tokenizer
        rows = np.zeros((len(texts), tokenizer.context_length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            if text.isascii() and text.isprintable() and "&" not in text:  # what its cleaning leaves as it is
                ids = [token for word in text.split(" ") for token in self._word(word)]
            else:
                ids = tokenizer.encode(text)
            n = min(len(ids), len(row) - 2)
            row[0], row[1 : n + 1], row[n + 1] = tokenizer.sot_token_id, ids[:n], tokenizer.eot_token_id
        return torch.from_numpy(rows)


def _splits_words(tokenizer: Any) -> bool:
    """Whether it is open_clip's byte pair encoding, which never joins what a space divides."""
    if type(tokenizer) is not SimpleTokenizer or tokenizer.reduction_fn is not None or not tokenizer.context_length:
        return False
    return tokenizer.clean_fn in (get_clean_fn("lower"), get_clean_fn("whitespace"))


def _together(inputs: Sequence[tuple[torch.Tensor, ...]], device: str) -> list[tuple[torch.Tensor, ...]]:
    """The same int64 tensors on a device, by one copy."""
    flat = torch.cat([part.flatten() for one in inputs for part in one]).to(device)
    pieces = iter(torch.split(flat, [part.numel() for one in inputs for part in one]))
    return [tuple(next(pieces).view(part.shape) for part in one) for one in inputs]


@dataclass(frozen=True)
class SplitPreprocessing:
    """A model's own preprocessing in two: `resized`, PIL to PIL, and `table`, (3, 256) float32, what each value of each colour becomes."""

    resized: Callable[[Image.Image], Image.Image]
    table: npt.NDArray[np.float32]

    def looked_up(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return (3, height, width) float32 of (height, width, 3): what ToTensor and Normalize give, 15 times as fast, in one thread."""
        found = np.empty((3, *pixels.shape[:2]), np.float32)
        for colour, values in enumerate(self.table):
            np.take(values, pixels[..., colour], out=found[colour], mode="clip")
        return found


def split_preprocessing(preprocess: Any) -> SplitPreprocessing | None:
    """Return open_clip's own evaluation transform in two, or None for anything else."""
    steps = preprocess.transforms if type(preprocess) is Compose else ()
    if [type(step) for step in steps[-2:]] != [MaybeToTensor, Normalize]:
        return None
    if {type(step) for step in steps[:-2]} - {Resize, ResizeKeepRatio, CenterCrop, CenterCropOrPad, MaybeConvertMode}:
        return None
    every_value = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256)).convert("RGB")
    return SplitPreprocessing(Compose(steps[:-2]), Compose(steps[-2:])(every_value)[:, 0].numpy())


def _looked_up(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(images, 3, height, width) float32 of (images, height, width, 3) uint8, where their device has a (3, 256) table's copy."""
    colours = 256 * torch.arange(3, dtype=torch.int32, device=pixels.device).view(3, 1, 1)
    places = pixels.permute(0, 3, 1, 2).to(torch.int32) + colours
    return table.flatten().index_select(0, places.flatten()).view(places.shape)


def _batches(lengths: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Slices of ascending `lengths`: as many texts as stay within `budget` positions, padding counted; one at least."""
    slices, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > budget:
            slices.append((start, end))
            start = end
    return slices


@dataclass(frozen=True)
class TextCut:
    """How a tower is called on tokens cut short, and by which optimizations (`names`).

    `lengths(tokens)`: (texts,) int64, how many leading positions of (texts, context_length) tokens decide each row. `inputs(tokens)`:
    int64 tensors, made on the CPU of (texts, length) tokens, where length is at least the longest of them needs; `forward(*inputs)`,
    with them on the model's device: raw (texts, dim).
    """

    names: tuple[str, ...]
    lengths: Callable[[torch.Tensor], torch.Tensor]
    inputs: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    forward: Callable[..., torch.Tensor]


def text_cut(model: Any) -> TextCut | None:
    """Return how to cut the texts of an open_clip model, or None where its layout is not one that is known to allow it."""
    if "encode_text" in vars(model):
        return None
    if type(model) is CLIP:
        return _causal(model, model.text_pool_type, model.text_eos_id)
    text: Any = getattr(model, "text", None)
    if type(model) is not CustomTextCLIP or "forward" in vars(text):
        return None
    if type(text) is TextTransformer and text.cls_emb is None and not text.use_pad_mask and not text.output_tokens:
        return _causal(text, text.pool_type, text.eos_id)
    if type(text) is HFTextEncoder and text.config.model_type == "bert" and type(text.pooler) is MeanPooler:
        pad = text.config.pad_token_id
        return TextCut((CUT_TEXTS,), lambda tokens: _last(tokens != pad), lambda tokens: (tokens,), text)
    return None


def _causal(tower: Any, pool: str, eos: int) -> TextCut | None:
    """A position depends on what stands before it alone: what follows a text's end is left out, and what several texts of a batch
    begin with alike goes through the layers once. Attention alone sees every text."""
    mask, blocks = tower.attn_mask, tower.transformer.resblocks
    if pool not in ("argmax", "eos") or mask is None or not all(_is_plain(block) for block in blocks):
        return None
    if not torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1)):
        return None

    def lengths(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens if pool == "argmax" else torch.eq(tokens, eos).int()).argmax(dim=-1) + 1

    def inputs(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(Token, position, first place) of each distinct beginning; which of them ends at each place; the place read out."""
        n, length = tokens.shape
        ends, columns = lengths(tokens), torch.arange(length)
        is_first = torch.ones(n, length, dtype=torch.bool)
        is_first[1:] = (tokens[1:] != tokens[:-1]).cumsum(1) > 0  # unlike the text before, up to here
        is_first &= columns < ends[:, None]
        places = torch.arange(n * length).view(n, length)
        alike = torch.where(is_first, places, 0).cummax(0).values
        first = is_first.flatten().nonzero()[:, 0]
        beginning = (is_first.flatten().cumsum(0) - 1)[alike]
        return tokens.flatten()[first], first % length, first, beginning, places[:, 0] + ends - 1

    def forward(
        tokens: torch.Tensor, positions: torch.Tensor, first: torch.Tensor, beginning: torch.Tensor, read: torch.Tensor
    ) -> torch.Tensor:
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[positions].to(dtype)
        for block in blocks:
            attn = block.attn
            qkv = linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)[beginning]
            q, k, v = qkv.view(*beginning.shape, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).flatten(0, 1)
            if block is blocks[-1]:  # nothing else is read out
                first, x = read, x[beginning.flatten()[read]]
            x = x + block.ls_1(attn.out_proj(mixed[first]))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        x, projection = tower.ln_final(x), tower.text_projection
        return x if projection is None else projection(x) if isinstance(projection, nn.Linear) else x @ projection  # type: ignore[no-any-return]  # open_clip is untyped

    return TextCut((CUT_TEXTS, SHARED_BEGINNINGS), lengths, inputs, forward)


def _is_plain(block: Any) -> bool:
    """Whether it is open_clip's own block, computing what `_causal` does."""
    attn = getattr(block, "attn", None)
    if (
        type(block) is not ResidualAttentionBlock
        or hasattr(block, "ln_1_kv")
        or type(attn) is not nn.MultiheadAttention
    ):
        return False
    return attn.batch_first and attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn


def _last(present: torch.Tensor) -> torch.Tensor:
    """The 1-based place of the last True in each row, 1 where there is none."""
    places = torch.arange(1, present.shape[1] + 1, device=present.device)
    return (present * places).amax(dim=-1).clamp(min=1)
