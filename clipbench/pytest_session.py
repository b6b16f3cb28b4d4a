"""What one pytest session of benchmarks holds: the models, the measuring session, what failed, and its files."""

import os
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipbench.data.dataset import kept_pictures, picture_budget_bytes
from clipbench.errors import ClipbenchError
from clipbench.judge.references import doubtful
from clipbench.models.zoo import resolve
from clipbench.pytest_baseline import Outcome, judge, update
from clipbench.pytest_progress import ProgressBar
from clipbench.pytest_request import checked_folders, measuring
from clipbench.pytest_subject import Subject
from clipbench.pytest_timings import benchmark_json
from clipbench.pytest_words import experiment_of, header_lines, next_step, to_junit
from clipbench.result import Result, Run, Verdict, dump_json, write_whole
from clipbench.settings import Request

if TYPE_CHECKING:
    from clipbench.embeddings_file import SavedRows
    from clipbench.report.ranking import Ranked
    from clipbench.session import Session


class BenchmarkSession:
    """The plugin object of one session that reaches the benchmarks.

    Raises: UsageError at once for models, weights, devices and folders that cannot be meant.
    """

    def __init__(self, config: pytest.Config, request: Request) -> None:
        self.config = config
        self.request = request
        self.collect_only: bool = config.option.collectonly
        self.specs = {spec.name: spec for spec in resolve(request.models, request.pretrained, request.activation)}
        self.zero_shot = checked_folders(config, request)
        self._session: Session | None = None
        self._pictures = ExitStack()
        self._problems: list[str] = []
        self._ran: set[str] = set()
        self._benchmarks: dict[str, tuple[str, str]] = {}
        self._only_planned = bool(config.option.setuponly or config.option.setupplan)
        self._item: pytest.Item | None = None
        self._write_error = ""
        self._judged: Run | None = None
        self._ranked: Ranked = ()
        self._timings: dict[str, Any] = {}
        self._lines: list[str] = []
        self.benchmark_json: Path | None = config.option.benchmark_json
        if not self.collect_only:
            self._session = self._make_session()

    def _make_session(self) -> "Session":
        from clipbench.session import Session

        for spec in self.specs.values():
            if spec.source == "factory":
                from clipbench.models.encoder import find_factory

                find_factory(spec.name)
        keep_rows = {"keep_rows": self.save_rows} if self.request.save_embeddings else {}
        return Session(measuring(self.request, self.zero_shot, progress=ProgressBar(self.collect_only), **keep_rows))

    @property
    def session(self) -> "Session":
        """The measuring session; there is none when tests are only collected."""
        if self._session is None:
            raise RuntimeError("nothing is measured under --collect-only")
        return self._session

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every benchmark once per model; the session's scope keeps each model's tests together."""
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", list(self.specs), indirect=True, scope="session")
            if "zero_shot_name" in metafunc.fixturenames:
                metafunc.parametrize("zero_shot_name", [name for name, _ in self.zero_shot])

    @pytest.fixture(scope="session")
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        """The model under test: loaded when it is first asked for, freed before the next one."""
        yield Subject(self.specs[request.param], self.session, self.request.require_all, self._note)
        self.session.free()

    def _note(self, result: Result, verdict: Verdict) -> None:
        """Make a verdict a property of the test that asserts it: pytest's own --junitxml writes it."""
        if self._item is not None:
            name = f"clipbench:{result.experiment}:{verdict.metric}:{verdict.kind}"
            self._item.user_properties.append((name, f"{verdict.verdict}: {verdict.reason}"))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Remember which test is running."""
        self._item = item

    def save_rows(self, rows: "SavedRows") -> None:
        """Write an experiment's rows beside the run (--save-embeddings); a full disk fails the session, not the measurement."""
        from clipbench.embeddings_file import write_rows

        try:
            write_rows(self.request.results, rows)
        except OSError as error:
            what = f"the rows of {rows.experiment} could not be saved"
            self._write_error = f"{what}: {error}; free space or drop --save-embeddings"

    def pytest_report_header(self) -> list[str]:
        """Say which models, weights, device and precision will run."""
        return header_lines(self.specs.values(), self.request, self._session.settings if self._session else None)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out benchmarks of data that was not given (not asked for is not skipped); remember the benchmarks."""
        left_out = [i for i in items for m in i.iter_markers("needs_option") if not getattr(self.request, m.args[0])]
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        found = [i for i in items if isinstance(i, pytest.Function) and "subject" in i.fixturenames]
        if not self._only_planned:
            self._benchmarks = {i.nodeid: (str(i.callspec.params["subject"]), experiment_of(i)) for i in found}
        if self._benchmarks:  # pytest-benchmark writes nothing when no timed test ran: this plugin writes the file
            self.config._benchmarksession.json = None  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
        several = len({(i.path, i.callspec.params["subject"]) for i in found}) > 1
        if self._session is not None and several and not self.request.plain:
            self._pictures.enter_context(kept_pictures(picture_budget_bytes()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember which benchmarks ran and which failed."""
        if report.nodeid not in self._benchmarks:
            return
        if report.when == "call" or not report.passed:
            self._ran.add(report.nodeid)
        if report.failed:
            message = report.longreprtext.strip().splitlines() or [""]
            self._problems.append(f"{report.nodeid.partition('::')[2]}: {message[0 if len(message) < 8 else -1]}")

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
        outcome = self._judge(self._session, session)
        try:
            return (yield)
        finally:
            try:
                self._write(outcome, session)
            except (OSError, ClipbenchError) as error:
                self._write_error = str(error)
            if self._write_error and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _judge(self, measured: "Session", session: pytest.Session) -> Outcome:
        left = [of for node, of in self._benchmarks.items() if node not in self._ran]
        for (name, experiment), count in Counter(left).items():
            measured.skip(self.specs[name], experiment, f"the session ended before {count} of its benchmarks ran")
        run, told = measured.run(), " ".join(self._problems)
        unloaded = [f"{label} could not be loaded" for label in measured.failed_to_load() if label not in told]
        doubts = list(doubtful(run))
        outcome = Outcome(run)
        self._timings = benchmark_json(self.config)
        try:
            outcome = judge(self.request, run, self._timings | {"clipbench": run.to_json()})
        except ClipbenchError as error:  # the run itself is written all the same
            self._write_error = str(error)
        to_junit(self.config, outcome)
        missed = outcome.failed + (outcome.undecided if self.request.require_all else [])
        self._problems += [*unloaded, *doubts, *(f"{reference} does not hold" for reference in missed)]
        failing = unloaded or doubts or missed or measured.failed_to_load()
        if failing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._judged = outcome.run
        self._lines = [*outcome.lines, *(f"FAIL: {doubt}" for doubt in doubts)]
        self._lines += [f"NOTE: {problem}" for problem in measured.cache_problems]
        return outcome

    def _write(self, outcome: Outcome, session: pytest.Session) -> None:
        document = self._timings | {"clipbench": outcome.run.to_json()}
        content = dump_json(document)
        errors = []
        for path in filter(None, (self.request.results / "run.json", self.benchmark_json)):
            try:
                write_whole(Path(self.request.folder, path), content)
            except OSError as error:
                errors.append(str(error))
        errors += self._report(outcome.run)
        if errors:
            what = "; ".join(errors)
            self._write_error = f"the run's files could not be written: {what}; free space or choose another --results"
        self._lines += update(self.request, document, session.exitstatus == pytest.ExitCode.OK)

    def _report(self, run: Run) -> list[str]:
        """Write the report; return what could not be written. A figure that could not be drawn is a note."""
        from clipbench.experiments import all_experiments
        from clipbench.report.ranking import rankings_by_experiment
        from clipbench.report.summary import write_report

        shown = {name: e.shown for name, e in all_experiments().items()}
        self._ranked = rankings_by_experiment(run)
        datasets = self.session.datasets()
        undrawn, unwritten = write_report(run, self._ranked, self.request.results, datasets, shown, self._problems)
        self._lines += [f"NOTE: no figure: {line}" for line in undrawn]
        return unwritten

    def pytest_unconfigure(self) -> None:
        """Let go of pictures, model and cache."""
        self._pictures.close()
        if self._session is not None:
            self._session.close()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary in short: the verdict, what cannot be told first, where the files are, what to do next."""
        if not self._ran or self._session is None:
            return
        from clipbench.experiments import all_experiments
        from clipbench.report.summary import terminal_lines

        terminalreporter.section("clipbench")
        shown = {name: e.shown for name, e in all_experiments().items()}
        run = self._judged or self._session.run()
        for line in (*terminal_lines(run, self._ranked, shown, self._problems), *self._lines):
            terminalreporter.write_line(line)
        if self._write_error:
            terminalreporter.write_line(f"ERROR: {self._write_error}", red=True)
        else:
            terminalreporter.write_line(
                f"files: {os.path.relpath(self.request.results / 'summary.md', self.config.invocation_params.dir)} "
                f"(also summary.html, run.json, figures/)"
            )
        for line in next_step(self.specs):
            terminalreporter.write_line(line)
