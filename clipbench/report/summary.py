"""The summary of a run: what was measured, what was expected, what the verdict is and why. One list of blocks for all faces."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clipbench.judge.published import shown_only
from clipbench.report.document import Block, Heading, Paragraph, Picture, Table
from clipbench.report.execution import execution_blocks
from clipbench.report.handled import handled_blocks
from clipbench.result import Metric, ModelIdentity, Result, Run, Verdict

ORDER = {"inconclusive": 0, "fail": 1, "pass": 2}
COSINE_NOTE = (
    "Raw cosines cannot be compared between models: each has its own range, and all of them can match every pair. Compare "
    "top-1 rates and margins on the same items, with their intervals; on 8 images a difference of one or two is no difference."
)
LITE_NOTE = (
    "lite is a smoke model, not CLIP: an ImageNet classifier and a sentence encoder joined by a linear map. Its numbers show "
    "that the suite works; they say nothing about any CLIP model."
)
UNITS = {
    "images_per_second": "images/s",
    "texts_per_second": "texts/s",
    "latency_p50": "s",
    "latency_p90": "s",
    "latency_p99": "s",
    "peak_memory_bytes": "bytes",
}


def model_label(model: ModelIdentity) -> str:
    """Return the model's name with its weights, as people call it."""
    return model.name if model.pretrained in ("", "factory", model.name) else f"{model.name} ({model.pretrained})"


def value_text(name: str, metric: Metric) -> str:
    """Return a metric as people read it: rates and cosines with their interval, counts with separators, times with units."""
    value = metric.value
    if name == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if name.startswith("latency"):
        return f"{value * 1e3:,.2f} ms"
    if name in UNITS:
        return f"{value:,.1f} {UNITS[name]}"
    if metric.low is None or metric.high is None:
        return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"
    return f"{value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def worst_verdict(verdicts: Sequence[Verdict]) -> str:
    """Return fail if any failed, else inconclusive if any is, else pass; "measured only" where nothing was judged."""
    words = {v.verdict for v in verdicts}
    return next((w for w in ("fail", "inconclusive", "pass") if w in words), "measured only")


def verdict_line(run: Run, problems: Sequence[str] = ()) -> str:
    """Return one sentence: the verdict of the run and the counts behind it. Nothing judged is never called a pass."""
    verdicts = [v for r in run.results for v in r.verdicts]
    count = {word: sum(v.verdict == word for v in verdicts) for word in ORDER}
    counts = (
        f"{count['pass']} pass, {count['fail']} fail, {count['inconclusive']} inconclusive, {len(run.skipped)} skipped"
    )
    if count["fail"] or problems:
        return f"FAIL: {counts}" + (f"; {len(problems)} test(s) or reference(s) failed" if problems else "")
    if not verdicts:
        return f"CANNOT TELL: nothing was held against a reference ({len(run.results)} result(s), {len(run.skipped)} skipped)"
    if count["inconclusive"]:
        return f"CANNOT TELL IN PART: {counts}"
    return f"{'PASS IN PART' if run.skipped else 'PASS'}: {counts}"


def summary_blocks(
    run: Run,
    figures: Mapping[tuple[str, str, str], Sequence[str]],
    shown: Mapping[str, Sequence[str]],
    problems: Sequence[str] = (),
) -> list[Block]:
    """Return the summary of a run.

    `figures`: (experiment, data set, model label) -> paths relative to the summary. `shown`: experiment -> the metrics the table
    leads with. `problems`: tests that failed, a line each.
    """
    blocks: list[Block] = [Heading("clipbench summary", 1), Paragraph(verdict_line(run, problems))]
    blocks += _open_questions(run, problems)
    blocks += [Heading("Results"), *_results(run, shown)]
    blocks += _verdict_table("Verdicts", [(r, v) for r in run.results for v in r.verdicts])
    blocks += _not_enforced(run)
    if run.skipped:
        rows = [(s.model, s.experiment, s.reason) for s in run.skipped]
        blocks += [Heading("Not measured, or not held to a reference"), Table(("model", "experiment", "reason"), rows)]
    blocks += _figure_blocks(run, figures)
    blocks += _confusions(run)
    blocks += _all_metrics(run)
    blocks += handled_blocks(run)
    blocks += execution_blocks(run)
    blocks += _environment(run)
    return blocks


