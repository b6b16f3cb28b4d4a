"""What one pytest session of benchmarks holds: the models, the measuring session, what failed, and its files."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from clipbench.errors import ClipbenchError, DataUnavailableError, UsageError, WeightsUnavailableError
from clipbench.models.resolve import resolve
from clipbench.models.zoo import ModelSpec, zoo
from clipbench.result import Metric, Result, Run, dump_json, write_whole
from clipbench.settings import Request, T

if TYPE_CHECKING:
    from clipbench.session import Session

SUGGESTED = "ViT-B/16"


class Subject:
    """One model under test: measures experiments and asserts their verdicts."""

    def __init__(self, spec: ModelSpec, session: "Session", require_all: bool) -> None:
        self.spec = spec
        self._session = session
        self._require_all = require_all

    def measure(self, experiment: str) -> Result:
        """Return the experiment's result, measured once a session. Skips where weights or data cannot be had."""
        return self._guarded(experiment, lambda: self._session.measure(self.spec, experiment))

    def require(self, experiment: str, *metrics: str, kind: str | None = None) -> Result:
        """Assert that no verdict of these metrics (all, when none is named) and this kind fails; return the result.

        Skips where nothing is claimed of this model. Under --require-all an inconclusive verdict and random weights fail.
        """
        from clipbench.session import RANDOM_REASON

        result = self.measure(experiment)
        verdicts = [v for v in result.verdicts if v.metric in (metrics or (v.metric,)) and v.kind == (kind or v.kind)]
        failing = [v for v in verdicts if v.verdict == "fail" or (self._require_all and v.verdict == "inconclusive")]
        if failing:
            lines = [f"{v.verdict}: {v.reason}\n    {v.kind} reference: {v.reference}" for v in failing]
            pytest.fail(f"{experiment} of {self.spec.label}\n  " + "\n  ".join(lines), pytrace=False)
        if not verdicts and result.model.is_random:
            self.skip(experiment, RANDOM_REASON)
        if not verdicts:
            what = ", ".join(metrics) or experiment
            pytest.skip(
                f"no {kind or 'reference'} is stated for {what} of {self.spec.label} in {result.model.precision}: shown only"
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
            benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
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
            metrics = measure(encoder, speed.workload(dataset, settings))
            return self._session.record(self.spec, speed.speed_result(encoder, dataset, settings, metrics))

        result = self._guarded("speed", run)
        if metric not in result.metrics:
            self.skip("speed", f"{metric} was not timed: pytest-benchmark is switched off (--benchmark-disable)")
        return result.metrics[metric]

    def _guarded(self, experiment: str, measure: Callable[[], Result]) -> Result:
        from clipbench.session import NotLoadedError

        try:
            return measure()
        except ClipbenchError as error:
            problem = error
        if isinstance(problem, WeightsUnavailableError | DataUnavailableError):
            self.skip(experiment, str(problem))
        self._session.skip(self.spec, experiment, str(problem))
        if isinstance(problem, NotLoadedError):
            pytest.skip(str(problem))
        pytest.fail(str(problem), pytrace=False)


class BenchmarkSession:
    """The plugin object of one session that reaches the benchmarks.

    Raises: UsageError at once for models, weights, devices and folders that cannot be meant.
    """

    def __init__(self, config: pytest.Config, request: Request) -> None:
        self.config = config
        self.request = request
        self.collect_only: bool = config.option.collectonly
        self.specs = {spec.name: spec for spec in resolve(request.models, request.pretrained, request.activation)}
        if request.results.exists() and not request.results.is_dir():
            raise UsageError(f"--results {request.results} is a file; give a folder")
        self.zero_shot = tuple(_named_folder(text, request.folder) for text in request.zero_shot)
        for option, root in (
            ("--coco", request.coco),
            ("--roco", request.roco),
            *(("--zero-shot", r) for _, r in self.zero_shot),
        ):
            if root is not None and not root.is_dir():
                raise UsageError(f"{option} {root}: no such folder; give the data set's root")
        self._session: Session | None = None
        self._problems: list[str] = []
        self._ran: set[str] = set()
        self._benchmarks: set[str] = set()
        self._write_error = ""
        self._terminal = None if self.collect_only else _own_terminal()
        self.benchmark_json: Path | None = getattr(config.option, "benchmark_json", None)
        if self.benchmark_json is not None:
            config.option.benchmark_json = (
                None  # pytest-benchmark writes nothing when no timed test ran: this plugin writes it
            )
        if not self.collect_only:
            self._session = self._make_session()

    def _make_session(self) -> "Session":
        from clipbench.session import Session, make_settings

        request = self.request
        for spec in self.specs.values():
            if spec.source == "factory":
                from clipbench.models.custom import find_factory

                find_factory(spec.name)
        return Session(
            make_settings(
                request.device,
                request.precision,
                request.batch_size,
                request.workers,
                request.offline,
                progress=self.progress,
                coco=request.coco,
                coco_crop=request.coco_crop,
                roco=request.roco,
                zero_shot=self.zero_shot,
            )
        )

    @property
    def session(self) -> "Session":
        """The measuring session; there is none when tests are only collected."""
        if self._session is None:
            raise RuntimeError("nothing is measured under --collect-only")
        return self._session

    def subject(self, name: str) -> Subject:
        """Return the model under test of that name."""
        return Subject(self.specs[name], self.session, self.request.require_all)

    def free(self) -> None:
        """Free the loaded model, if any."""
        self.session.free()

    def progress(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Show a bar on a terminal for work of many steps; in a pipe, nothing."""
        if self._terminal is None or total < 3:
            return iterable
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(iterable, f"clipbench {what}", total, False, self._terminal, dynamic_ncols=True)
        return bar

    def pytest_report_header(self) -> list[str]:
        """Say which models, weights, device and precision will run."""
        lines = []
        for spec in self.specs.values():
            weights = {"lite": "embedded smoke model", "factory": "your own encoder"}.get(
                spec.source, f"weights {spec.pretrained}"
            )
            activation = f", {spec.activation} ({spec.why})" if spec.activation else ""
            lines.append(f"clipbench model: {spec.name}, {weights}{activation}")
        device, size = self.request.device, self.request.batch_size or "default"
        if self._session is not None:
            device, size = self._session.settings.device, self._session.settings.batch_size
        lines.append(
            f"clipbench device: {device}, precision {self.request.precision}, batch size {size}, workers {self.request.workers}"
        )
        return lines

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out benchmarks of data that was not given (not asked for is not skipped); remember the benchmarks."""
        left_out = [i for i in items for m in i.iter_markers("needs_option") if not getattr(self.request, m.args[0])]
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
        self._benchmarks = {item.nodeid for item in items if "subject" in getattr(item, "fixturenames", ())}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember which benchmarks ran and which failed."""
        if report.nodeid not in self._benchmarks:
            return
        self._ran.add(report.nodeid)
        if report.failed:
            message = str(report.longrepr).strip().splitlines() or [""]
            self._problems.append(
                f"{report.nodeid.rsplit('/', 1)[-1]}: {message[-1] if report.longreprtext.count('Traceback') else message[0]}"
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Put the run into what pytest-benchmark saves (--benchmark-save, --benchmark-autosave)."""
        if self._ran:
            output_json["clipbench"] = self.session.run().to_json()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the run's files after every session that ran a benchmark, however it ended."""
        if not self._ran or self._session is None:
            return
        try:
            self._write(self._session.run())
        except OSError as error:
            self._write_error = f"the run's files could not be written: {error}; free space or choose another --results"
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, run: Run) -> None:
        from clipbench.experiments import all_experiments
        from clipbench.report.files import write_report

        content = dump_json(_finite(self._benchmark_json()) | {"clipbench": run.to_json()})
        for path in filter(None, (self.request.results / "run.json", self.benchmark_json)):
            write_whole(Path(self.config.invocation_params.dir, path), content)
        shown = {name: e.shown for name, e in all_experiments().items()}
        write_report(run, self.request.results, self.session.datasets(), shown, self._problems)

    def _benchmark_json(self) -> dict[str, Any]:
        """What pytest-benchmark itself would write, through its own hooks, also when no timed test ran."""
        hook = self.config.hook
        timings = self.config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's handle on the config
        commit = hook.pytest_benchmark_generate_commit_info(config=self.config)
        hook.pytest_benchmark_update_commit_info(config=self.config, commit_info=commit)
        written: dict[str, Any] = hook.pytest_benchmark_generate_json(
            config=self.config,
            benchmarks=[b for b in timings.benchmarks if b],
            include_data=True,
            machine_info=timings.get_machine_info(),
            commit_info=commit,
        )
        return written

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary in short: the verdict, what cannot be told first, where the files are, what to do next."""
        if not self._ran or self._session is None:
            return
        from clipbench.experiments import all_experiments
        from clipbench.report.terminal import terminal_lines

        terminalreporter.section("clipbench")
        shown = {name: e.shown for name, e in all_experiments().items()}
        for line in terminal_lines(self._session.run(), shown, self._problems):
            terminalreporter.write_line(line)
        if self._write_error:
            terminalreporter.write_line(f"ERROR: {self._write_error}", red=True)
        else:
            terminalreporter.write_line(
                f"files: {os.path.relpath(self.request.results / 'summary.md', self.config.invocation_params.dir)} "
                f"(also summary.html, run.json, figures/)"
            )
        for line in self._next_step():
            terminalreporter.write_line(line)

    def _next_step(self) -> Iterator[str]:
        if set(self.specs) == {"lite"}:
            size = zoo()[SUGGESTED].download_bytes / 1e6
            yield f"lite is a smoke model, not CLIP. Next, a real CLIP (downloads {size:,.0f} MB once):"
            yield f"    pytest benchmarks --model {SUGGESTED}"


def _named_folder(text: str, folder: Path) -> tuple[str, Path]:
    name, separator, root = text.partition("=")
    if not (name and separator and root):
        raise UsageError(f"--zero-shot {text}: expected NAME=ROOT, for example imagenet1k=/data/imagenet/val")
    return name, folder / root


def _own_terminal() -> TextIO | None:
    """A stream to the terminal that pytest's capturing does not reach, or None when there is no terminal."""
    try:
        return os.fdopen(os.dup(2), "w") if os.isatty(2) else None
    except OSError:
        return None


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
