"""The pytest plugin: options where benchmarks are named, models as parameters, verdicts as assertions, files at the end.

It is loaded in every session of a project that has clipbench installed, so whatever is heavy is imported where it is used.
"""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipbench.errors import ClipbenchError, DataUnavailableError, UsageError, WeightsUnavailableError
from clipbench.options import Options, add_options
from clipbench.paths import benchmarks

if TYPE_CHECKING:
    from clipbench.embeddings_file import SavedRows
    from clipbench.models.zoo import ModelSpec
    from clipbench.report.ranking import Ranked
    from clipbench.result import JsonObject, Metric, ReferenceKind, Result, Run, Verdict
    from clipbench.session import Session
    from clipbench.settings import T

SUGGESTED = "ViT-B/16"
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
            add_options(parser)
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
    try:
        config.pluginmanager.register(BenchmarkSession(config, Options.from_pytest(config)), _PLUGIN)
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
        self.specs = {spec.name: spec for spec in resolve(options.models, options.pretrained, options.activation)}
        self._session: Session | None = None if config.option.collectonly else self._make_session()
        self._pictures = ExitStack()
        self._item: pytest.Item | None = None
        self._benchmarks: dict[str, tuple[str, str]] = {}
        self._ran: set[str] = set()
        self._problems: list[str] = []
        self._lines: list[str] = []
        self._write_error = ""
        self._judged: Run | None = None
        self._ranked: Ranked = ()

    def _make_session(self) -> Session:
        from clipbench.models.encoder import find_factory
        from clipbench.session import Session

        for spec in self.specs.values():
            if spec.source == "factory":
                find_factory(spec.name)
        keep_rows = {"keep_rows": self._save_rows} if self.options.save_embeddings else {}
        return Session(self.options.settings(progress=_ProgressBar(), **keep_rows))

    @property
    def session(self) -> Session:
        """The measuring session; there is none when tests are only collected."""
        if self._session is None:
            raise RuntimeError("nothing is measured under --collect-only")
        return self._session

    def pytest_report_header(self) -> list[str]:
        """Say which models, weights, device and precision will run."""
        lines, options = [], self.options
        for spec in self.specs.values():
            own = {"lite": "embedded smoke model", "factory": "your own encoder"}
            activation = f", {spec.activation} ({spec.why})" if spec.activation else ""
            weights = own.get(spec.source, f"weights {spec.pretrained}")
            lines.append(f"clipbench model: {spec.name}, {weights}{activation}")
        device, size, workers = options.device, options.batch_size or "default", options.workers or "default"
        if self._session is not None:
            settings = self._session.settings
            device, size, workers = settings.device, settings.batch_size, settings.workers
        lines.append(f"clipbench device: {device}, precision {options.precision}, batch size {size}, workers {workers}")
        if options.no_optimizations:
            lines.append("clipbench rows: every one by the reference path (--no-optimizations)")
        elif options.cache is not None:
            lines.append(f"clipbench cache: {options.cache}")
        return lines

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every benchmark once per model; the session's scope keeps each model's tests together."""
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", list(self.specs), indirect=True, scope="session")
            if "zero_shot_name" in metafunc.fixturenames:
                metafunc.parametrize("zero_shot_name", [name for name, _ in self.options.zero_shot])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out benchmarks of data that was not given (not asked for is not skipped); remember the benchmarks."""
        from clipbench.data.dataset import kept_pictures, picture_budget_bytes

        left_out = [i for i in items for m in i.iter_markers("needs_option") if not getattr(self.options, m.args[0])]
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        found = [i for i in items if isinstance(i, pytest.Function) and "subject" in i.fixturenames]
        if not (self.config.option.setuponly or self.config.option.setupplan):
            self._benchmarks = {i.nodeid: (str(i.callspec.params["subject"]), _experiment_of(i)) for i in found}
        if self._benchmarks:  # pytest-benchmark writes nothing when no timed test ran: this plugin writes the file
            self.config._benchmarksession.json = None  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
        several = len({(i.path, i.callspec.params["subject"]) for i in found}) > 1
        if self._session is not None and several and not self.options.no_optimizations:
            self._pictures.enter_context(kept_pictures(picture_budget_bytes()))

    @pytest.fixture(scope="session")
    @classmethod  # an instance method with this scope is deprecated since pytest 9.1
    def subject(cls, request: pytest.FixtureRequest) -> Iterator[Subject]:
        """The model under test: loaded when it is first asked for, freed before the next one."""
        running: Any = request.config.pluginmanager.get_plugin(_PLUGIN)
        yield Subject(running.specs[request.param], running.session, running.options.require_all, running._note)
        running.session.free()

    def _note(self, result: Result, verdict: Verdict) -> None:
        """Make a verdict a property of the test that asserts it: pytest's own --junitxml writes it."""
        if self._item is not None:
            name = f"clipbench:{result.experiment}:{verdict.metric}:{verdict.kind}"
            self._item.user_properties.append((name, f"{verdict.verdict}: {verdict.reason}"))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Remember which test is running."""
        self._item = item

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember which benchmarks ran and which failed."""
        if report.nodeid not in self._benchmarks:
            return
        if report.when == "call" or not report.passed:
            self._ran.add(report.nodeid)
        if report.failed:
            message = report.longreprtext.strip().splitlines() or [""]
            self._problems.append(f"{report.nodeid.partition('::')[2]}: {message[0 if len(message) < 8 else -1]}")

    def _save_rows(self, rows: SavedRows) -> None:
        """Write an experiment's rows beside the run (--save-embeddings); a full disk fails the session, not the measurement."""
        from clipbench.embeddings_file import write_rows

        try:
            write_rows(self.options.results, rows)
        except OSError as error:
            what = f"the rows of {rows.experiment} could not be saved"
            self._write_error = f"{what}: {error}; free space or drop --save-embeddings"

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Put the run into what pytest-benchmark saves (--benchmark-save, --benchmark-autosave)."""
        if self._ran:
            output_json["clipbench"] = self.session.run().to_json()

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Judge the run against baseline and anchor, and write its files, after every session that ran a benchmark.

        Judged before the others finish, so that JUnit's file holds the verdicts; written after them, whatever they raise.
        """
        if not self._ran or self._session is None:
            return (yield)
        timings = _benchmark_json(self.config)
        failing = self._judge(self._session, timings)
        if failing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        try:
            return (yield)
        finally:
            try:
                self._write(timings, session)
            except (OSError, ClipbenchError) as error:
                self._write_error = str(error)
            if self._write_error and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _judge(self, measured: Session, timings: JsonObject) -> bool:
        """Judge what was measured; True when that fails the session."""
        from clipbench.judge.references import doubtful

        left = [of for node, of in self._benchmarks.items() if node not in self._ran]
        for (name, experiment), count in Counter(left).items():
            reason = f"the session ended before {count} of its benchmarks ran"
            measured.skip(self.specs[name], experiment, reason)
        run, reported = measured.run(), " ".join(self._problems)
        unloaded = [f"{label} could not be loaded" for label in measured.failed_to_load() if label not in reported]
        doubts = list(doubtful(run))
        self._judged, missed = self._against_references(run, timings)
        self._to_junit(self._judged)
        self._problems += [*unloaded, *doubts, *(f"{reference} does not hold" for reference in missed)]
        self._lines += [f"FAIL: {doubt}" for doubt in doubts]
        self._lines += [f"NOTE: {problem}" for problem in measured.cache_problems]
        return bool(doubts or missed or measured.failed_to_load())

    def _against_references(self, run: Run, timings: JsonObject) -> tuple[Run, list[str]]:
        """The run with its verdicts against baseline and anchor, and which of the two do not hold.

        A baseline that is about to be replaced judges nothing. Where one cannot be judged, the run is written all the same.
        """
        from clipbench.judge.baseline import judge_against
        from clipbench.judge.compare import key_of
        from clipbench.judge.rules import read_rules
        from clipbench.run_file import timings_of

        baseline = None if self.options.update_baseline else self.options.baseline
        references: tuple[tuple[ReferenceKind, Path | None], ...] = (
            ("baseline", baseline),
            ("anchor", self.options.anchor),
        )
        missed = []
        for kind, path in references:
            if path is None:
                continue
            try:
                judged = judge_against(run, path, kind, read_rules(), timings_of(timings))
            except ClipbenchError as error:
                self._write_error = str(error)
                continue
            run, comparison = judged.run, judged.comparison
            here = {key_of(result) for result in run.results}
            gone = [
                f for f in comparison.findings if (f.experiment, f.model, f.dataset) not in here and f.verdict != "pass"
            ]
            self._lines.append(f"{kind} {path}: {comparison.verdict}")
            self._lines += [f"  {f.verdict}: {f.experiment} of {f.model}: {f.reason}" for f in gone]
            if comparison.verdict == "fail" or (comparison.verdict == "inconclusive" and self.options.require_all):
                missed.append(f"{kind} {path}")
        return run, missed

    def _to_junit(self, run: Run) -> None:
        """Put the verdicts against baseline and anchor into JUnit's file (--junitxml), as properties of the suite.

        Pytest's own plugin writes it, and is only there with that option.
        """
        said = [(line.partition(" ")[0], line) for line in self._lines if not line.startswith(" ")]
        for r in run.results:
            found = [v for v in r.verdicts if v.kind in ("baseline", "anchor")]
            said += [(f"{r.experiment}:{r.model.name}:{v.metric}:{v.kind}", f"{v.verdict}: {v.reason}") for v in found]
        for plugin in self.config.pluginmanager.get_plugins():
            add = getattr(plugin, "add_global_property", None)
            if add is not None:
                for name, value in said:
                    add(f"clipbench:{name}", value)

    def _write(self, timings: JsonObject, session: pytest.Session) -> None:
        from clipbench.report.ranking import rankings_by_experiment
        from clipbench.report.summary import write_report
        from clipbench.result import dump_json, write_whole

        run = self._judged or self.session.run()
        document = timings | {"clipbench": run.to_json()}
        content = dump_json(document)
        errors = []
        for path in filter(None, (self.options.results / "run.json", self.options.benchmark_json)):
            try:
                write_whole(path, content)
            except OSError as error:
                errors.append(str(error))
        self._ranked = rankings_by_experiment(run)
        datasets, shown = self.session.datasets(), _headline_metrics()
        undrawn, unwritten = write_report(run, self._ranked, self.options.results, datasets, shown, self._problems)
        errors += unwritten
        self._lines += [f"NOTE: no figure: {line}" for line in undrawn]
        if errors:
            what = "; ".join(errors)
            self._write_error = f"the run's files could not be written: {what}; free space or choose another --results"
        if self.options.update_baseline:
            self._update_baseline(document, session.exitstatus == pytest.ExitCode.OK)

    def _update_baseline(self, document: JsonObject, session_passed: bool) -> None:
        """Write the baseline, and say what changed. A session that did not pass is never accepted as one."""
        from clipbench.judge.baseline import update_baseline
        from clipbench.judge.rules import read_rules

        baseline, anchor, reason = self.options.baseline, self.options.anchor, self.options.reason
        if baseline is None:
            return
        if not session_passed:
            self._lines.append(f"baseline {baseline} stays as it is: the session did not pass")
            return
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        protected = [anchor] if anchor else []
        done = update_baseline(baseline, document, reason, getpass.getuser(), date, read_rules(), protected)
        first = "there was no baseline before: this is the first, nothing was judged" if done.is_first else "changed:"
        self._lines.append(f"baseline {done.path} written ({reason}); {first}")
        self._lines += [f"  {line}" for line in done.changed]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary in short: the verdict, what cannot be told first, where the files are, what to do next."""
        if not self._ran or self._session is None:
            return
        from clipbench.models.zoo import zoo
        from clipbench.report.summary import terminal_lines

        terminalreporter.section("clipbench")
        run = self._judged or self._session.run()
        for line in (*terminal_lines(run, self._ranked, _headline_metrics(), self._problems), *self._lines):
            terminalreporter.write_line(line)
        if self._write_error:
            terminalreporter.write_line(f"ERROR: {self._write_error}", red=True)
        else:
            summary = os.path.relpath(self.options.results / "summary.md", self.config.invocation_params.dir)
            terminalreporter.write_line(f"files: {summary} (also summary.html, run.json, figures/)")
        if set(self.specs) == {"lite"}:
            size = f"{zoo()[SUGGESTED].download_bytes / 1e6:,.0f} MB"
            terminalreporter.write_line(f"lite is a smoke model, not CLIP. Next, a real CLIP (downloads {size} once):")
            terminalreporter.write_line(f"    pytest benchmarks --model {SUGGESTED}")

    def pytest_unconfigure(self) -> None:
        """Let go of pictures, model and cache."""
        self._pictures.close()
        if self._session is not None:
            self._session.close()


class Subject:
    """One model under test: measures experiments and asserts their verdicts."""

    def __init__(
        self, spec: ModelSpec, session: Session, require_all: bool, note: Callable[[Result, Verdict], None]
    ) -> None:
        self.spec = spec
        self._note = note
        self._session = session
        self._require_all = require_all

    def measure(self, *experiments: str) -> list[Result]:
        """Return the experiments' results, each measured once a session. Skips where weights or data cannot be had."""
        return [
            self._guarded(name, partial(self._session.measure, self.spec, name), also=experiments[k + 1 :])
            for k, name in enumerate(experiments)
        ]

    def require(self, experiment: str, *metrics: str, kind: str | None = None) -> Result:
        """Assert that no verdict of these metrics (all, when none is named) and this kind fails; return the result.

        Skips where nothing is claimed of this model. Under --require-all an inconclusive verdict, random weights and images that
        are broken or absent fail.
        """
        from clipbench.report.summary import left_out
        from clipbench.session import RANDOM_REASON

        (result,) = self.measure(experiment)
        if self._require_all and (lost := left_out(result)):
            pytest.fail(f"{experiment} of {self.spec.label}: {lost} (--require-all)", pytrace=False)
        verdicts = [v for v in result.verdicts if v.metric in (metrics or (v.metric,)) and v.kind == (kind or v.kind)]
        for verdict in verdicts:
            self._note(result, verdict)
        failing = [v for v in verdicts if v.verdict == "fail" or (self._require_all and v.verdict == "inconclusive")]
        if failing:
            lines = [f"{v.verdict}: {v.reason}\n    {v.kind} reference: {v.reference}" for v in failing]
            pytest.fail(f"{experiment} of {self.spec.label}\n  " + "\n  ".join(lines), pytrace=False)
        if not verdicts and result.model.is_random:
            self.skip(experiment, RANDOM_REASON)
        if not verdicts:
            what = ", ".join(metrics) or experiment
            reference = {"published": "published value"}.get(kind or "", kind or "reference")
            pytest.skip(
                f"no {reference} is stated for {what} of {self.spec.label} in {result.model.precision}: shown only"
            )
        return result

    def skip(self, experiment: str, reason: str) -> None:
        """Skip the test and note why in the run; under --require-all, fail."""
        self._session.skip(self.spec, experiment, reason)
        if self._require_all:
            pytest.fail(f"{experiment} of {self.spec.label}: {reason} (--require-all)", pytrace=False)
        pytest.skip(reason)

    def time(self, metric: str, benchmark: Any) -> Metric:
        """Return images_per_second or texts_per_second, timed by pytest-benchmark; skips where timing is switched off."""
        from clipbench.experiments import speed

        measure = {"images_per_second": speed.images_per_second, "texts_per_second": speed.texts_per_second}[metric]

        def timer(call: Callable[[], object], rounds: int) -> Sequence[float]:
            benchmark.pedantic(
                call, rounds=rounds
            )  # warmed up before: the number of rounds comes from running the call
            return benchmark.stats.stats.data if benchmark.stats else []

        return self._speed(lambda encoder, work: measure(encoder, work, timer), metric)

    def latency_and_memory(self) -> Metric:
        """Return latency_p50; latency and peak memory are recorded with the speed result."""
        from clipbench.experiments import speed

        return self._speed(
            lambda encoder, work: speed.peak_memory(encoder, work) | speed.latency(encoder, work), "latency_p50"
        )

    def _speed(self, measure: Callable[[Any, Any], dict[str, Metric]], metric: str) -> Metric:
        from clipbench.experiments import speed

        def run() -> Result:
            dataset, settings = self._session.dataset("speed"), self._session.settings
            encoder = self._session.encoder(self.spec)
            self._session.forget_rows()
            metrics = measure(encoder, speed.workload(dataset, settings))
            return self._session.record(self.spec, speed.speed_result(encoder, dataset, settings, metrics))

        result = self._guarded("speed", run)
        if metric not in result.metrics:
            self.skip("speed", f"{metric} was not timed: pytest-benchmark is switched off (--benchmark-disable)")
        return result.metrics[metric]

    def _guarded(self, experiment: str, measure: Callable[[], Result], also: Sequence[str] = ()) -> Result:
        """What `measure` returns. Where it cannot be had or fails, that is noted of `experiment` and of what is asked with it."""
        from clipbench.session import NotLoadedError

        try:
            return measure()
        except ClipbenchError as error:
            problem = error
        for name in also:
            self._session.skip(self.spec, name, str(problem))
        if isinstance(problem, WeightsUnavailableError | DataUnavailableError):
            self.skip(experiment, str(problem))
        self._session.skip(self.spec, experiment, str(problem))
        if isinstance(problem, NotLoadedError):
            pytest.skip(str(problem))
        pytest.fail(str(problem), pytrace=False)


