"""The fixture `subject`: one model under test, whose experiments are measured and whose verdicts are asserted."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from clipbench.errors import ClipbenchError, DataUnavailableError, WeightsUnavailableError
from clipbench.models.zoo import ModelSpec
from clipbench.result import Metric, Result, Verdict

if TYPE_CHECKING:
    from clipbench.session import Session


class Subject:
    """One model under test: measures experiments and asserts their verdicts."""

    def __init__(
        self, spec: ModelSpec, session: "Session", require_all: bool, note: Callable[[Result, Verdict], None]
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
