"""What a session of benchmarks was asked: read once from pytest's options, and refused at once where it cannot be meant."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from clipbench.errors import UsageError
from clipbench.pytest_baseline import check_request
from clipbench.settings import Request, Settings

CACHE_VARIABLE = "CLIPBENCH_CACHE"


def read_request(config: pytest.Config) -> Request:
    """Return what the command line and the environment ask for; relative paths start from where pytest was called."""
    option = config.option
    return Request(
        models=tuple(option.model or ("lite",)),
        pretrained=option.pretrained,
        activation=option.activation,
        device=option.device,
        precision=option.precision,
        batch_size=option.batch_size,
        workers=option.workers,
        results=Path(config.invocation_params.dir, option.results),
        offline=option.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        require_all=option.require_all,
        coco=option.coco and Path(config.invocation_params.dir, option.coco),
        coco_crop=option.coco_crop,
        roco=option.roco and Path(config.invocation_params.dir, option.roco),
        zero_shot=tuple(option.zero_shot or ()),
        baseline=option.baseline and Path(config.invocation_params.dir, option.baseline),
        anchor=option.anchor and Path(config.invocation_params.dir, option.anchor),
        update_baseline=option.update_baseline,
        reason=option.reason,
        save_embeddings=option.save_embeddings,
        folder=Path(config.invocation_params.dir),
        plain=option.plain,
        cache=_cache(config),
        cache_bytes=_bytes(option.cache_size),
        is_gate=is_gate(config),
    )


def _cache(config: pytest.Config) -> Path | None:
    """--cache, else the environment's setting: that is no wish of this session's, so a gate does not follow it."""
    setting = os.environ.get(CACHE_VARIABLE, "")
    if config.option.cache is None and (not setting or is_gate(config) or config.option.plain):
        return None
    return Path(config.invocation_params.dir, config.option.cache or setting).expanduser()


def _bytes(gib: float) -> int:
    """So many GiB in bytes; 0, which no cache accepts, for what is no number."""
    return int(gib * (1 << 30)) if math.isfinite(gib) else 0


def is_gate(config: pytest.Config) -> bool:
    """Return True for a session that decides something: then the model itself answers for every row."""
    option = config.option
    return bool(option.require_all or option.baseline or option.anchor)


def checked_folders(config: pytest.Config, request: Request) -> tuple[tuple[str, Path], ...]:
    """Return the name and folder of each --zero-shot.

    Raises: UsageError for options that cannot go together, folders that are not there, and places that cannot be written to.
    """
    check_request(request)
    if request.results.exists() and not request.results.is_dir():
        raise UsageError(f"--results {request.results} is a file; give a folder")
    if request.plain and config.option.cache is not None:
        raise UsageError("--cache keeps rows for shortcuts, and --plain takes none; drop one")
    _check_targets(config, request)
    zero_shot = tuple(_named_folder(text, request.folder) for text in request.zero_shot)
    names = [name for name, _ in zero_shot]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"--zero-shot {twice}=... is given twice; each folder needs a name of its own")
    named = ((f"--zero-shot {name}=", root) for name, root in zero_shot)
    for option, root in (("--coco ", request.coco), ("--roco ", request.roco), *named):
        if root is not None and not root.is_dir():
            raise UsageError(f"{option}{root}: no such folder; give the data set's root")
    return zero_shot


def measuring(request: Request, zero_shot: tuple[tuple[str, Path], ...], **more: Any) -> Settings:
    """Return the settings to measure with, the device looked up. Raises: UsageError as `make_settings`."""
    from clipbench.session import make_settings

    same = (
        "device",
        "precision",
        "batch_size",
        "workers",
        "offline",
        "coco",
        "coco_crop",
        "roco",
        "plain",
        "cache",
        "cache_bytes",
    )
    asked = {name: getattr(request, name) for name in same}
    return make_settings(**asked, zero_shot=zero_shot, must_check=request.is_gate, **more)


def _check_targets(config: pytest.Config, request: Request) -> None:
    """Raises: UsageError, before anything is measured, for what could only fail or lie at the end."""
    if not hasattr(config.option, "benchmark_json"):
        raise UsageError("clipbench's benchmarks need pytest-benchmark; drop -p no:benchmark, or install it")
    if request.require_all and (config.option.benchmark_skip or config.option.benchmark_only):
        raise UsageError(
            "--require-all does not go with --benchmark-skip or --benchmark-only, which leave benchmarks out"
        )
    target = config.option.benchmark_json
    if target is not None and Path(request.folder, target).is_dir():
        raise UsageError(f"--benchmark-json {target} is a folder; give a file")
    for path in filter(None, (request.results, target and Path(request.folder, target).parent)):
        parent = next(p for p in (path, *path.parents) if p.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise UsageError(f"{path} cannot be written: {parent} is no folder that can be written to; choose another")


def _named_folder(text: str, folder: Path) -> tuple[str, Path]:
    name, separator, root = text.partition("=")
    if not (name and separator and root):
        raise UsageError(f"--zero-shot {text}: expected NAME=ROOT, for example imagenet1k=/data/imagenet/val")
    return name, folder / root
