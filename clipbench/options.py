"""What a session is asked to do: its options declared, read once, and refused at once where they cannot be meant.

What a project has chosen (`settings`) is the command line's default. Options for data are those that experiments ask for: a new data
set with a root of its own brings `--NAME ROOT` along.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from clipbench.data.dataset import Choice, DataOptions, Root
from clipbench.data.folders import ZERO_SHOT_ROOT
from clipbench.data.hub import PREFIX
from clipbench.data.own import DATASET_ROOT
from clipbench.embed.store import CACHE_BYTES
from clipbench.errors import ClipbenchError, UsageError, closest
from clipbench.experiments import all_experiments, experiment
from clipbench.models.grammar import parse_arguments
from clipbench.models.weights import go_offline
from clipbench.paths import CACHE_VARIABLE, LARGEST_RUN_BYTES, expanded
from clipbench.settings import FILE, NO_SETTINGS, PROJECT, Replacing, Settings, option_value, settings_for
from clipbench.types import Precision

if TYPE_CHECKING:
    import pytest

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SPEEDS = ("off", "note", "gate")
AS_GIVEN = ("pretrained", "activation", "device", "precision", "batch_size", "workers", "no_optimizations", "update_baseline",
    "save_embeddings", "no_images", "redact", "resume", "require_all", "allow_inconclusive", "speed", "max_cosine_distance")  # fmt: skip
"""The options that a command line gives as they are meant."""


FEWEST_ITEMS = 2
TABLES_OF_SETTINGS = ("rules", "tolerances", "floors", "prompts")
GATES: tuple[str, ...] = ("allow_inconclusive", "speed", "max_cosine_distance")
"""Options that are about cells of a base."""

NOTEBOOK = (
    "pretrained", "activation", "model_args", "device", "precision", "batch_size", "workers", "offline", "no_optimizations", "cache",
    "cache_bytes",
)  # fmt: skip
"""The options that `evaluate` serves; a session alone has a folder of results, references and gates."""


def data_roots() -> tuple[Root, ...]:
    """Return the folders of data that some experiment asks for, each once."""
    return tuple(dict.fromkeys(one.root for one in all_experiments().values() if one.root is not None))


def data_choices() -> tuple[Choice, ...]:
    """Return the choices that some experiment asks for, each once."""
    return tuple(dict.fromkeys(choice for one in all_experiments().values() for choice in one.choices))


def add_options(add: Callable[..., Any], settings: Settings = NO_SETTINGS) -> None:
    """Declare every option by a parser's method, with what a project has chosen as its default."""
    for name, how in declared_options().items():
        default = {"default": settings.options[name]} if name in settings.options else {}
        action = {"action": Replacing} if how.get("action") == "append" else {}
        names = how["names"]
        add(*names, **{key: value for key, value in how.items() if key != "names"} | default | action)


def declared_options() -> Mapping[str, Mapping[str, Any]]:
    """Return the arguments to argparse for each option, by its name in Python, and as `names` how it is spelt."""
    found: dict[str, Mapping[str, Any]] = {}

    def note(*names: str, **how: Any) -> None:
        found[how.get("dest") or names[0].lstrip("-").replace("-", "_")] = {**how, "names": names}

    _declare(note)
    return MappingProxyType(found)


def settings_of(arguments: Sequence[str], folder: Path) -> Settings:
    """Return the settings that a command line names (`--settings`), or those that are found from a folder on.

    Raises: any ClipbenchError of `settings.read_settings`.
    """
    words = [part for argument in arguments for part in argument.split("=", argument.startswith("--settings="))]
    name = next((value for option, value in pairwise(words) if option == "--settings"), None)
    return settings_for(name, folder, declared_options)


