"""pytest-benchmark's part of a run's JSON: what it would write itself, also when no timed test ran."""

import json
import math
from typing import Any

import pytest


def benchmark_json(config: pytest.Config) -> dict[str, Any]:
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
