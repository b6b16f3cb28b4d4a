"""What a report says first, in whatever form: may each model be shipped, what changed since the base, and which items.

Made once from a run and, where there is one, its comparison with a base; the terminal, Markdown and the page show the same.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clipbench.judge.compare import COMPLETE, Cell, Comparison, ItemChange
from clipbench.judge.references import judged_by
from clipbench.judge.trace import STAGES, sentence
from clipbench.report.document import Answer, Block, Details, Heading, Paragraph, Shown, Table, Thumb, with_unit
from clipbench.report.thumbs import Gallery
from clipbench.types import Key, MetricSpec, ModelIdentity, Outcome, Result, Run, Verdict, overall

WORDS: Mapping[Outcome, str] = {
    "pass": "Ship",
    "fail": "Do not ship",
    "inconclusive": "Inconclusive",
    "note": "Not judged",
}
SHADES = ("fail", "inconclusive", "accepted", "note", "pass")
OPEN_ITEMS, FOLDED_ITEMS, FOLDED_PICTURES, OPEN_GROUPS = 10, 200, 10, 3
OPEN_CONFUSIONS = 10
"""Rows before the fold: what a reader takes in within half a minute."""
EXACT = MetricSpec("", "mean")
BASES = ("baseline", "anchor")


@dataclass(frozen=True)
class Compared:
    """A run held to a base."""

    base: Run
    comparison: Comparison
    name: str = "the base"

    def before(self, run: Run) -> dict[Key, Result]:
        """Return base's results by the keys of head's, also where each has one model, of another name."""
        models = {r.model.name for r in run.results}
        old = {r.model.name for r in self.base.results}
        if len(models) == len(old) == 1:
            return {r.key._replace(model=next(iter(models))): r for r in self.base.results}
        return {r.key: r for r in self.base.results}


# Ten seconds.


def answers(run: Run, compared: Compared | None, problems: Sequence[str] = ()) -> list[Answer]:
    """Return for each model of a run whether it may be shipped, why, and what to do next."""
    labels = {r.model.name: short_label(r.model) for r in run.results}
    names = dict.fromkeys([*labels, *(key.model for key in run.plan), *(s.key.model for s in run.skipped)])
    found = []
    for name in names:
        about = labels.get(name, name)
        own = [p for p in problems if len(names) == 1 or name in p]
        stated = [v for r in run.results if r.model.name == name for v in r.verdicts]
        if compared is None:
            found.append(_unheld(about, name, run, own))
            continue
        own += [
            f"{name_of(v.key, v.metric)}: {v.reason}" for v in stated if v.outcome == "fail" and v.kind not in BASES
        ]
        known = _models(compared.comparison)
        model = known[0] if len(known) == len(names) == 1 else name  # what is under test may have another name in base
        found.append(_held(about, model, compared.comparison, compared.name, own))
    return found


ASKED = "what was asked for"
WORSE: Mapping[Outcome, str] = {"fail": "fail", "inconclusive": "are inconclusive"}


def model_answers(comparison: Comparison, head: Run | None = None) -> list[Answer]:
    """Return for each model of a comparison whether it may be shipped, why, and what to do next; `head` knows its own name."""
    models, own = (
        _models(comparison) or ["head"],
        list(dict.fromkeys(r.model.name for r in head.results) if head else ()),
    )
    names = own if len(own) == len(models) == 1 else models
    return [_held(about, model, comparison, "the base") for about, model in zip(names, models, strict=True)]


def _models(comparison: Comparison) -> list[str]:
    about = (v.key.model for v in comparison.verdicts if v.key.experiment != "index")
    return list(dict.fromkeys(model for model in about if model not in ("", "-")))


def _held(about: str, model: str, comparison: Comparison, name: str, problems: Sequence[str] = ()) -> Answer:
    cells = cells_of_model(comparison, model)
    worst = overall(cell.outcome for cell in cells)
    if worst == "note":
        worst = "pass" if any(cell.is_accepted for cell in cells) else "inconclusive"
    others = [p for p in problems if not any(cell.id in p for cell in cells)]
    if others and worst != "fail":
        worst = "fail"
    pressing = [cell for cell in cells if cell.outcome == worst] if worst in ("fail", "inconclusive") else []
    counts = Counter("accepted" if cell.is_accepted else cell.outcome for cell in cells)
    count = ", ".join(f"{counts[word]} {word}" for word in ("fail", "inconclusive", "pass", "accepted") if counts[word])
    first = next((_gist(cell, comparison) for cell in sorted(pressing, key=_weight)), "")
    reason = f"Of {len(cells)} checks against {name}: {count}." if count else f"Nothing was compared with {name}."
    if first or others:
        more = sum(v.outcome == worst and bool(v.metric) for cell in pressing for v in cell.verdicts) - 1
        rest = f" Metrics that {WORSE[worst]} beside it: {more}." if more > 0 and worst in WORSE else ""
        reason = f"{_sentence(first or others[0])}{rest} {reason}"
    elif worst == "pass":
        asked = [
            v.reason for cell in cells for v in cell.verdicts if v.kind == "subject" and v.reason.startswith(ASKED)
        ]
        allowed = "".join(f" {_sentence(f'{said}: its rows were allowed to move')}" for said in asked)
        reason = f"Nothing that was compared is worse beyond what is allowed.{allowed} {reason}"
    return Answer(about, worst, WORDS[worst], reason, _next(worst, pressing, comparison, model))


def _unheld(about: str, model: str, run: Run, problems: Sequence[str]) -> Answer:
    verdicts = [v for r in run.results if r.model.name == model for v in r.verdicts]
    worst = "fail" if problems else overall(verdicts)
    counts = Counter(v.outcome for v in verdicts)
    count = ", ".join(f"{counts[word]} {word}" for word in ("fail", "inconclusive", "pass") if counts[word])
    first = next((v for word in ("fail", "inconclusive") for v in verdicts if v.outcome == word), None)
    hint = "give --baseline RUN.json to see what changed since a run that you trust"
    if worst in ("fail", "inconclusive"):
        said = f"{name_of(first.key, first.metric)}: {first.reason}" if first is not None else problems[0]
        then = (
            "look at the reasons below; a floor or a published value is never accepted away" if first else "see below"
        )
        return Answer(about, worst, WORDS[worst], f"{_sentence(said)} References: {count or 'none'}.", then)
    label = next((r.model.label for r in run.results if r.model.name == model), "")
    kinds = judged_by(run).get(label, frozenset())
    if not any(r.model.name == model for r in run.results):
        skipped = next((s.reason for s in run.skipped if s.key.model == model), "nothing was measured")
        return Answer(about, "note", "Not measured", _sentence(skipped), "mend that, and measure again")
    if worst == "pass" and kinds:
        held = f"Every reference that it was held to holds ({count}); it was compared with no base."
        if kinds & set(BASES):  # the cells of subject, trace and completeness are not kept in a run
            held = f"What the run keeps of its comparison with a base holds ({count}); that is not all of it."
            hint = "clipbench report BASE HEAD -o DIR says all that changed"
        return Answer(about, "pass", "Pass, no base", held, hint)
    return Answer(about, "note", WORDS["note"], "It was measured, and its quality was held to nothing.", hint)


def cells_of_model(comparison: Comparison, model: str) -> list[Cell]:
    """Return the cells about a model, each with its verdicts on that model, or on no model at all."""
    found = []
    for cell in comparison.cells:
        own = tuple(v for v in cell.verdicts if v.key.model in (model, "", "-") or v.key.experiment == "index")
        if own:
            found.append(Cell(cell.id, own, cell.accepted))
    return found


def _weight(cell: Cell) -> tuple[int, float]:
    """Quality says most to a reader; of it, what fell furthest."""
    kinds = ("quality", "rows", "complete", "speed")
    kind = next((k for k, word in enumerate(kinds) if word in cell.id.split("[")[0]), len(kinds))
    falls = [
        v.head - v.base for v in cell.verdicts if v.outcome == cell.found and v.base is not None and v.head is not None
    ]
    return kind, min(falls, default=0.0)


def _gist(cell: Cell, comparison: Comparison) -> str:
    """The worst of a cell in one clause: metric and data set, base to head, by how much."""
    deciding = [v for v in cell.verdicts if v.outcome == cell.found]
    verdict = min(deciding, key=lambda v: (v.metric == "", (v.head or 0.0) - (v.base or 0.0)))
    if verdict.kind == "reference":  # a floor may move while the metric stands still
        return f"{name_of(verdict.key, verdict.metric)}: {verdict.reason}"
    spec = comparison.specs.get((verdict.key, verdict.metric), EXACT)
    if verdict.base is None or verdict.head is None:
        return f"{about_of(verdict)}: {verdict.reason}"
    moved = f"{plain_value(spec, verdict.base)} to {plain_value(spec, verdict.head)}"
    bounds = bounds_in_words(spec, verdict.interval)
    flips = _flips(verdict)
    more = "; ".join(word for word in (bounds, flips) if word)
    return f"{name_of(verdict.key, verdict.metric)} went from {moved}" + (f" ({more})" if more else "")


def _next(outcome: Outcome, pressing: Sequence[Cell], comparison: Comparison, model: str) -> str:
    """What a reader does now."""
    moved = dict.fromkeys(STAGES[f.stage] for f in comparison.stages if f.model == model and f.moved)
    cause = f"look first at what the trace says moved ({', '.join(moved)})" if moved else ""
    accept = next((cell.way_out for cell in sorted(pressing, key=_weight) if cell.way_out), "")
    if outcome == "pass":
        return "ship it, or make it the new baseline: --update-baseline --reason TEXT"
    if outcome == "fail":
        how = cause or "look at the items below and at what else differs, mend it and measure again"
        return f"{how}; if it is wanted, accept it by name: {accept}" if accept else how
    said = [w for c in pressing for v in c.verdicts for w in v.reason.split("; ") if "would decide" in w]
    enough = max(said, key=lambda words: int(re.sub(r"\D", "", words.partition(" items")[0]) or 0), default="")
    parts = [enough, cause, f"if the change is wanted, accept it by name: {accept}" if accept else ""]
    return "; ".join(part for part in parts if part) or "see what could not be judged below, and measure that"


def _sentence(text: str) -> str:
    text = text.rstrip(" .")
    return f"{text}." if text else ""


# Words.


def short_label(model: ModelIdentity) -> str:
    """Return the model with its weights, a file by its name alone."""
    return replace(model, pretrained=re.split(r"[/\\]", model.pretrained)[-1]).label


def name_of(key: Key, metric: str) -> str:
    """Return the metric with its experiment and data set, as in "acc1 of zero_shot on shapes"."""
    experiment, _, dataset = key
    on = "" if dataset in ("", "-", "none", experiment) else f" on {dataset}"
    return f"{metric} of {experiment}{on}" if metric else f"{experiment}{on}"


def about_of(verdict: Verdict) -> str:
    """Return what a verdict is about in words, where it has no metric, too."""
    key, part = verdict.key, verdict.cell.partition("[")[2]
    if verdict.metric:
        return name_of(key, verdict.metric)
    kind = verdict.cell.removeprefix("anchor ").partition("[")[0]
    words = {
        "rows": f"rows of {part.partition('/')[0]} on {key.dataset} ({key.experiment})",
        "subject": "what the model is",
        "trace": "the fixed items of the trace",
        COMPLETE: "completeness",
    }
    return words.get(kind, name_of(key, ""))


def plain_value(spec: MetricSpec, value: float) -> str:
    """Return a value without its interval, in its unit."""
    if text := with_unit(spec, value):
        return text
    if spec.kind == "rate" or (spec.kind == "mean" and abs(value) <= 1 and not spec.unit):
        return f"{100 * value:.1f} %"
    if spec.kind == "count" or (float(value).is_integer() and abs(value) > 1):
        return f"{value:,.0f}"
    return f"{value:.4f} {spec.unit}".rstrip()


def _is_share(spec: MetricSpec) -> bool:
    return spec.kind == "rate" or (spec.kind == "mean" and not spec.unit)


def change_text(spec: MetricSpec, base: float, head: float) -> str:
    """Return head minus base: in points for shares, in percent for speed and memory, else as it is."""
    if base == head:
        return "the same"
    if spec.kind in ("bytes", "seconds", "per_second", "count"):
        return f"{(head - base) / base:+.1%}" if base else f"{head - base:+g}"
    return f"{100 * (head - base):+.1f} points" if _is_share(spec) else f"{head - base:+.4f}"


def bounds_in_words(spec: MetricSpec, interval: tuple[float, float] | None) -> str:
    """Return the 95 % interval of head minus base in words: "between 1.2 points worse and 0.3 points better"."""
    if interval is None:
        return ""
    sign = -1 if spec.better == "lower" else 1
    low, high = sorted((sign * interval[0], sign * interval[1]))
    words = ("worse", "better") if spec.better != "neither" else ("lower", "higher")

    def size(value: float) -> str:
        return f"{abs(100 * value):.1f} points" if _is_share(spec) else f"{abs(value):.3g}"

    if low == high == 0:
        return "exactly the same"
    if high <= 0 or low >= 0:
        near, far = sorted((abs(low), abs(high)))
        return f"between {size(near)} and {size(far)} {words[low >= 0]}"
    return f"between {size(low)} {words[0]} and {size(high)} {words[1]}"


def _flips(verdict: Verdict) -> str:
    if verdict.lost is None or verdict.gained is None:
        return ""
    return f"{verdict.lost:,} lost, {verdict.gained:,} gained of {verdict.n:,}"


def _reason(verdict: Verdict) -> str:
    """The reason without what the columns beside it say."""
    flips = (f"{verdict.lost:,} lost, ", f"{verdict.lost:,} fell, ") if verdict.lost is not None else ()
    parts = [part for part in verdict.reason.split("; ") if not part.startswith(flips or ("\0",))]
    return "; ".join(parts) or verdict.reason


# What changed since the base.


def change_blocks(comparison: Comparison, name: str, several: bool, level: int = 2) -> Iterator[Block]:
    """Yield what changed, worst first and each once, how to accept it, what else differs, and which stage of the trace moved."""
    yield Heading(f"What changed since {name}", level)
    pressing = [cell for cell in comparison.cells if cell.outcome in ("fail", "inconclusive") or cell.is_accepted]
    found = [one for cell in pressing for one in _change_rows(cell, comparison, several)]
    rows = [row for _, row in sorted(found, key=lambda one: one[0])]
    losses = [v for v in comparison.verdicts if v.outcome == "pass" and v.is_loss]
    small = "a significant loss within what is allowed"
    rows += [_change_row("pass", v, comparison, several, f"{small}; {_reason(v)}") for v in losses]
    if rows:
        yield Table(("verdict", "what", "base", "head", "change", "95 % bounds", "items", "why"), rows)
    else:
        yield Paragraph("Nothing that counts: every cell that was compared passes.")
    if ways := [cell for cell in pressing if cell.way_out]:
        words = [Paragraph("Only what is wanted: each goes into the history with your reason.")]
        yield Details(
            f"How to accept a change that is wanted ({len(ways)})",
            [*words, Table(("to accept it",), [(cell.way_out,) for cell in ways])],
        )
    if accepted := [(cell.id, cell.accepted) for cell in pressing if cell.is_accepted]:
        yield Table(("accepted", "because"), accepted)
    yield from difference_blocks(comparison)
    if stages := stage_rows(comparison):
        yield Heading("First stage that moved", 3)
        yield Table(("model", "what the trace says"), stages)


def _order(cell: Cell) -> tuple[int, int, float]:
    return ({"fail": 0, "inconclusive": 1}.get(cell.outcome, 2), *_weight(cell))


def _change_rows(
    cell: Cell, comparison: Comparison, several: bool
) -> Iterator[tuple[tuple[int, int, float], Sequence[str]]]:
    """(How bad it is, the row) of each thing that a cell says does not pass."""
    word = "accepted" if cell.is_accepted else None
    said: dict[tuple[Key, str], list[Verdict]] = {}
    for v in cell.verdicts:
        if v.outcome in ("fail", "inconclusive"):
            said.setdefault((v.key, v.metric or v.reason), []).append(v)
    for verdicts in said.values():
        reasons = "; ".join(dict.fromkeys(_reason(v) for v in verdicts))
        row = _change_row(word or overall(verdicts), verdicts[0], comparison, several, reasons)
        one = Cell(cell.id, tuple(verdicts))
        yield (SHADES.index(row[0]), *_weight(one)), row


def _change_row(word: str, v: Verdict, comparison: Comparison, several: bool, reason: str) -> Sequence[str]:
    spec = comparison.specs.get((v.key, v.metric), EXACT)
    what = about_of(v) + (f", {v.key.model}" if several and v.key.model else "")
    what += " (anchor)" if v.cell.startswith("anchor ") else ""
    if v.base is None or v.head is None:
        return word, what, "-", "-", "-", "-", "-", reason
    values = plain_value(spec, v.base), plain_value(spec, v.head), change_text(spec, v.base, v.head)
    return word, what, *values, bounds_in_words(spec, v.interval) or "-", _flips(v) or "-", reason


def difference_blocks(comparison: Comparison) -> Iterator[Block]:
    """Yield what the two runs do not share beside the outcomes."""
    yield Heading("What else differs", 3)
    changed = [d for d in comparison.differences if d.is_change]
    same = [d.what for d in comparison.differences if not d.is_change]
    if changed:
        yield Table(("what", "base", "head"), [(d.what, d.base, d.head) for d in changed])
    else:
        yield Paragraph("Neither software, machine, weights nor protocol, as far as the runs say.")
    if same:
        yield Paragraph(f"The same: {', '.join(same)}.")


def stage_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (model, which stage moved first, by how much, and which did not) for each model that has a trace."""
    models = dict.fromkeys(f.model for f in comparison.stages)
    return [(model, sentence(comparison.stages, model)) for model in models]