def _declare(add: Callable[..., Any]) -> None:
    # fmt: off
    add("--settings", metavar="FILE",
        help=f"the project's settings (default: {FILE}, or [tool.clipbench] of {PROJECT}, here or above; none: no file)")
    add("--model", action="append", metavar="NAME", default=None,
        help="model to run, [NAME=]KIND:REST: lite (default), OpenAI's or open_clip's name, study, all, package.module:factory, "
        "open_clip:ARCH@TAG, hf-hub:, local-dir:, hf:, onnx:, embeddings:, or a models.txt; repeatable, names in comma lists")
    add("--pretrained", metavar="TAG|PATH|random[:SEED]", help="weights (default: openai)")
    add("--activation", choices=("quickgelu", "gelu"), help="activation of a checkpoint whose name does not say it")
    add("--model-args", action="append", metavar="KEY=VALUE", default=None,
        help="what the models' loader takes, such as force_image_size=336; keyword arguments of a factory; repeatable")
    add("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--precision", choices=PRECISIONS, default="fp32", help="fp32 (default: IEEE float32, on CUDA too), tf32 (CUDA), bf16 or fp16")
    add("--batch-size", type=int, metavar="N", help="items per batch (default: 4 on a CPU, else 64)")
    add("--workers", type=int, metavar="N",
        help="threads that decode and preprocess images (default: one per core, 8 at most)")
    add("--no-optimizations", "--plain", action="store_true", dest="no_optimizations",
        help="measure every row by the reference path: the call that production makes, every time")
    add("--cache", type=Path, metavar="DIR",
        help=f"keep rows in this folder and take those that are there (default: none, or ${CACHE_VARIABLE} outside of gates)")
    add("--cache-size", type=float, default=CACHE_BYTES / (1 << 30), metavar="GIB",
        help="how large the cache may grow; what was not used for longest goes first (default: %(default)g)")
    for root in data_roots():
        if root.is_named:
            add(f"--{root.option}", action="append", metavar=root.metavar, default=None, help=root.help)
        else:
            add(f"--{root.option}", type=Path, metavar=root.metavar, help=root.help)
    add("--limit", type=int, metavar="N",
        help="a quick look: N items of each data set, the same ones every time; the protocol names it")
    add("--experiments", action="append", metavar="NAMES", default=None,
        help="measure these alone, by exact name, in comma lists; `clipbench list` has them")
    for choice in data_choices():
        add(f"--{choice.option}", choices=choice.values, default=choice.values[0], help=choice.help)
    add("--results", type=Path, default=Path("results"), metavar="DIR",
        help="folder of the run's files (default: results)")
    add("--no-images", action="store_true", help="leave pictures out of summary.html, and keep none in DIR/thumbs")
    add("--baseline", type=Path, metavar="RUN.json", help="judge the session against this stored run")
    add("--anchor", type=Path, metavar="RUN.json",
        help="judge the cumulative change against the run of a frozen release")
    add("--max-file-size", type=int, default=LARGEST_RUN_BYTES // 1_000_000, metavar="MB",
        help="the largest baseline or anchor that is read, in 1,000,000 bytes (default: %(default)s)")
    add("--accept", action="append", metavar="CELL", default=None,
        help="accept what a cell says, by its id as it was printed, with --reason; repeatable")
    add("--only", action="append", metavar="GLOB", default=None,
        help="judge these cells of the baseline alone, by glob (or experiment); repeatable")
    add("--allow-inconclusive", action="store_true",
        help="let cells of a baseline that are inconclusive pass; they are named")
    add("--speed", choices=SPEEDS, default="note",
        help="what a change of speed does: off, note (default) or gate")
    add("--max-cosine-distance", type=float, metavar="D",
        help="fail where any item's row moved by more than this cosine distance: for owners of an index")
    add("--update-baseline", action="store_true",
        help="write this session's run to --baseline, with --reason, if no cell stands against it")
    add("--reason", metavar="TEXT", help="why cells are accepted, or the baseline is updated; kept in it")
    add("--save-embeddings", action="store_true",
        help="save the rows of retrieval experiments in DIR/embeddings, for `clipbench compare --index`")
    add("--redact", action="store_true",
        help="call the items, captions, labels and files of data that you give by hashes, in the run and in every report, "
        "which show no pictures")
    add("--resume", "--skip-existing", action="store_true", dest="resume",
        help="continue the session on DIR that did not come to its end: what it measured is taken over where everything is the same and a "
        "sample of its rows, encoded again, is")
    add("--offline", action="store_true", help="open no internet connection (HF_HUB_OFFLINE=1 means the same)")
    add("--require-all", action="store_true", help="what is skipped, inconclusive, or held to nothing fails: what CI uses")
    # fmt: on