def _experiment_of(item: pytest.Function) -> str:
    """The experiment that a benchmark is about: test_NAME.py, with the name of zero_shot's data set."""
    name = item.path.stem.removeprefix("test_")
    dataset = item.callspec.params.get("zero_shot_name")
    return f"{name}:{dataset}" if dataset else name


def _headline_metrics() -> dict[str, tuple[str, ...]]:
    from clipbench.experiments import all_experiments

    return {name: experiment.shown for name, experiment in all_experiments().items()}


class _ProgressBar:
    """A bar on a terminal, past pytest's capturing, for work of three steps or more; in a pipe, nothing."""

    def __init__(self) -> None:
        self._terminal = os.fdopen(os.dup(2), "w") if os.isatty(2) else None

    def __call__(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Return the iterable, with a bar around it where there is a terminal."""
        if self._terminal is None or total < 3:
            return iterable
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(iterable, f"clipbench {what}", total, False, self._terminal, dynamic_ncols=True)
        return bar


def _benchmark_json(config: pytest.Config) -> dict[str, Any]:
    """Return pytest-benchmark's JSON, made through its own hooks; NaN and infinity as null, what is no JSON as text."""
    hook = config.hook
    timings = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
    commit = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit)
    written: dict[str, Any] = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[b for b in timings.benchmarks if b],
        include_data=True,
        machine_info=timings.get_machine_info(),
        commit_info=commit,
    )
    finite: dict[str, Any] = _finite(written)
    return finite


def _finite(entry: Any) -> Any:
    """The JSON value with NaN and infinity as null, and what is no JSON as text: pytest-benchmark's part has both at times."""
    plain = json.loads(json.dumps(entry, default=str))

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cleaned(v) for k, v in value.items()}
        if isinstance(value, list):
            return [cleaned(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return cleaned(plain)
