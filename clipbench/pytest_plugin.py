"""The pytest plugin: options where benchmarks are named, models as parameters, verdicts as assertions, files at the end.

It is loaded in every session of a project that has clipbench installed, so whatever is heavy is imported where it is used.
"""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import os
import signal
import threading
import unittest
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from clipbench.errors import (
    ClipbenchError,
    DataUnavailableError,
    EncoderError,
    UsageError,
    WeightsUnavailableError,
    sanitize,
)
from clipbench.paths import benchmarks

if TYPE_CHECKING:
    from clipbench.judge.baseline import Base
    from clipbench.judge.compare import Cell, Comparison
    from clipbench.judge.tolerances import Rules
    from clipbench.models.zoo import ModelSpec
    from clipbench.options import Options
    from clipbench.regression import EmbeddingRegression
    from clipbench.report.ranking import Ranked
    from clipbench.report.story import Compared
    from clipbench.session import Session
    from clipbench.types import JsonObject, Key, ReferenceKind, Result, Run, Score, Verdict

T = TypeVar("T")
SUGGESTED = "ViT-B/16"
SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")
"""They end a session as Ctrl-C does: runners that cancel, schedulers, a terminal that closes."""
UNAVAILABLE = (WeightsUnavailableError, DataUnavailableError)
_PLUGIN = "clipbench-benchmarks"
_OFFERED = pytest.StashKey[bool]()
_SETTINGS = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what every session has, whoever's tests run: the options of the fixture `embedding_regression`."""
    add = parser.getgroup("clipbench-fixture", "clipbench: the fixture embedding_regression").addoption
    add("--clipbench-update", action="store_true", help="write the files that embedding_regression compares with, anew")
    add("--clipbench-reason", default="", metavar="TEXT", help="why; kept in each file")