def _open_questions(run: Run, problems: Sequence[str]) -> Iterator[Block]:
    """What a reader must see first: what could not be told, then what failed."""
    for word, title in (("inconclusive", "Cannot tell"), ("fail", "Failed")):
        yield from _verdict_table(title, [(r, v) for r in run.results for v in r.verdicts if v.verdict == word])
    if problems:
        yield Heading("Failed tests and references")
        yield Table(("what failed",), [(line,) for line in problems])


def _results(run: Run, shown: Mapping[str, Sequence[str]]) -> Iterator[Block]:
    models = {model_label(r.model) for r in run.results}
    rows = []
    for r in run.results:
        names = [n for n in shown.get(r.experiment, tuple(r.metrics)) if n in r.metrics]
        values = ", ".join(f"{n} {value_text(n, r.metrics[n])}" for n in names) or "nothing could be measured"
        items = f"{r.dataset.name} (n={r.dataset.n})" if r.dataset.n else "-"
        reasons = "; ".join(v.reason for v in r.verdicts if v.verdict != "pass")
        rows.append((model_label(r.model), r.experiment, items, values, worst_verdict(r.verdicts), reasons or "-"))
    yield Table(("model", "experiment", "data set", "values with 95 % intervals", "verdict", "reason"), rows)
    if any(r.model.name == "lite" for r in run.results):
        yield Paragraph(LITE_NOTE)
    if len(models) > 1:
        yield Paragraph(COSINE_NOTE)


def _verdict_table(title: str, judged: Sequence[tuple[Result, Verdict]]) -> Iterator[Block]:
    if not judged:
        return
    header = ("verdict", "model", "experiment", "metric", "reason", "kind", "reference")
    rows = [
        (v.verdict, model_label(r.model), r.experiment, v.metric, v.reason, v.kind, v.reference)
        for r, v in sorted(judged, key=lambda pair: ORDER[pair[1].verdict])
    ]
    yield Heading(title)
    yield Table(header, rows)


def _not_enforced(run: Run) -> Iterator[Block]:
    """Published values under another protocol than the run's: to look at, never to be held to."""
    rows = [
        (
            model_label(r.model),
            r.experiment,
            s.metric,
            value_text(s.metric, s.measured),
            f"{s.published:.4f}",
            s.why,
            s.source,
        )
        for r in run.results
        for s in shown_only(r)
    ]
    if rows:
        yield Heading("Published values, shown but not enforced")
        yield Table(("model", "experiment", "metric", "measured", "published", "what differs", "source"), rows)


def _confusions(run: Run) -> Iterator[Block]:
    rows = []
    for r in run.results:
        names = [str(name) for name in r.protocol.get("classes", ())]
        for true, picked, count, size in r.arrays.get("most_confused", np.empty((0, 4))).astype(int).tolist():
            share = f"{count} of {size} ({count / size:.0%})"
            rows.append((model_label(r.model), r.experiment, names[true], names[picked], share))
    if rows:
        yield Heading("Most confused classes")
        yield Table(("model", "experiment", "is", "was taken for", "how often"), rows)


def _figure_blocks(run: Run, figures: Mapping[tuple[str, str, str], Sequence[str]]) -> Iterator[Block]:
    if figures:
        yield Heading("Figures")
    for r in run.results:
        for path in figures.get((r.experiment, r.dataset.name, model_label(r.model)), ()):
            yield Picture(path, f"{r.experiment} of {model_label(r.model)} on {r.dataset.name}")


def _all_metrics(run: Run) -> Iterator[Block]:
    rows = [
        (model_label(r.model), r.experiment, name, value_text(name, metric), str(metric.n))
        for r in run.results
        for name, metric in r.metrics.items()
    ]
    if rows:
        yield Heading("All metrics")
        yield Table(("model", "experiment", "metric", "value", "n"), rows)


def _environment(run: Run) -> Iterator[Block]:
    yield Heading("Environment")
    pairs = [
        (k, str(v)) for part in ("machine", "software") for k, v in run.environment.get(part, {}).items() if v != ""
    ]
    for model in {r.model: None for r in run.results}:
        weights = f"sha256 {model.weights_sha256[:16]}..." if model.weights_sha256 else "the encoder's own"
        activation = f", {model.activation}" if model.activation else ""
        pairs.append(
            (f"model {model_label(model)}", f"weights {weights}, {model.precision} on {model.device}{activation}")
        )
    yield Table(("what", "value"), pairs)
