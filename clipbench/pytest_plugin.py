"""The pytest face: options, models as parameters, verdicts as assertions, the run's files at the end of the session."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipbench.errors import UsageError
from clipbench.paths import benchmarks
from clipbench.pytest_request import CACHE_VARIABLE, read_request
from clipbench.settings import CACHE_BYTES, PRECISIONS

_PLUGIN = "clipbench-benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add clipbench's options in a group of their own."""
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


def touches_benchmarks(config: pytest.Config) -> bool:
    """True when the session's arguments reach the benchmark files, by path or by `--pyargs clipbench.benchmarks`."""
    root = benchmarks().resolve()
    installed = "site-packages" in root.parts
    for argument in config.args:
        name = argument.split("::")[0]
        if config.option.pyargs and name.split(".")[:2] == ["clipbench", "benchmarks"]:
            return True
        path = Path(config.invocation_params.dir, name).resolve()
        if path == root or root in path.parents or (path in root.parents and not installed):
            return True
    return False


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Look names and devices up before anything runs: what cannot be meant is a usage error (exit code 4)."""
    if config.option.help or not touches_benchmarks(config):
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every benchmark once a model; the session's scope keeps each model's tests together."""
    if "subject" in metafunc.fixturenames:
        running = metafunc.config.pluginmanager.get_plugin(_PLUGIN)
        if running is None:
            raise pytest.UsageError(
                "a test asks for clipbench's fixture `subject` outside benchmarks/; run `pytest benchmarks`"
            )
        metafunc.parametrize("subject", list(running.specs), indirect=True, scope="session")
        if "zero_shot_name" in metafunc.fixturenames:
            metafunc.parametrize("zero_shot_name", [name for name, _ in running.zero_shot])


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The model under test: loaded when it is first asked for, freed before the next one."""
    running: Any = request.config.pluginmanager.get_plugin(_PLUGIN)
    yield running.subject(request.param)
    running.free()