def metric_table(comparison: Comparison, several: bool) -> Table | None:
    """Return every metric that was compared, base and head side by side; None where there is none."""
    rows = []
    for cell in sorted(comparison.cells, key=_order):
        for v in cell.verdicts:
            if v.metric and v.base is not None and v.head is not None and not v.reason.startswith("slice "):
                word = "accepted" if cell.is_accepted and v.outcome in ("fail", "inconclusive") else v.outcome
                rows.append(_change_row(word, v, comparison, several, _reason(v)))
    header = ("verdict", "what", "base", "head", "change", "95 % bounds", "items", "why")
    return Table(header, list(dict.fromkeys(map(tuple, rows)))) if rows else None


# Which items.


def item_blocks(comparison: Comparison, gallery: Gallery, level: int = 2) -> Iterator[Block]:
    """Yield the pairs that are confused more often, then the items lost and gained, worst first, and those whose rows moved furthest."""
    moved = list(_moved_rows(comparison, gallery))
    if not (comparison.items or comparison.confusions or moved):
        return
    yield Heading("Which items", level)
    if comparison.confusions:
        yield from _confusion_blocks(comparison, level + 1)
    groups = item_groups(comparison)
    shown: dict[Key, set[str]] = {}
    opened = 0
    for (key, metric), changes in groups:
        is_first = key not in shown
        seen = shown.setdefault(key, set())
        new = [change for change in changes if change.item not in seen]
        seen |= {change.item for change in changes}
        if not is_first and not new:
            continue
        title = _group_title(key, metric, changes, new)
        open_now = opened < OPEN_GROUPS and (is_first or not opened)
        opened += open_now
        head, rest = (glance(new), new) if open_now else ([], new)
        if open_now:
            yield Heading(title, level + 1)
            yield _item_table(key, head, gallery)
            rest = [change for change in new if change not in head]
            if rest:
                yield Paragraph(f"{len(head)} of {len(new)} shown, worst first. {WHERE_ALL}")
        if rest:
            listed = rest[:FOLDED_ITEMS]
            name = title if not open_now else f"the other {len(rest)} of {name_of(key, metric)}"
            cut = [Paragraph(f"{len(listed)} of {len(rest)} shown. {WHERE_ALL}")] if len(rest) > len(listed) else []
            yield Details(name, [_item_table(key, listed, gallery), *cut])
    yield from moved


