"""Speed and memory between two processes: fails only beyond 25 % or the spread of the base's own repeats, memory beyond 10 %.

The machine must match; software, weights and precision are the subject and may differ. On another machine nothing can be said:
undecided. On the same machine with other threads or another batch the setting was changed, not the subject: reported as
not comparable, and it decides nothing. Finer differences need both environments alternating on one machine (`clipbench ab`).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clipbench.judge.finding import Finding, about
from clipbench.judge.matching_results import Pair
from clipbench.judge.tolerances import Rules, SpeedRule
from clipbench.result import Result, Run
from clipbench.run_file import Timing

EXPERIMENT = "speed"
MACHINE = ("processor", "accelerator", "driver")
SETTINGS = ("threads",)
SETTING_KEYS = ("batch",)
LOW, HIGH = 0.05, 0.95


def speed_findings(pair: Pair, base: Run, head: Run, rules: Rules, timings: Sequence[Timing] = ()) -> Iterator[Finding]:
    """Yield a finding on each speed metric, or one that says why the two are not comparable.

    `timings`: pytest-benchmark's own repeats of the base.
    """
    machine, settings = _obstacles(pair, base.environment.get("machine", {}), head.environment.get("machine", {}))
    if machine or settings:
        reason = f"speed is not comparable: {'; '.join(machine + settings)}"
        reason += "; measure both on one machine, or judge the rest alone with --only" if machine else ""
        yield about(pair.base, "not comparable", "inconclusive" if machine else "note", reason)
        return
    for metric in pair.base.metrics:
        if metric not in pair.head.metrics:
            continue
        rule = rules.speed_rule(metric)
        if rule is None:
            yield about(pair.base, "shown", "note", "shown, not judged: its repeats are not known", metric, pair.head)
        else:
            yield _judged(pair, metric, rule, spread_of(pair.base, metric, timings))


def spread_of(base: Result, metric: str, timings: Sequence[Timing]) -> float:
    """Return how far base's own repeats lie apart, as a share of their median; 0 where no repeats are stored.

    Throughput: rounds of pytest-benchmark, from the 5th to the 95th percentile. latency_p50: p90 over p50, less one.
    """
    if metric == "latency_p50" and "latency_p90" in base.metrics and base.metrics[metric].value > 0:
        return base.metrics["latency_p90"].value / base.metrics[metric].value - 1
    for timing in timings:
        about_it = timing.test.split("[")[0].endswith(metric) and timing.model == base.model.name
        if about_it and len(timing.seconds) > 1 and np.median(timing.seconds) > 0:
            low, high = np.quantile(timing.seconds, [LOW, HIGH])
            return float((high - low) / np.median(timing.seconds))
    return 0.0


def _judged(pair: Pair, metric: str, rule: SpeedRule, spread: float) -> Finding:
    before, after = pair.base.metrics[metric].value, pair.head.metrics[metric].value
    if before <= 0:
        return about(pair.base, "speed", "inconclusive", f"base is {before:g}: measure it again", metric, pair.head)
    worse = (before - after if rule.better == "higher" else after - before) / before
    allowed = min(max(rule.allowed, spread), max(rule.allowed, rule.widest))
    why = f"{rule.allowed:.0%} between processes"
    if allowed > rule.allowed:
        why = f"{allowed:.0%}: base's own repeats spread by {spread:.0%}"
    change = f"worse by {worse:.1%}" if worse > 0 else f"better by {-worse:.1%}" if worse < 0 else "the same"
    if worse > allowed:
        return about(pair.base, "speed", "fail", f"{change}, beyond the allowed {why}", metric, pair.head)
    reason = f"{change}, within the allowed {why}"
    if worse > rule.allowed:
        reason += "; not told from noise: `clipbench ab` settles it"
    return about(pair.base, "speed", "pass", reason, metric, pair.head)


def _obstacles(pair: Pair, base: Mapping[str, object], head: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """What differs of the machine or the items, and what differs of the settings alone."""

    def differing(keys: Sequence[str]) -> list[str]:
        pairs = [(key, base.get(key, "unknown"), head.get(key, "unknown")) for key in keys]
        return [f"{key} {before or 'none'} -> {after or 'none'}" for key, before, after in pairs if before != after]

    machine, settings = differing(MACHINE), differing(SETTINGS)
    if not base or not head:
        machine.append("the machine is not recorded")
    if pair.base.model.device.split(":")[0] != pair.head.model.device.split(":")[0]:
        machine.append(f"device {pair.base.model.device} -> {pair.head.model.device}")
    for obstacle in pair.obstacles:
        (settings if obstacle.split(" ")[0] in SETTING_KEYS else machine).append(obstacle)
    return machine, settings