@pytest.fixture
def embedding_regression(request: pytest.FixtureRequest) -> Iterator[EmbeddingRegression]:
    """Hold an encoder's embeddings to a file beside the test: `embedding_regression.check(encoder)`."""
    from clipbench.regression import EmbeddingRegression, file_of

    update, reason = (request.config.getoption(f"--clipbench-{name}") for name in ("update", "reason"))
    if update and not reason.strip():
        pytest.fail("--clipbench-update needs --clipbench-reason TEXT: why are other embeddings right?", pytrace=False)
    path = file_of(request.path, request.node.name)
    yield (made := EmbeddingRegression(path, update, reason.strip(), _author(), request.node.nodeid))
    for written in made.written:
        request.node.warn(pytest.PytestWarning(f"wrote {written}: {reason.strip()}"))


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

    def has_package(parent: Path) -> bool:
        packages = [parent / "clipbench", *([parent] if parent.name == "clipbench" else [])]
        return any(os.path.isfile(package / "pytest_plugin.py") for package in packages)

    return {folder for folder in folders if has_package(folder.parent)}


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
        from clipbench.options import add_options, settings_of

        try:
            settings = settings_of(arguments, directory)
        except ClipbenchError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[_SETTINGS] = settings
        try:
            add_options(parser.getgroup("clipbench", "clipbench: CLIP benchmarks").addoption, settings)
            parser.parse_known_args([])  # some versions of pytest look for names that are taken only now
        except (ValueError, argparse.ArgumentError) as error:
            raise pytest.UsageError(
                f"an option of clipbench's benchmarks is defined by another plugin or conftest.py, too ({error}); "
                "leave that out with -p no:NAME or --noconftest"
            ) from error
        config.stash[_OFFERED] = True


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Look names and devices up before anything runs: what cannot be meant is a usage error (exit code 4)."""
    ours = _OFFERED in config.stash and _benchmark_folders(_named_paths(config.invocation_params.dir, config.args))
    if config.option.help or not ours:
        return
    workers, dist = getattr(config.option, "numprocesses", None), getattr(config.option, "dist", "no")
    if workers or dist != "no" or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "clipbench's benchmarks cannot run under xdist (-n, --dist): processes that share the cores or the GPU spoil every "
            "timing, each would load every model, and pytest-benchmark switches itself off; run them without -n"
        )
    from clipbench.options import Options

    marker = "experiment(*names): what a benchmark measures; it exists where the first one has data"
    config.addinivalue_line("markers", marker)
    try:
        options = Options.from_pytest(config, config.stash[_SETTINGS])
        config.pluginmanager.register(BenchmarkSession(config, options), _PLUGIN)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


class BenchmarkSession:
    """The hooks of one session that reaches the benchmarks: its models, what was measured, what failed, and its files.

    Raises: UsageError at once for models, weights, devices and folders that cannot be meant.
    """

    def __init__(self, config: pytest.Config, options: Options) -> None:
        from clipbench.models.zoo import resolve

        self.config = config
        self.options = options
        self.specs = {
            spec.name: spec
            for spec in resolve(options.models, options.pretrained, options.activation, options.model_args)
        }
        self._session: Session | None = None if config.option.collectonly else self._make_session()
        self._cleanup = ExitStack()
        self._item: pytest.Item | None = None
        self._benchmarks: dict[str, tuple[Key, ...]] = {}
        self._is_ending = False
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._passed: set[str] = set()
        self._reported: set[str] = set()
        self._problems: list[str] = []
        self._lines: list[str] = []
        self._errors: list[str] = []
        self._judged: Run | None = None
        self._ranked: Ranked = ()
        self._bases = self._read_bases()
        self._cells: dict[str, tuple[Base, str]] = {}
        self._comparisons: dict[str, Comparison | Exception] = {}
        self._judged_cells: dict[str, Cell] = {}

    def _make_session(self) -> Session:
        from clipbench.models.encoder import find_factory
        from clipbench.session import Session, resources_of

        for spec in self.specs.values():
            if spec.source == "factory":
                find_factory(spec.location)
        session = Session(self.options, resources_of(self.options), _ProgressBar())
        session.parts = self.options.results / "parts" / session.id
        return session

    def _read_bases(self) -> tuple[Base, ...]:
        """What this session is held to, of the models asked for; a baseline that is not there yet judges nothing."""
        from clipbench.judge.baseline import read_base
        from clipbench.storage import RunFormatError

        given: list[tuple[ReferenceKind, Path | None]] = [
            ("baseline", self.options.baseline),
            ("anchor", self.options.anchor),
        ]
        try:
            largest = self.options.largest_run_bytes
            bases = [read_base(path, kind, largest) for kind, path in given if path is not None and path.exists()]
        except RunFormatError as error:
            raise UsageError(str(error)) from error
        return tuple(base.of(self._models_in(base)) for base in bases)

    def _models_in(self, base: Base) -> list[str]:
        """The base's models that this session is about: by name, or the one encoder of somebody's own that each has."""
        names = list(dict.fromkeys(result.model.name for result in base.run.results))
        own = [spec.name for spec in self.specs.values() if spec.source == "factory"]
        is_one = len(names) == 1 == len(self.specs) and len(own) == 1
        is_own = is_one and all(
            str(subject.asked.get("loader", "")).partition(" ")[0] == "factory" for subject in base.run.subjects
        )
        found = names if is_own else [name for name in names if name in self.specs]
        if not found:
            raise UsageError(f"{base.name} holds {', '.join(names)}, and this session measures {', '.join(self.specs)}")
        return found

    def _base_keys(self, base: Base) -> list[Key]:
        """What this session can measure of a base's results, under its own models' names."""
        found = []
        for key in (result.key for result in base.run.results):
            model = key.model if key.model in self.specs else next(iter(self.specs))
            with suppress(UsageError):  # an experiment that is not here: `complete` says so
                if key.dataset in self.options.datasets_of(key.experiment):
                    found.append(key._replace(model=model))
        return found

    def _make_cells(self, session: pytest.Session) -> list[pytest.Item]:
        """A test for each cell of each base. Raises: UsageError for --only and --accept without such a cell."""
        from clipbench.judge.compare import cells_of, check_accepted, named_cells

        items: list[pytest.Item] = []
        known: set[str] = set()
        for base in self._bases:
            here = {key[0::2] for key in self._base_keys(base)}
            keys = [r.key for r in base.run.results if r.key[0::2] in here]
            cells = cells_of(base.run, keys, self.options.speed)
            known |= cells.keys()
            for cell in named_cells(cells, self.options.only):
                nodeid = sanitize(f"{base.kind}::{cell}")
                item = CellItem.from_parent(session, name=sanitize(cell), nodeid=nodeid, running=self, base=base)
                self._cells[nodeid] = (base, cell)
                items.append(item)
        check_accepted(self.options.accept if self._bases else (), known)
        return items

    @property
    def session(self) -> Session:
        """The measuring session; there is none when tests are only collected."""
        if self._session is None:
            raise RuntimeError("nothing is measured under --collect-only")
        return self._session

    def pytest_report_header(self) -> list[str]:
        """Say which models, weights, device and precision will run."""
        lines, options = [], self.options
        lines += [f"clipbench settings: {options.settings.path}"] if options.settings.path else []
        for spec in self.specs.values():
            own = {
                "lite": "embedded smoke model",
                "factory": f"your own encoder {spec.location}".removesuffix(f" {spec.name}"),
            }
            activation = f", {spec.activation} ({spec.why})" if spec.activation else ""
            weights = own.get(spec.source, f"weights {spec.pretrained}")
            lines.append(f"clipbench model: {spec.name}, {weights}{activation}")
        device, size, workers = options.device, options.batch_size or "default", options.workers or "default"
        if self._session is not None:
            resources = self._session.resources
            device, size, workers = resources.device, resources.batch_size, resources.workers
        lines.append(f"clipbench device: {device}, precision {options.precision}, batch size {size}, workers {workers}")
        if options.no_optimizations:
            lines.append("clipbench rows: every one by the reference path (--no-optimizations)")
        elif options.cache is not None:
            lines.append(f"clipbench cache: {options.cache}")
        return [sanitize(line) for line in lines]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every benchmark once per model and, where it asks for one, per data set; the scope keeps a model's tests together."""
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", list(self.specs), indirect=True, scope="session")
            marker = metafunc.definition.get_closest_marker("experiment")
            if "dataset" in metafunc.fixturenames and marker is not None:
                metafunc.parametrize("dataset", self.options.datasets_of(marker.args[0]))

    def _is_asked(self, name: str) -> bool:
        """Whether an experiment has data, and is one of those that were asked for."""
        return bool(self.options.datasets_of(name)) and name in (self.options.experiments or (name,))

    def _keys_of(self, item: pytest.Function) -> tuple[Key, ...]:
        """What a benchmark measures, by its marker; of its first experiment only the data set that it is about."""
        from clipbench.types import Key

        marker, parameters = item.get_closest_marker("experiment"), item.callspec.params
        keys = []
        for place, name in enumerate(marker.args if marker else ()):
            names = (
                [parameters["dataset"]] if place == 0 and "dataset" in parameters else self.options.datasets_of(name)
            )
            keys += [Key(name, str(parameters["subject"]), str(dataset)) for dataset in names]
        return tuple(keys)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Leave out benchmarks of data that was not given (not asked for is not skipped); remember the benchmarks; add cells.

        Cells come last, and after whatever was deselected: -k and --lf choose what is measured, not what is judged.
        """
        from clipbench.data.dataset import kept_pictures, picture_budget_bytes

        ours = [i for i in items if isinstance(i, pytest.Function) and "subject" in i.fixturenames]
        left_out = [i for i in ours if (m := i.get_closest_marker("experiment")) and not self._is_asked(m.args[0])]
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        found = [item for item in ours if item not in left_out]
        if not (self.config.option.setuponly or self.config.option.setupplan):
            self._benchmarks = {item.nodeid: self._keys_of(item) for item in found}
            if self._session is not None:
                asked = [key for keys in self._benchmarks.values() for key in keys]
                asked += [key for base in self._bases for key in self._base_keys(base)] if not self.options.only else []
                self._session.plan = tuple(dict.fromkeys(asked))
        if self._benchmarks:  # pytest-benchmark writes nothing when no timed test ran: this plugin writes the file
            self.config._benchmarksession.json = None  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
        several = len({(i.path, i.callspec.params["subject"]) for i in found}) > 1
        if self._session is not None and several and not self.options.no_optimizations:
            self._cleanup.enter_context(kept_pictures(picture_budget_bytes()))
        try:
            if self._bases:
                items += self._make_cells(session)
            if self._session is not None and self._asked():
                from clipbench.parts import held

                self._cleanup.enter_context(held(self.options.results))
                if self.options.resume:
                    self._resume(self._session)
        except (UsageError, OSError) as error:
            raise pytest.UsageError(str(error)) from error

    def _resume(self, session: Session) -> None:
        """Look what unfinished sessions left. Raises: UsageError where they were asked for something else, or a part is damaged."""
        from clipbench.resume import results_left
        from clipbench.storage import RunFormatError

        try:
            asked, largest = self.options.hashes(), self.options.largest_run_bytes
            session.left = results_left(self.options.results, session.plan, asked, largest)
        except RunFormatError as error:
            raise UsageError(f"--resume: {error}; or leave --resume out and measure anew") from error
        if not session.left:
            session.notes.append(f"nothing that could be continued lies in {self.options.results}: all is measured")

    def judge_cell(self, base: Base, nodeid: str) -> None:
        """Assert what a cell says. Raises: pytest's failure for one that fails, or is inconclusive and nobody allows that."""
        from clipbench.judge.compare import Cell
        from clipbench.types import Key, Verdict

        _, name = self._cells[nodeid]
        comparison = self._comparison(base)
        cell = next((cell for cell in comparison.cells if cell.id == name), None)
        if cell is None:
            reason = "nothing in this session could be judged"
            cell = Cell(name, (Verdict(Key(name, "", ""), "", "unjudged", "inconclusive", reason, cell=name),))
        self._judged_cells[nodeid] = cell
        if cell.outcome in ("pass", "note") or (cell.outcome == "inconclusive" and self.options.allow_inconclusive):
            return
        way_out = [f"  to accept it: {cell.way_out}"] if cell.way_out else []
        _fail(f"{name}: {cell.outcome} against {base.name}", *(f"  {reason}" for reason in cell.reasons), *way_out)

    def _comparison(self, base: Base) -> Comparison:
        """The comparison with a base, made once: what it holds and nobody measured yet is measured first."""
        if base.kind not in self._comparisons:
            try:
                self._comparisons[base.kind] = self._compare(base)
            except Exception as error:  # noqa: BLE001  # the boundary: every cell says so, and fails
                self._comparisons[base.kind] = error
        found = self._comparisons[base.kind]
        if isinstance(found, Exception):
            _fail(f"{base.name} could not be compared with: {type(found).__name__}: {found}")
        return found

    def _compare(self, base: Base) -> Comparison:
        from clipbench.judge.baseline import compare_with
        from clipbench.storage import timings_of

        measured = self.session
        for key in self._base_keys(base) if not self.options.only else ():
            try:
                measured.measure(self.specs[key.model], key)
            except (Exception, pytest.skip.Exception) as error:  # noqa: BLE001  # an encoder of somebody else's may raise anything
                measured.skip(key, str(error) or type(error).__name__, isinstance(error, UNAVAILABLE))
        for key in measured.results:
            measured.verdicts(key)
        measured.encode_again()
        self._time_processes()
        return compare_with(
            base,
            measured.run(),
            self._rules(),
            timings_of(_benchmark_json(self.config)),
            self.options.only,
            {
                cell: self.options.reason
                for cell in self.options.accept
                if sanitize(f"{base.kind}::{cell}") in self._cells
            },
            self.options.speed,
            measured.rescored(base.run),
            self.options.results,
        )

    def _time_processes(self) -> None:
        """Under `--speed gate`, time each model that was timed in several fresh processes, too: one cannot tell noise from change."""
        from clipbench.ab import PROCESSES, timed_in_processes
        from clipbench.experiments.speed import METRICS
        from clipbench.types import Score

        for key, result in self.session.results.items() if self.options.speed == "gate" else ():
            if not result.is_timed or any(score.processes for score in result.scores.values()):
                continue
            found = timed_in_processes(self.options.timed_by(key.model, self.specs[key.model].word))
            scores = dict(result.scores)
            for spec in METRICS:
                if values := found.get(spec.name, ()):
                    scores.setdefault(spec.name, Score(spec, max(values), PROCESSES))
                    scores[spec.name] = replace(scores[spec.name], processes=values)
            self.session.results[key] = replace(result, scores=scores)

    def _rules(self) -> Rules:
        return replace(self.options.settings.judged_by(), row_limit=self.options.max_cosine_distance)

    @pytest.fixture(scope="session")
    @classmethod  # an instance method with this scope is deprecated since pytest 9.1
    def subject(cls, request: pytest.FixtureRequest) -> Iterator[Subject]:
        """The model under test: loaded when it is first asked for, freed before the next one."""
        running: BenchmarkSession = request.config.pluginmanager.get_plugin(_PLUGIN)  # type: ignore[assignment]  # it is this one
        yield Subject(running.specs[request.param], running.session, running._note)
        if not running._is_ending:
            running.session.encode_again()  # what it raises is in the trace
        running.session.free()

    def _note(self, result: Result, verdict: Verdict) -> None:
        """Make a verdict a property of the test that asserts it: pytest's own --junitxml writes it."""
        if self._item is not None:
            name = f"clipbench:{result.experiment}:{verdict.metric}:{verdict.kind}"
            self._item.user_properties.append((sanitize(name), sanitize(f"{verdict.outcome}: {verdict.reason}")))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Remember which test is running."""
        self._item = item

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """End at a signal as at Ctrl-C, and let nobody leave the process by `os._exit` with a status of 0 before the end."""

        def end(number: int, frame: object) -> None:
            if not self._is_ending:  # what is written by then is written whole
                session.shouldstop = reason = f"{signal.Signals(number).name} ended the session"
                # Whoever catches an Exception lets it pass; an encoder that catches all is left after its test.
                raise KeyboardInterrupt(reason)

        for name in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            number = getattr(signal, name, None)  # Windows has only the first
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._cleanup.callback(signal.signal, number, signal.signal(number, end))
        leave, own = os._exit, os.getpid()

        def leave_in_the_middle(status: int) -> NoReturn:
            leave(status or int(os.getpid() == own))  # a forked child's status is its own affair

        self._cleanup.callback(setattr, os, "_exit", leave)
        os._exit = leave_in_the_middle

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which benchmarks began."""
        self._begun |= {nodeid} & self._asked()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Remember which benchmarks came to an end: one in which the session stopped did not."""
        self._ended |= {nodeid} & self._asked()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Remember which benchmarks returned: that alone is a pass, whatever another plugin reports."""
        result = yield
        self._passed |= {item.nodeid} & self._asked()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what failed, in words."""
        if report.failed and report.nodeid in self._asked():
            message = report.longreprtext.strip().splitlines() or [""]
            self._reported.add(report.nodeid)
            said = message[0 if len(message) < 8 else -1]
            if self.options.redact and report.nodeid in self._benchmarks:
                said = "see the verdicts, and the session's log (--redact)"
            self._problems.append(f"{report.nodeid.partition('::')[2]}: {said}")

    def _asked(self) -> set[str]:
        """The tests that this session is about."""
        return {*self._benchmarks, *self._cells}

    def _did_not_pass(self, run: Run) -> list[str]:
        """What was asked for and did not pass, in words: what the plan and the cells say, less what was seen to pass.

        The one place that decides whether a session is red; how a test ended (an error, a skip, an expected failure, an exit) is not
        asked. Without --require-all a skip that is named and an inconclusive reference are allowed, and nothing else.
        """
        judged, problems = self._judged_cells, " ".join(self._problems)
        allowed = ("pass", "note", *(["inconclusive"] if self.options.allow_inconclusive else []))
        cells = [node for node in self._cells if node not in judged or judged[node].outcome not in allowed]
        found = [f"{node} did not come to its end" for node in self._asked() - self._ended if node not in cells]
        found += [f"{node} did not pass" for node in cells if node not in self._reported]
        found += [f"{name} could not be loaded" for name in self.session.failed_to_load() if name not in problems]
        if self.options.require_all:
            tests = self._ended - self._passed - self._reported - set(cells)
            found += [f"{node.partition('::')[2]} did not pass (--require-all)" for node in sorted(tests)]
            found += [f"{skip.key}: {skip.reason}" for skip in run.skipped if skip.reason not in problems]
            for r in run.results:
                words = [f"{v.outcome}: {v.finding}" for v in r.verdicts if v.outcome in ("fail", "inconclusive")]
                words += [r.provenance.left_out] if r.provenance.left_out else []
                found += [f"{r.key}: {word}" for word in words if word not in problems]
            found += self._held_to_nothing(run)
        return found

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Put the run into what pytest-benchmark saves (--benchmark-save, --benchmark-autosave)."""
        from clipbench.storage import run_to_json

        if self._begun:
            output_json["clipbench"] = run_to_json(self.session.run())

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Judge the run against baseline and anchor, and write its files, after every session that ran a benchmark.

        Judged before the others finish, so that JUnit's file holds the verdicts; written after them, whatever they raise.
        """
        self._is_ending = True
        if not self._begun:
            asked = self._cells or (self._session is not None and self._benchmarks)
            if asked and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return (yield)
        timings: JsonObject = {}
        with self._surviving("pytest-benchmark's timings"):
            timings = _benchmark_json(self.config)
        with self._surviving("judging"):
            self._judge()
        try:
            return (yield)
        except BaseException:
            self._errors.append("another plugin failed at the end of the session")
            raise
        finally:
            document: JsonObject = {}
            with self._surviving("writing the run's files"):
                document = self._write(timings)
            if (self._problems or self._errors) and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            if self.options.baseline and self.options.update_baseline:
                with self._surviving(f"baseline {self.options.baseline}"):
                    self._end_in_baseline(self.options.baseline, session, document)

    def _judge(self) -> None:
        """Judge what was measured against references, baseline and anchor; what stands against a green is a problem."""
        measured = self.session
        left = [key for node, keys in self._benchmarks.items() if node not in self._ended for key in keys]
        for key, count in Counter(left).items():
            measured.skip(key, f"the session ended before {count} of its benchmarks did")
        with self._surviving("timing fresh processes"):
            self._time_processes()
        for key in measured.results:
            with self._surviving(f"judging {key}"):
                measured.verdicts(key)
        self._lines += [f"NOTE: {note}" for note in (*measured.notes, *measured.cache_problems)]
        self._judged = self._with_bases(measured.run())
        self._problems += self._did_not_pass(self._judged)

    def _held_to_nothing(self, run: Run) -> list[str]:
        """What --require-all fails though no test did: models that were measured, and held to no reference.

        A session that makes the first baseline is held to nothing by nature: by it, the next one is.
        """
        from clipbench.judge.references import judged_by

        if self.options.update_baseline:
            return []
        what = "was measured and held to no reference (--require-all); give one: --baseline run.json"
        found = [f"{label} {what}" for label, kinds in judged_by(run).items() if not kinds]
        self._lines += [f"FAIL: {line}" for line in found]
        return found

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """An error at the end of a session costs only what raised it, and is named."""
        try:
            yield
        except ClipbenchError as error:
            self._errors.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001  # the boundary: whatever it is, the run is written all the same
            self._errors.append(f"{what}: {type(error).__name__}: {error}")

    def _with_bases(self, run: Run) -> Run:
        """The run with what its bases say of it; and that in lines, each base's headline first."""
        from clipbench.judge.baseline import accepted_entry, with_verdicts
        from clipbench.judge.compare import headline

        date, accepted = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), []
        for base in self._bases:
            nodes = [node for node, (other, _) in self._cells.items() if other is base]
            cells = [self._judged_cells[node] for node in nodes if node in self._judged_cells]
            comparison = self._comparisons.get(base.kind)
            if comparison is None or isinstance(comparison, Exception):
                self._lines.append(f"{base.name}: NOT JUDGED (0 of {len(nodes)} cells)")
                self._problems.append(f"{base.name}: 0 of {len(nodes)} cells were judged")
                continue
            if len(cells) < len(nodes):
                self._problems.append(f"{base.name}: {len(cells)} of {len(nodes)} cells were judged")
            judged = {cell.id for cell in cells}
            seen = replace(comparison, verdicts=tuple(v for v in comparison.verdicts if v.cell in judged))
            run = with_verdicts(run, base, seen)
            self._lines.append(f"{base.name}: {headline(seen, len(nodes))}")
            for cell in seen.cells:
                word = "accepted" if cell.is_accepted else cell.outcome
                said = cell.reasons if word in ("fail", "inconclusive", "accepted") else ()
                self._lines += [f"  {word}: {cell.id}: {reason}" for reason in said]
                self._lines += [f"    {cell.way_out}"] if cell.way_out else []
            accepted += [accepted_entry(cell, _author(), date) for cell in cells if cell.is_accepted]
        return replace(run, accepted=tuple(accepted))

    def _write(self, timings: JsonObject) -> JsonObject:
        """Write the run and its reports; return the run's document."""
        from clipbench.parts import remove_parts
        from clipbench.report.ranking import rankings_by_experiment
        from clipbench.report.summary import write_report
        from clipbench.storage import dump_json, run_to_json, timings_of, write_atomically

        run = self._judged or self.session.run()
        document = timings | {"clipbench": run_to_json(run)}
        content = dump_json(document)
        errors = list(self.session.unwritten)
        for path in filter(None, (self.options.results / "run.json", self.options.benchmark_json)):
            try:
                write_atomically(path, content)
            except OSError as error:
                errors.append(str(error))
        with self._surviving("ranking the models"):
            self._ranked = rankings_by_experiment(run)
        known, timed = self.session.datasets(), timings_of(timings)
        undrawn, unwritten = write_report(
            run,
            self._ranked,
            self.options.results,
            known,
            self._problems,
            self._compared(),
            timed,
            shows=self.options.shows,
        )
        self._lines += [f"NOTE: no figure: {line}" for line in undrawn]
        if errors or unwritten:
            what = "; ".join([*errors, *unwritten])
            self._errors.append(f"the run's files could not be written: {what}; free space or choose another --results")
        elif self.session.parts is not None and self._asked() <= self._ended and not self.session.unmeasured():
            asked, largest = self.options.hashes(), self.options.largest_run_bytes
            stay = remove_parts(self.options.results, self.session.parts, asked, run.plan, largest)
            self._lines += [
                f"NOTE: results of a session that did not come to its end are kept: clipbench report {os.path.relpath(folder)} -o DIR"
                for folder in stay
            ]
        elif self.session.results:
            given = (
                ("--update-baseline", self.options.update_baseline),
                ("--save-embeddings", self.options.save_embeddings),
            )
            without = "".join(f" and without {option}" for option, is_given in given if is_given)
            self._lines.append(
                f"NOTE: not all was measured; the same command with --resume{without} continues this session"
            )
        return document

    def _compared(self) -> Compared | None:
        """This run held to its bases, as far as cells were judged; None where there is no base."""
        from clipbench.judge.compare import with_anchor
        from clipbench.report.story import Compared

        found = []
        for base in self._bases:
            comparison = self._comparisons.get(base.kind)
            if comparison is not None and not isinstance(comparison, Exception):
                judged = {cell.id for node, cell in self._judged_cells.items() if self._cells[node][0] is base}
                seen = tuple(v for v in comparison.verdicts if v.cell in judged)
                found.append((base, replace(comparison, verdicts=seen)))
        if not found:
            return None
        (first, comparison), *more = found
        for _, anchored in more:
            comparison = with_anchor(comparison, anchored)
        return Compared(first.run, comparison, " and ".join(f"{base.kind} {base.path.name}" for base, _ in found))

    def _end_in_baseline(self, baseline: Path, session: pytest.Session, document: JsonObject) -> None:
        """Last of all: the run becomes the baseline, or is kept from it, which fails the session."""
        failed = session.exitstatus != pytest.ExitCode.OK
        stands = ["the session did not pass"] if failed else self._against_update()
        if not failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED  # until it is written
        if stands:
            kept = "stays as it is" if baseline.exists() else "is not written"
            self._lines.append(f"baseline {baseline} {kept}: {'; '.join(stands)}")
        else:
            self._update_baseline(baseline, document)
            session.exitstatus = pytest.ExitCode.OK

    def _against_update(self) -> list[str]:
        """Why a run that passed does not become the baseline."""
        from clipbench.judge.baseline import not_a_baseline

        judged, run = self._judged_cells, self._judged or self.session.run()
        found = [
            f"{node} is {cell.outcome}"
            for node, cell in judged.items()
            if node.startswith("baseline::") and cell.outcome in ("fail", "inconclusive")
        ]
        return found + (
            not_a_baseline(run, self._rules()) if not any(b.kind == "baseline" for b in self._bases) else []
        )

    def _update_baseline(self, baseline: Path, document: JsonObject) -> None:
        """Write the baseline, and say what changed."""
        from clipbench.judge.baseline import update_baseline

        reason, protected = self.options.reason, [self.options.anchor] if self.options.anchor else []
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        compared = self._comparisons.get("baseline")
        comparison = None if isinstance(compared, Exception) else compared
        changed = update_baseline(
            baseline, document, reason, _author(), date, comparison, protected, self.options.largest_run_bytes
        )
        first = "there was no baseline before: this is the first" if comparison is None else "changed:"
        self._lines.append(f"baseline {baseline} written ({reason}); {first}")
        self._lines += [f"  {line}" for line in changed]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary in short: the verdict, what is inconclusive first, where the files are, what to do next."""
        if not self._begun:
            for base in self._bases if self._cells else ():
                line = f"{base.name}: NOT JUDGED (0 of {len(self._cells)} cells)"
                terminalreporter.write_line(sanitize(line), red=True)
            return
        from clipbench.models.zoo import zoo
        from clipbench.report.story import answer_lines, answers
        from clipbench.report.summary import terminal_lines

        terminalreporter.write_sep("=", "clipbench", bold=True)
        run = self._judged or self.session.run()
        compared = self._compared()
        said = answer_lines(answers(run, compared, self._problems)) if compared else ()
        for line in (*terminal_lines(run, self._ranked, self._problems), *said, *self._lines):
            terminalreporter.write_line(sanitize(line))
        for error in self._errors:
            terminalreporter.write_line(sanitize(f"ERROR: {error}"), red=True)
        if not self._errors:
            summary = os.path.relpath(self.options.results / "summary.md", self.config.invocation_params.dir)
            terminalreporter.write_line(f"files: {sanitize(summary)} (also summary.html, run.json, figures/)")
        if set(self.specs) == {"lite"}:
            size = f"{zoo()[SUGGESTED].download_bytes / 1e6:,.0f} MB"
            terminalreporter.write_line(f"lite is a smoke model, not CLIP. Next, a real CLIP (downloads {size} once):")
            terminalreporter.write_line(f"    pytest benchmarks --model {SUGGESTED}")

    def pytest_unconfigure(self) -> None:
        """Let go of pictures, model and cache, and of what was put in the place of Python's own."""
        self._cleanup.close()
        if self._session is not None:
            self._session.close()


