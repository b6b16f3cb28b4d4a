"""The summary in short, for the end of a session: a line a result, what cannot be told first."""

from collections.abc import Iterator, Mapping, Sequence

from clipbench.report.execution import execution_lines
from clipbench.report.handled import left_out_lines
from clipbench.report.ranking import ranking_lines
from clipbench.report.summary import ORDER, model_label, value_text, verdict_line, worst_verdict
from clipbench.result import Run


def terminal_lines(run: Run, shown: Mapping[str, Sequence[str]], problems: Sequence[str]) -> Iterator[str]:
    """Return the lines: verdict; inconclusive and failed verdicts with reasons; a line a result, a skip, a ranking."""
    yield verdict_line(run, problems)
    open_verdicts = [(r, v) for r in run.results for v in r.verdicts if v.verdict != "pass"]
    for result, verdict in sorted(open_verdicts, key=lambda pair: ORDER[pair[1].verdict]):
        yield f"  {verdict.verdict}: {result.experiment} of {model_label(result.model)}: {verdict.reason}"
    width = max((len(model_label(r.model)) for r in run.results), default=0)
    for result in run.results:
        names = [n for n in shown.get(result.experiment, ()) if n in result.metrics]
        values = ", ".join(f"{n} {value_text(n, result.metrics[n])}" for n in names)
        yield f"  {model_label(result.model):{width}}  {result.experiment:12} {worst_verdict(result.verdicts):13} {values}"
    together: dict[tuple[str, str], list[str]] = {}
    for skip in run.skipped:
        if any(skip.reason in problem for problem in problems):
            continue  # it failed, and was told in full
        together.setdefault((skip.model, skip.reason), []).append(skip.experiment)
    for (model, reason), experiments in together.items():
        yield f"  skipped: {', '.join(experiments)} of {model}: {reason}"
    yield from (f"  {line}" for line in (*left_out_lines(run), *execution_lines(run)))
    yield from ranking_lines(run)
