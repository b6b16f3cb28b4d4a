"""What a session of benchmarks is asked to do: its options declared, read once, and refused at once where they cannot be meant."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbench.errors import UsageError
from clipbench.settings import CACHE_BYTES, PRECISIONS, CocoCrop, Precision, Settings

if TYPE_CHECKING:
    import pytest

CACHE_VARIABLE = "CLIPBENCH_CACHE"


def add_options(parser: pytest.Parser) -> None:
    """Declare every option, in a group of their own."""
    add = parser.getgroup("clipbench", "clipbench: CLIP benchmarks").addoption
    # fmt: off
    add("--model", action="append", metavar="NAME", default=None,
        help="model to run: lite (default), OpenAI's or open_clip's name, study, all, or package.module:factory; "
        "repeatable, comma lists allowed")
    add("--pretrained", metavar="TAG|PATH|random[:SEED]", help="weights (default: openai)")
    add("--activation", choices=("quickgelu", "gelu"), help="activation of a checkpoint whose name does not say it")
    add("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--precision", choices=PRECISIONS, default="fp32", help="fp32 (default), bf16 or fp16")
    add("--batch-size", type=int, metavar="N", help="items per batch (default: 4 on a CPU, else 64)")
    add("--workers", type=int, metavar="N",
        help="threads that decode and preprocess images (default: one per core, 8 at most)")
    add("--no-optimizations", "--plain", action="store_true", dest="no_optimizations",
        help="measure every row by the reference path: the call that production makes, every time")
    add("--cache", type=Path, metavar="DIR",
        help=f"keep rows in this folder and take those that are there (default: none, or ${CACHE_VARIABLE} outside of gates)")
    add("--cache-size", type=float, default=CACHE_BYTES / (1 << 30), metavar="GIB",
        help="how large the cache may grow; what was not used for longest goes first (default: %(default)g)")
    add("--coco", type=Path, metavar="ROOT", help="COCO in its official layout, in place of the packaged miniature")
    add("--coco-crop", choices=("square", "tight"), default="square",
        help="crops of ground-truth boxes: the published 1.5 x square with white padding (default), or the tight box")
    add("--roco", type=Path, metavar="ROOT", help="ROCO in its published layout: the study's own medical images")
    add("--zero-shot", action="append", metavar="NAME=ROOT", default=None, help="a folder of class folders; repeatable")
    add("--results", type=Path, default=Path("results"), metavar="DIR",
        help="folder of the run's files (default: results)")
    add("--baseline", type=Path, metavar="RUN.json", help="judge the session against this stored run")
    add("--anchor", type=Path, metavar="RUN.json",
        help="judge the cumulative change against the run of a frozen release")
    add("--update-baseline", action="store_true",
        help="write this session's run to --baseline, with --reason, if it passed")
    add("--reason", metavar="TEXT", help="why the baseline is updated; kept in it")
    add("--save-embeddings", action="store_true",
        help="save the rows of retrieval experiments in DIR/embeddings, for `clipbench compare --index`")
    add("--offline", action="store_true", help="open no internet connection (HF_HUB_OFFLINE=1 means the same)")
    add("--require-all", action="store_true", help="skips and inconclusive verdicts fail: what CI uses")
    # fmt: on


@dataclass(frozen=True)
class Options:
    """What was asked for, before any name was looked up. Paths are absolute; `zero_shot` holds pairs of name and folder.

    `cache`: the folder of the embedding cache, kept within `cache_bytes`; 0 bytes, which no cache accepts, stand for no number.
    """

    models: tuple[str, ...]
    pretrained: str | None
    activation: str | None
    device: str
    precision: Precision
    batch_size: int | None
    workers: int | None
    no_optimizations: bool
    cache: Path | None
    cache_bytes: int
    coco: Path | None
    coco_crop: CocoCrop
    roco: Path | None
    zero_shot: tuple[tuple[str, Path], ...]
    results: Path
    benchmark_json: Path | None
    baseline: Path | None
    anchor: Path | None
    update_baseline: bool
    reason: str
    save_embeddings: bool
    offline: bool
    require_all: bool

    @classmethod
    def from_pytest(cls, config: pytest.Config) -> Options:
        """Return what the command line and the environment ask for; relative paths start from where pytest was called.

        Raises: UsageError for options that need or exclude each other, what is not there, what is no run, and places that cannot
        be written to.
        """
        given, folder = config.option, config.invocation_params.dir
        if not hasattr(given, "benchmark_json"):
            raise UsageError("clipbench's benchmarks need pytest-benchmark; drop -p no:benchmark, or install it")
        if given.require_all and (given.benchmark_skip or given.benchmark_only):
            raise UsageError(
                "--require-all does not go with --benchmark-skip or --benchmark-only, which leave benchmarks out"
            )
        if given.no_optimizations and given.cache is not None:
            raise UsageError(
                "--cache keeps rows for optimizations, and --no-optimizations (--plain) takes none; drop one"
            )

        def path(value: Path | str | None) -> Path | None:
            return Path(folder, value) if value else None

        # The environment's setting is no wish of this session's: what decides something does not follow it.
        ignores_environment = given.require_all or given.baseline or given.anchor or given.no_optimizations
        cache = given.cache or (None if ignores_environment else os.environ.get(CACHE_VARIABLE))
        options = cls(
            models=tuple(given.model or ("lite",)),
            pretrained=given.pretrained,
            activation=given.activation,
            device=given.device,
            precision=given.precision,
            batch_size=given.batch_size,
            workers=given.workers,
            no_optimizations=given.no_optimizations,
            cache=path(cache and Path(cache).expanduser()),
            cache_bytes=int(given.cache_size * (1 << 30)) if math.isfinite(given.cache_size) else 0,
            coco=path(given.coco),
            coco_crop=given.coco_crop,
            roco=path(given.roco),
            zero_shot=tuple(_named_folder(text, folder) for text in given.zero_shot or ()),
            results=Path(folder, given.results),
            benchmark_json=path(given.benchmark_json),
            baseline=path(given.baseline),
            anchor=path(given.anchor),
            update_baseline=given.update_baseline,
            reason=(given.reason or "").strip(),
            save_embeddings=given.save_embeddings,
            offline=given.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
            require_all=given.require_all,
        )
        options._check_references()
        options._check_targets()
        options._check_data()
        return options

    @property
    def is_gate(self) -> bool:
        """True for a session that decides something: then the model itself answers for every row."""
        return bool(self.require_all or self.baseline or self.anchor)

    def settings(self, **more: Any) -> Settings:
        """Return the settings to measure with, the device looked up. Raises: UsageError as `make_settings`."""
        from clipbench.session import make_settings

        return make_settings(
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
            offline=self.offline,
            coco=self.coco,
            coco_crop=self.coco_crop,
            roco=self.roco,
            zero_shot=self.zero_shot,
            plain=self.no_optimizations,
            cache=self.cache,
            cache_bytes=self.cache_bytes,
            must_check=self.is_gate,
            **more,
        )

    def _check_references(self) -> None:
        if self.update_baseline and not (self.baseline and self.reason):
            raise UsageError(
                "--update-baseline needs --baseline PATH (what to write) and --reason TEXT (why it is accepted)"
            )
        if self.reason and not self.update_baseline:
            raise UsageError("--reason says why a baseline is updated: give --update-baseline, too")
        if self.baseline and not self.baseline.exists() and not self.update_baseline:
            raise UsageError(
                f"--baseline {self.baseline} is not there; make the first one with --update-baseline --reason TEXT"
            )
        if self.anchor and not self.anchor.exists():
            raise UsageError(f"--anchor {self.anchor} is not there; give the run file of a frozen release")
        for path in (self.baseline, self.anchor):
            if path is not None and path.exists():
                from clipbench.run_file import RunFormatError, read_run

                try:
                    read_run(path)
                except RunFormatError as error:
                    raise UsageError(str(error)) from error

    def _check_targets(self) -> None:
        """Raises: UsageError, before anything is measured, for what could only fail at the end."""
        if self.results.exists() and not self.results.is_dir():
            raise UsageError(f"--results {self.results} is a file; give a folder")
        if self.benchmark_json and self.benchmark_json.is_dir():
            raise UsageError(f"--benchmark-json {self.benchmark_json} is a folder; give a file")
        for path in filter(None, (self.results, self.benchmark_json and self.benchmark_json.parent)):
            parent = next(p for p in (path, *path.parents) if p.exists())
            if not (parent.is_dir() and os.access(parent, os.W_OK)):
                raise UsageError(
                    f"{path} cannot be written: {parent} is no folder that can be written to; choose another"
                )

    def _check_data(self) -> None:
        names = [name for name, _ in self.zero_shot]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UsageError(f"--zero-shot {twice}=... is given twice; each folder needs a name of its own")
        named = ((f"--zero-shot {name}=", root) for name, root in self.zero_shot)
        for option, root in (("--coco ", self.coco), ("--roco ", self.roco), *named):
            if root is not None and not root.is_dir():
                raise UsageError(f"{option}{root}: no such folder; give the data set's root")


def _named_folder(text: str, folder: Path) -> tuple[str, Path]:
    name, separator, root = text.partition("=")
    if not (name and separator and root):
        raise UsageError(f"--zero-shot {text}: expected NAME=ROOT, for example imagenet1k=/data/imagenet/val")
    return name, folder / root