WHERE_ALL = "All of them: clipbench compare BASE HEAD --format json."


def item_groups(comparison: Comparison) -> list[tuple[tuple[Key, str], list[ItemChange]]]:
    """Return the changed items by result and metric: of metrics that failed, of results that failed, of undecided ones, the rest.

    Metrics that do not say what their items were taken for come after those that do.
    """
    metrics = {(v.key, v.metric) for v in comparison.of("fail")}
    failed, undecided = ({v.key for v in comparison.of(outcome)} for outcome in ("fail", "inconclusive"))
    groups: dict[tuple[Key, str], list[ItemChange]] = {}
    for change in comparison.items:
        groups.setdefault((change.key, change.metric), []).append(change)

    def rank(group: tuple[tuple[Key, str], list[ItemChange]]) -> tuple[bool, int]:
        (key, metric), changes = group
        order = 0 if (key, metric) in metrics else 1 if key in failed else 2 if key in undecided else 3
        return not changes[0].top_before, order

    return sorted(groups.items(), key=rank)


def glance(changes: Sequence[ItemChange]) -> list[ItemChange]:
    """Return the first, with a few gains beside the losses."""
    lost, gained = ([c for c in changes if c.direction == word] for word in ("lost", "gained"))
    few = gained[: max(OPEN_ITEMS // 5, OPEN_ITEMS - len(lost))]
    return [*lost[: OPEN_ITEMS - len(few)], *few]


def _group_title(key: Key, metric: str, changes: Sequence[ItemChange], new: Sequence[ItemChange]) -> str:
    lost = sum(change.direction == "lost" for change in changes)
    is_hit = all({change.before, change.after} == {0.0, 1.0} for change in changes)
    fell, rose = ("lost", "gained") if is_hit else ("fell", "rose")
    words = f"{name_of(key, metric)}: {lost} {fell}, {len(changes) - lost} {rose}"
    return words if len(new) == len(changes) else f"{words}; {len(new)} of {len(changes)} not shown above"


def _item_table(key: Key, changes: Sequence[ItemChange], gallery: Gallery) -> Table:
    is_grouped = any(change.group for change in changes)
    is_labelled = any(change.label and change.label != change.item for change in changes)
    is_taken = any(change.top_before for change in changes)
    header = ["lost or gained", "item"] + (["right"] if is_labelled else [])
    header += ["taken for in base", "in head", "margin"] if is_taken else ["base to head"]
    rows, whole = [], gallery
    for k, c in enumerate(changes):
        gallery = whole if k < FOLDED_PICTURES else whole.without_pictures()
        picture = _real(gallery.thumbs(key, c.item))
        row: list[str | Shown] = [c.direction, Shown(gallery.words(key, c.item), picture)]
        row += [_candidate(key, c.label, gallery)] if is_labelled else []
        row += [_top(key, top, c.label, gallery) for top in ((c.top_before, c.top_after) if is_taken else ())]
        row.append(margin_text(c))
        rows.append(row + ([c.group or "-"] if is_grouped else []))
    return Table([*header, *(["slice"] if is_grouped else [])], rows)


def _real(thumbs: Iterable[Thumb]) -> tuple[Thumb, ...]:
    return tuple(thumb for thumb in thumbs if thumb.source)


def _candidate(key: Key, name: str, gallery: Gallery, value: float | None = None) -> Shown:
    text = gallery.words(key, name) if name else "-"
    return Shown(text if value is None else f"{text} {value:.3f}", _real(gallery.thumbs(key, name)))


def _top(key: Key, top: Sequence[tuple[str, float]], label: str, gallery: Gallery) -> Shown:
    """What an item was taken for, with its value; where that is wrong and the right one is among the next, that one, too."""
    if not top:
        return Shown("-")
    first = _candidate(key, *top[0][:1], gallery, top[0][1])
    behind = next(((k, value) for k, (name, value) in enumerate(top) if name == label and k), None)
    more = "" if behind is None else f" (right one {_place(behind[0])}, {behind[1]:.3f})"
    return Shown(first.text + more, first.thumbs)


def _place(k: int) -> str:
    return {1: "second", 2: "third"}.get(k, f"{k + 1}th")


def margin_text(change: ItemChange) -> str:
    """Return how an item moved: its margin where it is known, else its outcome."""
    if change.margin_before is None or change.margin_after is None:
        return f"{change.before:.4g} -> {change.after:.4g}"
    return f"{change.margin_before:+.4f} -> {change.margin_after:+.4f}"


def _confusion_blocks(comparison: Comparison, level: int) -> Iterator[Block]:
    rows = [
        (
            f"{c.right} taken for {c.picked}: {c.after}",
            f"{c.before} of {c.of}",
            f"{c.after} of {c.of}",
            f"+{c.after - c.before}",
            name_of(c.key, ""),
        )
        for c in comparison.confusions
    ]
    shown = rows[:OPEN_CONFUSIONS]
    yield Heading("Confusions that grew", level)
    yield Table(("pair", "base", "head", "more", "where"), shown)
    if len(shown) < len(rows):
        yield Paragraph(f"{len(shown)} of {len(rows)} pairs shown, those that grew most. {WHERE_ALL}")


def _moved_rows(comparison: Comparison, gallery: Gallery) -> Iterator[Block]:
    """The items that a cell of rows names."""
    for v in comparison.verdicts:
        if v.items and v.outcome in ("fail", "inconclusive") and not v.metric:
            named = v.items[:OPEN_ITEMS]
            thumbs = _real(thumb for item in named for thumb in gallery.thumbs(v.key, item))
            text = ", ".join(gallery.words(v.key, item) for item in named)
            cut = f" ({len(named)} of {len(v.items)} shown)" if len(named) < len(v.items) else ""
            yield Table((f"moved: {about_of(v)}{cut}",), [[Shown(text, thumbs)]])


def answer_lines(found: Iterable[Answer]) -> Iterator[str]:
    """Yield the answers for a terminal."""
    for answer in found:
        yield f"{answer.word.upper()}: {answer.about}. {answer.reason}"
        if answer.then:
            yield f"  next: {answer.then}"
