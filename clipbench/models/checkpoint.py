"""Checkpoints from anywhere, as a plain state dict, and into a model: what does not fit exactly is refused.

Every way a file can be wrong ends in one CheckpointError that names it; nothing in it ever runs (see `containers`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from clipbench.errors import CheckpointError, UsageError
from clipbench.models.containers import read_container

T = TypeVar("T")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
# Sizes that OpenAI's archives store among the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
NESTED = ("state_dict", "model_state_dict", "model")  # open_clip's own name first
_SHOWN = 5  # keys named in a message
_HINT = "choose with --model the architecture, image size included, that these weights were trained as"
_POSITIONS = ("positional_embedding", "pos_embed")
_MAX_EXPANDED = 1 << 24  # elements of a tensor that repeats its storage: a small file cannot fill memory


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's weights on the CPU, before any cast.

    `container` is safetensors, torch (`torch.save`) or torchscript (OpenAI's archives). `tensors` may be
    mapped from the file: they are valid as long as nobody writes into it.
    """

    tensors: dict[str, torch.Tensor]
    file_sha256: str
    container: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the state dict in a file: safetensors, `torch.save` (bare or nested under NESTED), OpenAI's TorchScript.

    Prefixes that all names carry (WRAPPER_PREFIXES) and OPENAI_EXTRAS are dropped, nothing else.

    Raises: UsageError when there is no such file; CheckpointError when it is no checkpoint, is corrupt, or wants to run
    code.
    """
    if not path.exists():
        raise UsageError(f"checkpoint not found: {path}; give the path of a file")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {kind}, expected a checkpoint file; give the file inside it")
    try:
        with path.open("rb") as file:
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found, container = read_container(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk") from error
    tensors = strip_prefixes(_state_dict(found, path))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_EXTRAS}
    return Checkpoint(_plain(tensors, path), file_sha256, container)


def _state_dict(found: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors, where it lies or one level down."""
    top = found if isinstance(found, Mapping) else {}
    chosen = next((top[name] for name in NESTED if isinstance(top.get(name), Mapping)), top)
    other = [name for name, value in chosen.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if chosen and not [name for name in other if name not in OPENAI_EXTRAS]:
        return {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    got = f"entries such as {_first(map(repr, other))}" if other else f"an empty {type(found).__name__}"
    if not isinstance(found, Mapping):
        got = f"a {type(found).__name__}"
    raise CheckpointError(
        f"{path} holds no state dict: expected names with tensors, bare or under {', '.join(NESTED)}, got {got}; "
        f"save model.state_dict()"
    )


def strip_prefixes(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the mapping without the WRAPPER_PREFIXES that all of its names carry, in any order and number.

    A prefix that one name lacks, or that is all of a name, stays. Empty in, empty out.
    """
    stripped = dict(tensors)
    while stripped:
        for prefix in WRAPPER_PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in stripped):
                stripped = {name[len(prefix) :]: value for name, value in stripped.items()}
                break
        else:
            break
    return stripped


def _plain(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors detached; none that is not simply its elements (sparse, quantized, meta)."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device}); "
                f"save dense, unquantized weights"
            )
        if tensor.numel() > max(tensor.untyped_storage().nbytes() // tensor.element_size(), _MAX_EXPANDED):
            raise CheckpointError(
                f"{path}: {name} repeats a few elements up to {tuple(tensor.shape)}; save contiguous weights"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of a state dict, whatever file, prefix or order it came in.

    Hashed, for each name in code point order: one ASCII line `["NAME","DTYPE",[SIZES]]` and a newline (JSON without
    spaces; the dtype as torch calls it, without `torch.`), then the elements' bytes in row-major order, little-endian.
    So any other name, dtype, shape or bit is another hash. An empty dict hashes no bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        line = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        # Bytes by view: numpy has no bfloat16, and 1.7 GB should not be copied.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_into(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Copy a checkpoint's tensors, cast to the model's dtypes, into an open_clip model, every one of them.

    open_clip's own conversions apply (`open_clip.factory.load_checkpoint`), except one: positional embeddings of
    another size are refused, not interpolated. `path` only names the file in messages. After an error the model is of
    no use.

    Raises: CheckpointError when a value is NaN or infinite, or when names, shapes or kinds of number are not the
    model's.
    """
    state = without_derived(model, checkpoint.tensors)
    for name, tensor in state.items():
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values; use a checkpoint from before they arose"
            )
    try:
        state = _converted(model, state)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"open_clip's conversion fails ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} does not fit this model: {reason}; {_HINT}") from error
    expected = model.state_dict()
    if any(_kind(state[name]) != _kind(expected[name]) for name in state.keys() & expected.keys()):
        raise _misfit(path, state, expected)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _misfit(path, state, expected) from error


def without_derived(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without buffers that the model computes itself and does not save, but a scripted archive does (the causal mask).

    Only where they are equal. The mask holds -inf, so this comes before the look for broken values.
    """
    kept = dict(tensors)
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in saved and name in kept and torch.equal(kept[name].to(buffer), buffer):
            del kept[name]
    return kept


def _converted(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The steps of open_clip 3.3's `load_checkpoint`, in its order, without the resizing of positional embeddings."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = dict(convert_to_custom_text_state_dict(state))
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in state and own is not None and own.numel() == state[name].numel():
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)  # transformers before 4.31 saved it
    return state


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    # NaN and infinities show in the extremes; `isfinite().all()` takes 25 times as long.
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch orders no float8
    return all(bool(extreme.isfinite()) for extreme in wide.aminmax())


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], bool]:
    """What must agree: torch would cast quantized integers into floats, and take the first of many for a scalar."""
    return tuple(tensor.shape), tensor.is_floating_point()


def _misfit(path: Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> CheckpointError:
    differing = [name for name in expected if name in state and _kind(state[name]) != _kind(expected[name])]
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = (f"{n} is {_shape(state[n])} in the file, {_shape(expected[n])} in the model" for n in differing)
    found = [
        f"{len(names)} {what}: {_first(listed, separator)}"
        for names, what, listed, separator in (
            (differing, "differ", shapes, "; "),
            (missing, "missing", missing, ", "),
            (unexpected, "unexpected", unexpected, ", "),
        )
        if names
    ]
    hint = _HINT
    if differing and not missing and not unexpected and all(name.endswith(_POSITIONS) for name in differing):
        hint = f"positional embeddings are not interpolated, for that is another model: {_HINT}"
    return CheckpointError(
        f"{path} does not fit this model of {len(expected)} tensors. {'. '.join(found)}. Next: {hint}"
    )


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _first(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    return separator.join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