@dataclass(frozen=True)
class Options:
    """What was asked for, before any name was looked up. Paths are absolute where they come from a command line.

    `cache`: the folder of the embedding cache, kept within `cache_bytes`; 0 bytes, which no cache accepts, stand for no number.
    """

    models: tuple[str, ...] = ("lite",)
    pretrained: str | None = None
    activation: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    no_optimizations: bool = False
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES
    data: DataOptions = field(default_factory=DataOptions)
    experiments: tuple[str, ...] = ()
    results: Path = Path("results")
    benchmark_json: Path | None = None
    baseline: Path | None = None
    anchor: Path | None = None
    largest_run_bytes: int = LARGEST_RUN_BYTES
    accept: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    allow_inconclusive: bool = False
    speed: Literal["off", "note", "gate"] = "note"
    max_cosine_distance: float | None = None
    update_baseline: bool = False
    reason: str = ""
    save_embeddings: bool = False
    no_images: bool = False
    redact: bool = False
    resume: bool = False
    offline: bool = False
    require_all: bool = False
    settings: Settings = NO_SETTINGS

    @property
    def shows(self) -> Literal["all", "texts", "numbers"]:
        """What a summary shows of items."""
        return "numbers" if self.redact else "texts" if self.no_images else "all"

    @property
    def is_gate(self) -> bool:
        """True where a stored run judges this one, or this one is to be stored: everything is executed then."""
        return self.baseline is not None or self.anchor is not None

    def hashes(self) -> dict[str, str]:
        """Return a hash of what each option was given, by its name: what a session must have alike that continues another."""
        spelt, apart = {"models": "model", "cache_bytes": "cache-size"}, {"data", "settings", "results", "resume"}
        apart |= {"benchmark_json", "largest_run_bytes", "save_embeddings", "update_baseline", "reason"}
        given = {
            spelt.get(one.name, one.name): getattr(self, one.name) for one in fields(self) if one.name not in apart
        }
        given |= {root.option: self.data.folders(root) for root in data_roots()} | {"limit": self.data.limit}
        given |= {choice.option: self.data.chosen(choice) for choice in data_choices()}
        named = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
        named |= {f"{name} of the settings": getattr(self.settings, name) for name in TABLES_OF_SETTINGS}
        return {name: hashlib.sha256(repr(value).encode()).hexdigest()[:16] for name, value in named.items()}

    @classmethod
    def from_pytest(cls, config: pytest.Config, settings: Settings = NO_SETTINGS) -> Options:
        """Return what the command line and the environment ask for; relative paths start from where pytest was called.

        Raises: UsageError for options that need or exclude each other, what is not there, what is no run, and places that cannot
        be written to.
        """
        given = config.option
        if getattr(given, "codspeed", False):
            raise UsageError(
                "CodSpeed takes the place of pytest-benchmark, by which clipbench's benchmarks are timed: run them without --codspeed, and "
                "your own tests with it"
            )
        if not hasattr(given, "benchmark_json"):
            raise UsageError("clipbench's benchmarks need pytest-benchmark; drop -p no:benchmark, or install it")
        if given.require_all and (given.benchmark_skip or given.benchmark_only):
            raise UsageError(
                "--require-all does not go with --benchmark-skip or --benchmark-only, which leave benchmarks out"
            )
        return cls.from_arguments(vars(given), config.invocation_params.dir, settings)

    @classmethod
    def from_arguments(cls, given: Mapping[str, Any], folder: Path, settings: Settings = NO_SETTINGS) -> Options:
        """Return what parsed arguments and the environment ask for; relative paths start from `folder`. Raises: as `from_pytest`."""

        def path(value: Path | str | None) -> Path | None:
            return folder / expanded(value) if value else None

        # The environment's setting is no wish of this session's: what decides something does not follow it.
        ignores_environment = any(given[name] for name in ("require_all", "baseline", "anchor", "no_optimizations"))
        cache = given["cache"] or (None if ignores_environment else os.environ.get(CACHE_VARIABLE))
        options = cls(
            **{name: given[name] for name in AS_GIVEN},
            models=tuple(given["model"] or ("lite",)),
            model_args=parse_arguments(given["model_args"] or ()),
            cache=path(cache),
            cache_bytes=int(given["cache_size"] * (1 << 30)) if math.isfinite(given["cache_size"]) else 0,
            data=replace(_data_options(given, folder), limit=given["limit"]),
            experiments=tuple(name for value in given["experiments"] or () for name in value.split(",")),
            results=folder / expanded(given["results"]),
            benchmark_json=path(given.get("benchmark_json")),
            baseline=path(given["baseline"]),
            anchor=path(given["anchor"]),
            largest_run_bytes=given["max_file_size"] * 1_000_000,
            accept=tuple(given["accept"] or ()),
            only=tuple(given["only"] or ()),
            reason=(given["reason"] or "").strip(),
            offline=given["offline"] or is_offline(),
            settings=settings,
        )._without_idle_settings()
        options._keep_offline()
        options._check()
        options = options._of_this_testbed()
        options._check_references()
        options._check_targets()
        return options

    def _without_idle_settings(self) -> Options:
        """What settings say of gates means nothing in a session that is none, and of weights nothing to a model that they do not name."""
        chosen = self.settings.options
        idle = GATES if not self.is_gate else ()
        idle += ("pretrained", "activation") if self.models != tuple(chosen.get("model", self.models)) else ()
        default: dict[str, Any] = {one.name: one.default for one in fields(self)}
        return replace(self, **{n: default[n] for n in idle if n in chosen and getattr(self, n) == chosen[n]})

    def _of_this_testbed(self) -> Options:
        """A baseline and an anchor for the device and precision that this session has, where their names leave that open.

        Raises: UsageError for an unknown field, or where nobody made one for this device yet.
        """
        found: dict[str, Any] = {}
        for option, path in (("baseline", self.baseline), ("anchor", self.anchor)):
            if path is None or "{" not in str(path):
                continue
            from clipbench.models.device import device_name, resolve_device

            device = device_name(resolve_device(self.device))
            values = {"device": re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-"), "precision": self.precision}
            try:
                found[option] = Path(str(path).format_map(values))
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise UsageError(
                    f"--{option} {path}: expected {{device}} and {{precision}}, and no other field"
                ) from error
            if not found[option].exists() and not (option == "baseline" and self.update_baseline):
                raise UsageError(
                    f"no {option} for {device} in {self.precision}: {found[option]} is not there; make one with "
                    "--update-baseline --reason TEXT, on that device"
                )
        return replace(self, **found)

    @classmethod
    def from_kwargs(cls, **given: Any) -> Options:
        """Return options of a notebook: those of NOTEBOOK, and folders of data and choices by their option's name
        (coco=ROOT, zero_shot={NAME: ROOT}, coco_crop="tight").

        Raises: UsageError for an unknown name, with the likeliest; for values that cannot be; for folders that are not there.
        """
        given = {("no_optimizations" if name == "plain" else name): value for name, value in given.items()}
        known = [*NOTEBOOK, "limit", *map(_dest, data_roots()), *map(_dest, data_choices())]
        if (unknown := next((name for name in given if name not in known), None)) is not None:
            likely = closest(unknown, known) or ", ".join(known)
            raise UsageError(f"unknown setting {unknown!r}; did you mean {likely}?")
        chosen = {name: given[name] for name in NOTEBOOK if name in given}
        for name in sorted(chosen.keys() & declared_options().keys()):
            if chosen[name] not in (None, ""):
                option_value(f"setting {name}", chosen[name], declared_options()[name], Path())
        chosen["cache"] = expanded(given["cache"]) if given.get("cache") else None
        chosen["offline"] = bool(given.get("offline")) or is_offline()
        options = cls(**chosen, data=replace(_data_options(given, Path()), limit=given.get("limit")))
        options._keep_offline()
        options._check()
        return options

    def timed_by(self, model: str, word: str = "") -> list[str]:
        """Return the options of a process that times a model as this session does (see `ab.read_options`).

        `word`: what `--model` takes to mean it alone, its weights included.
        """
        words = ["--model", word or model, "--device", self.device, "--precision", self.precision]
        words += ["--pretrained", self.pretrained] if self.pretrained and not word else []
        words += ["--activation", self.activation] if self.activation else []
        words += [
            word for key, value in self.model_args.items() for word in ("--model-args", f"{key}={json.dumps(value)}")
        ]
        words += ["--batch-size", str(self.batch_size)] if self.batch_size else []
        return words + (["--offline"] if self.offline else [])

    def datasets_of(self, name: str) -> list[str]:
        """Return the names of the data sets that an experiment has with these options. Raises: UsageError for an unknown one."""
        return [source.name for source in experiment(name).sources(self.data)]

    def own_data(self, name: str) -> list[str]:
        """Return those of an experiment's data sets that somebody gave, by whatever option: the others are packaged, and public."""
        packaged = {source.name for source in experiment(name).sources(DataOptions())}
        return [source for source in self.datasets_of(name) if source not in packaged]

    def _keep_offline(self) -> None:
        """Before data of a hub are looked at."""
        if self.offline and any(str(path).startswith(PREFIX) for _, path in self.data.folders(DATASET_ROOT)):
            go_offline()

    def _check(self) -> None:
        """Raises: UsageError for values that cannot be, however they were given."""
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.precision}: expected one of {', '.join(PRECISIONS)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: expected 1 or more")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected 0 or more")
        if self.no_optimizations and self.cache is not None:
            raise UsageError(
                "--cache keeps rows for optimizations, and --no-optimizations (--plain) takes none; drop one"
            )
        for choice in data_choices():
            if (chosen := self.data.chosen(choice)) not in choice.values:
                raise UsageError(f"--{choice.option} {chosen}: expected one of {', '.join(choice.values)}")
        for root in data_roots():
            names = [name for name, _ in self.data.folders(root)]
            if twice := next((name for name in names if names.count(name) > 1), ""):
                raise UsageError(f"--{root.option} {twice}=... is given twice; each folder needs a name of its own")
            for name, folder in self.data.folders(root):
                given = f"{name}={folder}" if root.is_named else folder
                if not folder.exists() and not (root == DATASET_ROOT and str(folder).startswith(PREFIX)):
                    raise UsageError(f"--{root.option} {given}: no such folder; give the data set's root")
                try:
                    if root.check is not None:
                        root.check(name, folder)
                except ClipbenchError as error:
                    raise UsageError(f"--{root.option} {given}: {error}") from error
        both = [name for root in (ZERO_SHOT_ROOT, DATASET_ROOT) for name, _ in self.data.folders(root)]
        if twice := next((name for name in both if both.count(name) > 1), ""):
            raise UsageError(
                f"--zero-shot and --dataset are both given {twice}=...; each data set needs a name of its own"
            )
        if self.data.limit is not None and self.data.limit < FEWEST_ITEMS:
            raise UsageError(
                f"--limit {self.data.limit}: expected {FEWEST_ITEMS} or more; with one item nothing can be mistaken"
            )
        for name in self.experiments:
            if not self.datasets_of(name):
                asked = experiment(name).root
                how = f"; give its folder: --{asked.option} {asked.metavar}" if asked else ""
                raise UsageError(f"--experiments {name} has no data{how}")

    def _check_references(self) -> None:
        if self.update_baseline and not (self.baseline and self.reason):
            raise UsageError(
                "--update-baseline needs --baseline PATH (what to write) and --reason TEXT (why it is accepted)"
            )
        for option, is_given in (
            ("--accept", self.accept),
            ("--only", self.only),
            ("--allow-inconclusive", self.allow_inconclusive),
            ("--max-cosine-distance", self.max_cosine_distance is not None),
            ("--speed gate", self.speed == "gate"),
        ):
            if is_given and not self.is_gate:
                raise UsageError(
                    f"{option} is about cells of a base: give --baseline RUN.json or --anchor RUN.json, too"
                )
        if self.accept and not self.reason:
            raise UsageError("--accept needs --reason TEXT: why is that accepted?")
        if self.reason and not (self.update_baseline or self.accept):
            raise UsageError("--reason says why: give --accept CELL or --update-baseline, too")
        if self.allow_inconclusive and self.require_all:
            raise UsageError("--allow-inconclusive and --require-all ask for opposite things; drop one")
        if self.redact and self.save_embeddings:
            raise UsageError(
                "--save-embeddings keeps ids and captions beside the rows, which --redact leaves out; drop one"
            )
        if self.resume and self.update_baseline:
            raise UsageError(
                "--resume takes over what another session measured, and --update-baseline stores what this one did; drop one"
            )
        if self.resume and self.save_embeddings:
            raise UsageError("--save-embeddings saves rows, and --resume takes over results without them; drop one")
        if self.only and self.update_baseline:
            raise UsageError("--only leaves cells unjudged, and --update-baseline needs all of them; drop one")
        if self.max_cosine_distance is not None and not 0 < self.max_cosine_distance <= 2:
            raise UsageError(f"--max-cosine-distance {self.max_cosine_distance}: expected a number above 0, 2 at most")
        if self.baseline and not self.baseline.exists() and not self.update_baseline:
            raise UsageError(
                f"--baseline {self.baseline} is not there; make the first one with --update-baseline --reason TEXT"
            )
        if self.anchor and not self.anchor.exists():
            raise UsageError(f"--anchor {self.anchor} is not there; give the run file of a frozen release")

    def _check_targets(self) -> None:
        """Raises: UsageError, before anything is measured, for what could only fail at the end."""
        if self.results.exists() and not self.results.is_dir():
            raise UsageError(f"--results {self.results} is a file; give a folder")
        if self.benchmark_json and self.benchmark_json.is_dir():
            raise UsageError(f"--benchmark-json {self.benchmark_json} is a folder; give a file")
        for path in filter(None, (self.results, self.benchmark_json and self.benchmark_json.parent)):
            parent = next(p for p in (path, *path.parents) if p.exists())
            try:
                tempfile.TemporaryFile(dir=parent).close()
            except OSError as error:
                reason = f"{parent} is no folder that can be written to ({error.strerror})"
                raise UsageError(f"{path} cannot be written: {reason}; choose another") from error


