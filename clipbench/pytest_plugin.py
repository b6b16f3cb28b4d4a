"""The pytest face: options, models as parameters, verdicts as assertions, the run's files at the end of the session."""

import argparse
import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import pytest

from clipbench.errors import UsageError
from clipbench.paths import benchmarks
from clipbench.pytest_request import CACHE_VARIABLE, read_request
from clipbench.settings import CACHE_BYTES, PRECISIONS

_PLUGIN = "clipbench-benchmarks"
_OFFERED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Find the benchmarks of `--pyargs clipbench.benchmarks`, and offer our options once all other plugins have theirs.

    The name is turned into a path before pytest looks for it: in a checkout the benchmarks lie beside the package, and conftest.py
    files are loaded along the path to what runs, so those of another project keep out of it.
    """
    if early_config.known_args_namespace.pyargs:
        args[:] = [_path_of_module(argument) for argument in args]
        given = early_config.known_args_namespace.file_or_dir
        given[:] = [_path_of_module(argument) for argument in given]
    result = yield
    offer_options(early_config, parser, args)
    return result


def _path_of_module(argument: str) -> str:
    """The path of `clipbench.benchmarks` or a module in it, test names kept; any other argument as it is."""
    name, separator, test = argument.partition("::")
    package, *parts = name.removeprefix("clipbench.").split(".")
    if not name.startswith("clipbench.") or package != "benchmarks":
        return argument
    path = benchmarks().joinpath(*parts)
    return f"{path if path.is_dir() else path.with_suffix('.py')}{separator}{test}"


def _benchmark_folders(paths: Iterable[Path]) -> set[Path]:
    """The `benchmarks` folders, of whatever clipbench, that these paths are or lie in: beside its package or inside it."""
    real = [Path(os.path.realpath(path)) for path in paths]
    folders = {folder for path in real for folder in (path, *path.parents) if folder.name == "benchmarks"}
    return {folder for folder in folders if any(map(_is_clipbench, (folder.parent / "clipbench", folder.parent)))}


def _is_clipbench(package: Path) -> bool:
    return package.name == "clipbench" and os.path.isfile(package / "pytest_plugin.py")


def _named_paths(directory: Path, arguments: Iterable[str]) -> list[Path]:
    """What arguments of a command line may mean: a path in benchmarks/, or the checkout that has it."""
    paths = [directory / argument.split("::")[0] for argument in arguments]
    return [*paths, *(path / "benchmarks" for path in paths)]


def offer_options(config: pytest.Config, parser: pytest.Parser, arguments: Sequence[str]) -> None:
    """Add clipbench's options where the arguments name its benchmarks. Anywhere else their names are other people's.

    Raises: UsageError where the benchmarks named are not this clipbench's, and where an option's name is taken.
    """
    known, unknown = parser.parse_known_and_unknown_args(arguments)
    words = [*known.file_or_dir, *(word for word in unknown if not word.startswith("-")), *config.getini("testpaths")]
    directory = config.invocation_params.dir
    found = _benchmark_folders([directory, *_named_paths(directory, words)])
    for other in sorted(found - {Path(os.path.realpath(benchmarks()))}):
        raise pytest.UsageError(
            f"{other} belongs to another clipbench than the one that pytest loaded, {Path(__file__).parent}; "
            f"run `python -m pytest benchmarks` in {other.parent}, or install that one: pip install -e {other.parent}"
        )
    if found:
        try:
            _add_options(parser)
            parser.parse_known_args([])  # some versions of pytest look for names that are taken only now
        except (ValueError, argparse.ArgumentError) as error:
            raise pytest.UsageError(
                f"an option of clipbench's benchmarks is defined by another plugin or conftest.py, too ({error}); "
                "leave that out with -p no:NAME or --noconftest"
            ) from error
        config.stash[_OFFERED] = True


def _add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipbench", "clipbench: CLIP benchmarks")
    add = group.addoption
    add("--model", action="append", metavar="NAME", default=None,
        help="model to run: lite (default), OpenAI's or open_clip's name, study, all, or package.module:factory; "
        "repeatable, comma lists allowed")  # fmt: skip
    add("--pretrained", metavar="TAG|PATH|random[:SEED]", help="weights (default: openai)")
    add("--activation", choices=("quickgelu", "gelu"), help="activation of a checkpoint whose name does not say it")
    add("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--precision", choices=PRECISIONS, default="fp32", help="fp32 (default), bf16 or fp16")
    add("--batch-size", type=int, metavar="N", help="items a batch (default: 4 on a CPU, else 64)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="threads that decode and preprocess images (default: one a core, 8 at most)",
    )
    add(
        "--plain", action="store_true", help="take no shortcut: every row by the call that production makes, every time"
    )
    add("--cache", type=Path, metavar="DIR",
        help=f"keep rows in this folder and take those that are there (default: none, or ${CACHE_VARIABLE} outside of gates)")  # fmt: skip
    add("--cache-size", type=float, default=CACHE_BYTES / (1 << 30), metavar="GIB",
        help="how large the cache may grow; what was not used for longest goes first (default: %(default)g)")  # fmt: skip
    add("--coco", type=Path, metavar="ROOT", help="COCO in its official layout, in place of the packaged miniature")
    add("--coco-crop", choices=("square", "tight"), default="square",
        help="crops of ground-truth boxes: the published 1.5 x square with white padding (default), or the tight box")  # fmt: skip
    add("--roco", type=Path, metavar="ROOT", help="ROCO in its published layout: the study's own medical images")
    add("--zero-shot", action="append", metavar="NAME=ROOT", default=None, help="a folder of class folders; repeatable")
    add(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of the run's files (default: results)",
    )
    add("--baseline", type=Path, metavar="RUN.json", help="judge the session against this stored run")
    add(
        "--anchor",
        type=Path,
        metavar="RUN.json",
        help="judge the cumulative change against the run of a frozen release",
    )
    add(
        "--update-baseline",
        action="store_true",
        help="write this session's run to --baseline, with --reason, if it passed",
    )
    add("--reason", metavar="TEXT", help="why the baseline is updated; kept in it")
    add("--save-embeddings", action="store_true",
        help="save the rows of retrieval experiments in DIR/embeddings, for `clipbench compare --index`")  # fmt: skip
    add("--offline", action="store_true", help="open no internet connection (HF_HUB_OFFLINE=1 means the same)")
    add("--require-all", action="store_true", help="skips and inconclusive verdicts fail: what CI uses")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Look names and devices up before anything runs: what cannot be meant is a usage error (exit code 4)."""
    ours = _OFFERED in config.stash and _benchmark_folders(_named_paths(config.invocation_params.dir, config.args))
    if config.option.help or not ours:
        return
    if (
        hasattr(config, "workerinput")
        or getattr(config.option, "numprocesses", None)
        or getattr(config.option, "dist", "no") != "no"
    ):
        raise pytest.UsageError(
            "clipbench's benchmarks cannot run under xdist (-n, --dist): processes that share the cores or the GPU spoil every "
            "timing, each would load every model, and pytest-benchmark switches itself off; run them without -n"
        )
    config.addinivalue_line("markers", "needs_option(name): a benchmark that exists only when this option was given")
    from clipbench.pytest_session import BenchmarkSession

    try:
        config.pluginmanager.register(BenchmarkSession(config, read_request(config)), _PLUGIN)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
