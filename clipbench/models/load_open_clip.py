"""Loading through open_clip: a tag, a checkpoint's path, seeded random weights, or a folder; the activation is never a default.

Source: mlfoundations/open_clip; issue 1109 there is why the activation is never left to its default.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from clipbench.errors import CheckpointError, WeightsUnavailableError
from clipbench.models.checkpoint import Checkpoint, load_into, read_checkpoint, weights_sha256, without_derived
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.resolve import checkpoint_config
from clipbench.models.weights import fetch_tag
from clipbench.models.zoo import ModelSpec
from clipbench.result import ModelIdentity
from clipbench.settings import Precision

_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


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
    file = path if checkpoint else None
    return OpenClipEncoder(model, tokenizer, identity, activation_in_doubt=spec.source == "path", file=file)


def load_directory(folder: Path, name: str, device: str, precision: Precision) -> OpenClipEncoder:
    """Return the encoder in a folder with `open_clip_config.json` and safetensors weights, made by open_clip's factory.

    Raises: CheckpointError when the folder does not hold what open_clip expects.
    """
    location = f"local-dir:{folder}"
    file = folder / "open_clip_model.safetensors"
    checkpoint = read_checkpoint(file)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
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
    return OpenClipEncoder(model, tokenizer, identity, file=file)


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
    model = _create(spec, "fp32", "cpu", {}, offline, seed)
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