class CellItem(pytest.Item):
    """One cell of a base, as a test: it asks the session for its verdict."""

    def __init__(self, *, running: BenchmarkSession, base: Base, **given: Any) -> None:
        super().__init__(**given)
        self.running, self.base = running, base

    def runtest(self) -> None:
        """Judge the cell; everything that it needs is measured where it was not."""
        self.running.judge_cell(self.base, self.nodeid)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it came from: the base's file."""
        return self.base.path, None, self.nodeid


class Subject:
    """One model under test: measures experiments and asserts their verdicts."""

    def __init__(self, spec: ModelSpec, session: Session, note: Callable[[Result, Verdict], None]) -> None:
        self.spec = spec
        self._note = note
        self._session = session
        self._require_all = session.options.require_all

    def measure(self, *experiments: str, dataset: str | None = None) -> list[Result]:
        """Return the experiments' results, each measured once per session. Skips where weights or data cannot be had.

        `dataset`: which of their data sets, where they have several.
        """
        keys = [self._key(name, dataset) for name in experiments]
        return [
            self._guarded(key, partial(self._session.measure, self.spec, key), keys[k + 1 :])
            for k, key in enumerate(keys)
        ]

    def require(self, experiment: str, *metrics: str, dataset: str | None = None) -> Result:
        """Assert that no reference that speaks of these metrics (all, when none is named) fails; return the result.

        Where none speaks of this model it was measured, which is all that is asserted. Under --require-all an inconclusive verdict and
        images that are broken or absent fail.
        """
        (result,) = self.measure(experiment, dataset=dataset)
        if self._require_all and (lost := result.provenance.left_out):
            _fail(f"{experiment} of {self.spec.label}: {lost} (--require-all)")
        verdicts = [v for v in self._session.verdicts(result.key) if v.metric in (metrics or (v.metric,))]
        for verdict in verdicts:
            self._note(result, verdict)
        failing = [v for v in verdicts if v.outcome == "fail" or (self._require_all and v.outcome == "inconclusive")]
        if failing:
            pairs = [(f"  {v.outcome}: {v.finding}", f"    {v.kind} reference: {v.reference}") for v in failing]
            _fail(str(result.key), *(line for pair in pairs for line in pair))
        return result

    def skip(self, key: Key, reason: str) -> None:
        """Skip the test and note why in the run; under --require-all, fail."""
        self._session.skip(key, reason)
        if self._require_all:
            _fail(f"{key.experiment} of {self.spec.label}: {reason} (--require-all)")
        pytest.skip(sanitize(reason))

    def time(self, metric: str, benchmark: Any = None) -> Score:
        """Return a speed metric, with what is timed together with it recorded in the speed result.

        Throughput is timed by pytest-benchmark; skips where timing is switched off.
        """
        from clipbench.experiments import experiment, speed

        def timer(call: Callable[[], object], rounds: int) -> Sequence[float]:
            # Warmed up before: the number of rounds comes from running the call.
            benchmark.pedantic(call, rounds=rounds)
            return benchmark.stats.stats.data if benchmark.stats else []

        def run() -> Result:
            dataset, embedder = self._session.dataset(one, key.dataset), self._session.embedder(self.spec)
            embedder.release_rows()  # what is measured next is the model's memory
            size = embedder.batch_size
            scores = speed.PARTS[metric](embedder.encoder, speed.workload(dataset, size), timer)
            return self._session.record(self.spec, one, dataset, speed.measured(scores, embedder))

        one, key = experiment("speed"), self._key("speed", None)
        result = self._guarded(key, run)
        if metric not in result.scores:
            self.skip(key, f"{metric} was not timed: pytest-benchmark is switched off (--benchmark-disable)")
        return result.scores[metric]

    def _key(self, name: str, dataset: str | None) -> Key:
        """What is asked for. Raises: UsageError where the experiment has several data sets, or not this one."""
        from clipbench.types import Key

        names = self._session.options.datasets_of(name)
        if dataset is None and len(names) > 1:
            raise UsageError(f"{name} has several data sets ({', '.join(names)}); say which: dataset=NAME")
        return Key(name, self.spec.name, dataset or (names[0] if names else name))

    def _guarded(self, key: Key, measure: Callable[[], Result], also: Sequence[Key] = ()) -> Result:
        """What `measure` returns. Where it cannot be had or fails, that is noted of `key` and of what is asked with it."""
        from clipbench.session import NotLoadedError

        problem: ClipbenchError
        try:
            return measure()
        except ClipbenchError as error:
            problem = error
        except (unittest.SkipTest, pytest.skip.Exception, pytest.xfail.Exception) as error:
            what = f"{type(error).__name__} was raised while it was measured, and what an encoder raises skips nothing"
            problem = EncoderError(f"{key}: {what}: {error}")
        is_absent = isinstance(problem, UNAVAILABLE)
        for one in (key, *also):
            self._session.skip(one, str(problem), is_absent)
        if is_absent:
            self.skip(key, str(problem))
        if isinstance(problem, NotLoadedError):
            pytest.skip(str(problem))
        raise pytest.fail.Exception(sanitize(str(problem)), pytrace=False)


def _fail(*lines: str) -> NoReturn:
    """Fail the test with these lines, which quote files."""
    pytest.fail("\n".join(map(sanitize, lines)), pytrace=False)


def _author() -> str:
    """Who runs this; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


class _ProgressBar:
    """A bar on a terminal, past pytest's capturing, for work of three steps or more; in a pipe, nothing."""

    def __init__(self) -> None:
        self._terminal = os.fdopen(os.dup(2), "w") if os.isatty(2) else None

    def __call__(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
        if self._terminal is None or total < 3:
            return iterable
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(iterable, f"clipbench {what}", total, False, self._terminal, dynamic_ncols=True)
        return bar


def _benchmark_json(config: pytest.Config) -> JsonObject:
    """Return pytest-benchmark's JSON, made through its own hooks; NaN and infinity as null, what is no JSON as text."""
    timings = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    config.hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit)
    written = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[b for b in timings.benchmarks if b],
        include_data=True,
        machine_info=timings.get_machine_info(),
        commit_info=commit,
    )
    finite: JsonObject = json.loads(json.dumps(written, default=str), parse_constant=lambda word: None)
    return finite