def is_offline() -> bool:
    """Return whether the environment forbids connections, as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _dest(one: Root | Choice) -> str:
    """The name under which argparse and keyword arguments have an option."""
    return one.option.replace("-", "_")


def _data_options(given: Mapping[str, Any], start: Path) -> DataOptions:
    """Folders and choices of data among what was given; relative folders begin at `start`."""
    return DataOptions(
        {root.option: _folders(root, given[_dest(root)], start) for root in data_roots() if given.get(_dest(root))},
        {choice.option: given[_dest(choice)] for choice in data_choices() if _dest(choice) in given},
    )


def _folders(root: Root, given: Any, start: Path) -> tuple[tuple[str, Path], ...]:
    """(name, folder) pairs of what was given for a root: a path, NAME=ROOT texts, or a mapping."""
    if not root.is_named:
        return (("", start / expanded(given)),)
    if isinstance(given, Mapping):
        return tuple((str(name), _place(start, path)) for name, path in given.items())
    folders = []
    for pair in [given] if isinstance(given, str) else given:
        name, _, path = str(pair).partition("=")
        if not (name and path):
            raise UsageError(f"--{root.option} {pair}: expected NAME=ROOT, for example imagenet1k=/data/imagenet/val")
        folders.append((name, _place(start, path)))
    return tuple(folders)


def _place(start: Path, given: Path | str) -> Path:
    """A path from where the command was called; a place on a hub is none."""
    return Path(given) if str(given).startswith(PREFIX) else start / expanded(given)
