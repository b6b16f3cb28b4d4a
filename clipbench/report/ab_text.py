"""What `clipbench ab` found, as text for a terminal and as JSON."""

import dataclasses
from collections.abc import Iterator

from clipbench.ab import AbReport
from clipbench.report.comparison import VERDICTS, WORDS
from clipbench.report.document import Table, aligned, sanitize, value_text
from clipbench.result import Metric, dump_json
from clipbench.statistics import LOWER_IS_BETTER, Ratio, rounds_needed

HEADER = ("metric", "base", "head", "head/base", "95 % interval", "shown", "verdict")


def ab_json(report: AbReport) -> str:
    """Return the report as JSON with sorted keys: verdict, exit_code, rounds, turns, tolerance, metrics, differences, base, head."""
    return dump_json(
        {
            "verdict": report.verdict,
            "exit_code": report.exit_code,
            "rounds": report.rounds,
            "turns": report.turns,
            "tolerance": report.tolerance,
            "metrics": [dataclasses.asdict(ratio) for ratio in report.metrics],
            "differences": {name: list(pair) for name, pair in report.differences().items()},
            "base": report.hello["base"],
            "head": report.hello["head"],
        }
    )


def ab_text(report: AbReport) -> str:
    """Return the report as lines: verdict, a line a metric, what differs, how it was measured."""
    counts = {word: sum(r.verdict == word for r in report.metrics) for word in ("fail", "inconclusive", "pass")}
    lines = [
        f"{VERDICTS[report.verdict]}: {counts['fail']} fail, {counts['inconclusive']} cannot tell, {counts['pass']} pass "
        f"(a loss beyond {report.tolerance:.3g} of base's value fails when it is shown, passes when it is excluded)",
        "",
    ]
    lines += aligned(Table(HEADER, [_row(ratio) for ratio in report.metrics]))
    lines += ["", *_undecided(report)]
    lines.append(
        "what differs: "
        + (
            "; ".join(f"{name} {base} -> {head}" for name, (base, head) in report.differences().items())
            or "nothing known"
        )
    )
    model, machine = report.hello["base"]["model"], report.hello["base"]["environment"]["machine"]
    where = machine.get("accelerator") or f"{machine.get('processor')}, {machine.get('threads')} threads"
    lines.append(
        f"measured: {model['name']}, {model['precision']}, batch {report.hello['base']['batch']}, on {model['device']} ({where}); "
        f"{report.rounds} rounds of two fresh processes, {report.turns} turns each, A B B A"
    )
    return "\n".join(sanitize(line) for line in lines) + "\n"


def _row(ratio: Ratio) -> tuple[str, ...]:
    values = [value_text(ratio.metric, Metric(v, len(ratio.rounds))) for v in (ratio.base, ratio.head)]
    interval = "-" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
    return (ratio.metric, *values, f"{ratio.ratio:.3f}", interval, _shown(ratio), WORDS[ratio.verdict])


def _shown(ratio: Ratio) -> str:
    if ratio.direction == "cannot tell":
        return "no difference shown"
    if ratio.metric == "peak_memory_bytes":
        return f"{abs(ratio.ratio - 1):.1%} {'less' if ratio.direction == 'better' else 'more'}"
    slower = 1 - ratio.ratio if ratio.metric not in LOWER_IS_BETTER else ratio.ratio - 1
    return f"{abs(slower):.1%} {'faster' if ratio.direction == 'better' else 'slower'}"


def _undecided(report: AbReport) -> Iterator[str]:
    for ratio in report.metrics:
        if ratio.verdict == "inconclusive":
            needed = rounds_needed(ratio, report.tolerance)
            way = (
                f"about {needed} rounds would tell (--rounds {needed})"
                if needed
                else "it lies close to the tolerance: more --rounds, or another --tolerance"
            )
            yield f"cannot tell {ratio.metric}: {way}"
