"""The gate's decision table: what must be said of 91 situations, at 5,000 items and at 60.

Rows are compared by their sketches alone, as in a stored run; outcomes are top-1 hits of a synthetic 100-class set. The table is
the contract: rules may change, its verdicts may not.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from paired_runs import RULES
from scipy import stats

from clipbench.embed.evidence import sketch
from clipbench.judge.compare import compare_runs
from clipbench.types import (
    Answers,
    DatasetIdentity,
    Evidence,
    MetricSpec,
    ModelIdentity,
    Outcomes,
    Protocol,
    Result,
    Run,
    Score,
    SubjectRecord,
)  # fmt: skip

CLASSES, DIM = 100, 64
R = np.random.default_rng(0)


def unit(a):
    with np.errstate(invalid="ignore"):
        return a / np.linalg.norm(a, axis=-1, keepdims=True)


BASE = unit(R.normal(size=(1, DIM))) * 1.5
CLS = unit(R.normal(size=(CLASSES, DIM)))
TXT = unit(CLS * 0.6 + BASE * 0.8)


def world(n, spread=0.19):
    labels = np.arange(n) % CLASSES
    return unit(0.55 * CLS[labels] + BASE + spread * np.random.default_rng(1).normal(size=(n, DIM))), labels


@dataclass(frozen=True)
class Situation:
    """One side of a comparison: rows with what was scored of them, and what is known of the subject and its trace."""

    images: np.ndarray
    texts: np.ndarray
    hits: np.ndarray
    margins: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    asked: dict = field(default_factory=lambda: {"precision": "fp32", "weights": "tag0"})
    observed: dict = field(
        default_factory=lambda: {
            "weights": "hash0",
            "activation": "quickgelu",
            "preprocessing": "p0",
            "tokenizer": "t0",
        }
    )
    logit_scale: float = 100.0
    repeat: float = 0.0
    batches: float = 1e-6


def run(images, labels, texts=TXT, **more):
    """A side whose outcomes are those of its rows."""
    similarity = unit(images) @ unit(texts).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
    wrong = similarity.copy()
    wrong[np.arange(len(labels)), labels] = -np.inf
    margins = similarity[np.arange(len(labels)), labels] - wrong.max(axis=1)
    top = np.take_along_axis(similarity, order, axis=1)
    hits = (similarity.argmax(1) == labels).astype(int)
    return Situation(images, texts, hits, margins, labels, np.arange(len(labels)), order, top, **more)


def evidence(rows, names):
    """What a run keeps of these rows; a row without a direction has the zero sketch."""
    lengths = np.linalg.norm(rows, axis=1)
    sound = np.isfinite(lengths) & (lengths > 0)
    units = np.where(sound[:, None], rows / np.where(sound, lengths, 1)[:, None], 0)
    contents = np.arange(len(rows), dtype=np.uint64)
    return Evidence(names, contents, contents, lengths.astype(np.float32), sketch(units), rows.shape[1])


def as_run(side):
    """The side as a run of one model, one experiment and one data set."""
    n, classes = len(side.labels), tuple(f"class {k}" for k in range(CLASSES))
    ids = tuple(f"item {k}" for k in range(n))
    is_rate = bool(np.isin(side.hits, (0, 1)).all())
    spec = MetricSpec("acc1", "rate" if is_rate else "mean", "higher", True, True, True, "images")
    values = side.hits.astype(np.float64)
    clusters = tuple(map(str, side.clusters)) if len(set(side.clusters.tolist())) < n else None
    score = Score(spec, float(values.mean()) if n else 0.0, n, None, Outcomes(ids, values, clusters))
    answers = Answers(
        ids,
        classes,
        side.top,
        side.scores.astype(np.float32),
        side.margins.astype(np.float32),
        side.labels.astype(np.int32),
    )
    result = Result(
        "zero_shot",
        ModelIdentity("prod", "tag"),
        DatasetIdentity("shapes", "f" * 64, n),
        Protocol(("a photo of a {}.",), classes=classes),
        {"acc1": score},
        answers={"images": answers},
        evidence={"images": evidence(side.images, ids), "texts": evidence(side.texts, classes)},
    )
    subject = SubjectRecord("prod", side.asked, {**side.observed, "logit_scale": side.logit_scale})
    trace = {
        "version": 3,
        "model": asdict(ModelIdentity("prod", "tag")),
        "repeat": side.repeat,
        "batches": side.batches,
        "stages": {},
    }
    environment = {"machine": {"processor": "P"}, "software": {}}
    return Run(environment, (result,), subjects=(subject,), traces=(trace,))


def jitter(a, size, seed=3):
    return unit(a + size * unit(np.random.default_rng(seed).normal(size=a.shape)))


def few_of(labels, rows, **more):
    """A side of so many labels."""
    return run(rows, labels, **more)


def situations(n):
    images, labels = world(n)
    base = run(images, labels)
    g = np.random.default_rng(9)
    q = np.linalg.qr(g.normal(size=(DIM, DIM)))[0]

    def picks(share):
        return g.choice(n, max(1, round(share * n)), replace=False)

    def at(rows, what, value):
        out = rows.copy()
        out[what] = value
        return out

    def asked(**more):
        return {"precision": "fp32", "weights": "tag0"} | more

    def observed(**more):
        return base.observed | more

    low, tie, harm = (
        asked(precision="bf16"),
        "pass" if n >= 299 else "inconclusive",
        "fail" if n >= 299 else "inconclusive",
    )
    tuned = {"asked": asked(weights="tag1"), "observed": observed(weights="hash1")}
    moved, words = jitter(images, 0.02), jitter(TXT, 0.02, 5)
    near = jitter(images, 0.014)
    int8 = {"asked": asked(precision="int8"), "batches": 0.004}
    yield "same code again", base, run(images, labels), "pass"
    yield "torch upgrade: rows move 1e-5", base, run(jitter(images, 1e-5), labels, jitter(TXT, 1e-5)), "pass"
    yield "other GPU: rows move 5e-4", base, run(jitter(images, 5e-4), labels, jitter(TXT, 5e-4)), "pass"
    yield "fp32 -> bf16, asked", base, run(near, labels, jitter(TXT, 0.014), asked=low, batches=0.01), "pass"
    yield (
        "bf16 -> bf16, other batch size",
        run(near, labels, asked=low, batches=0.006),
        run(jitter(near, 0.004, 4), labels, asked=low, batches=0.006),
        "pass",
    )
    yield "fp32 -> bf16, nobody asked", base, run(near, labels, jitter(TXT, 0.014)), "inconclusive"
    yield "int8, asked, harmless", base, run(jitter(images, 0.02), labels, jitter(TXT, 0.02), **int8), tie
    yield (
        "int8, asked, harmful",
        base,
        run(jitter(images, 0.25), labels, **int8),
        "fail" if n >= 299 else "inconclusive",
    )
    yield (
        "another loader under the same alias, rows as fp16",
        base,
        run(jitter(images, 0.002), labels, asked=asked(loader="b")),
        tie,
    )
    yield (
        "fine-tune, better",
        base,
        run(
            unit(images + 0.25 * CLS[labels]) @ q,
            labels,
            TXT @ q,
            asked=asked(weights="tag1"),
            observed=observed(weights="hash1"),
        ),
        "inconclusive",
    )
    yield (
        "fine-tune, worse",
        base,
        run(jitter(images, 0.6) @ q, labels, TXT @ q, asked=asked(weights="tag1"), observed=observed(weights="hash1")),
        "fail",
    )
    yield (
        "another checkpoint under the same tag",
        base,
        run(jitter(images, 0.01), labels, observed=observed(weights="hash1")),
        "inconclusive",
    )
    yield (
        "an upgrade loads GELU, in bf16",
        run(near, labels, asked=low, batches=0.006),
        run(jitter(near, 0.012, 4), labels, asked=low, batches=0.006, observed=observed(activation="gelu")),
        "inconclusive",
    )
    yield (
        "resize asked, small loss nobody can see",
        base,
        run(jitter(images, 0.03), labels, asked=asked(preprocessing="p1"), observed=observed(preprocessing="p1")),
        tie,
    )
    for share in (0.004, 0.008, 0.02):
        yield f"{share:.1%} of the pictures black", base, run(at(images, picks(share), unit(BASE)[0]), labels), "fail"
    yield "one picture broken", base, run(at(images, picks(1 / n), unit(g.normal(size=DIM))), labels), "fail"
    yield (
        ".5 % black under bf16",
        base,
        run(at(near, picks(0.005), unit(BASE)[0]), labels, asked=low, batches=0.01),
        "fail",
    )
    yield (
        ".5 % noise rows under bf16",
        base,
        run(at(near, p := picks(0.005), unit(g.normal(size=(len(p), DIM)))), labels, asked=low, batches=0.01),
        "fail",
    )
    yield "neighbour's row (order bug)", base, run(np.roll(images, 1, 0), labels), "fail"
    yield (
        "neighbour's row within a class, under bf16",
        base,
        run(np.roll(near, CLASSES, 0), labels, asked=low, batches=0.01),
        "fail",
    )
    yield "last partial batch reversed", base, run(np.concatenate([images[:-8], images[-8:][::-1]]), labels), "fail"
    yield "both towers rotated", base, run(images @ q, labels, TXT @ q), "fail"
    yield "negated", base, run(-images, labels, -TXT), "fail"
    yield (
        "32 zero dimensions appended",
        base,
        run(np.pad(images, ((0, 0), (0, 32))), labels, np.pad(TXT, ((0, 0), (0, 32)))),
        "fail",
    )
    yield "rows times 7", base, run(images * 7, labels), "fail"
    yield "rows of random length", base, run(images * np.exp(g.normal(size=(n, 1))), labels), "fail"
    yield "logit scale doubled", base, run(images, labels, logit_scale=200.0), "fail"
    yield "dropout left on", base, run(jitter(images, 0.03), labels, repeat=0.04, batches=0.04), "fail"
    yield "rows drift by .03, nobody asked", base, run(jitter(images, 0.03), labels), "inconclusive"
    yield "two class names swapped", base, run(images, labels, TXT[[*range(7), 8, 7, *range(9, CLASSES)]]), "fail"
    yield (
        "metric bug: every wrong answer counted right",
        base,
        replace(run(images, labels), hits=np.ones(n, int)),
        "fail",
    )
    yield "labels shifted by one class", base, replace(run(images, labels), hits=base.hits & 0), "fail"
    dead = np.isin(labels, (1, 2, 3))
    yield (
        "3 of 100 classes never found, under int8",
        base,
        run(at(jitter(images, 0.02), dead, jitter(np.repeat(unit(BASE), int(dead.sum()), 0), 0.2)), labels, **int8),
        "fail",
    )
    yield "constant rows for all", base, run(np.repeat(unit(BASE), n, 0), labels), "fail"
    # what an attack found
    pairs = np.arange(n)
    pairs[: n // 5 * 2] = pairs[: n // 5 * 2].reshape(-1, 2)[:, ::-1].ravel()
    yield (
        "two fifths swapped pairwise, new weights asked, outcomes as before",
        base,
        replace(run(moved[pairs], labels, words, **tuned), hits=base.hits),
        "fail",
    )
    yield "image tower alone rotated", base, run(images @ q, labels), "fail"
    yield (
        "captions cut: 3 % of the texts, under bf16",
        base,
        run(near, labels, at(words, [1, 2, 3], jitter(TXT, 0.3)[1:4]), asked=low, batches=0.01),
        "fail",
    )
    yield (
        "one class row wrong, new weights asked",
        base,
        run(moved, labels, at(words, 5, unit(g.normal(size=DIM))), **tuned),
        harm,
    )
    yield (
        "two class names swapped in rows and labels",
        base,
        replace(run(images, labels, TXT[[*range(7), 8, 7, *range(9, CLASSES)]]), hits=base.hits),
        "fail",
    )
    some = np.arange(n) % 10 < 3
    yield (
        "a third of the pictures rotated (.25), under bf16",
        base,
        run(at(near, some, jitter(images, 0.25)[some]), labels, asked=low, batches=0.01),
        "fail",
    )
    yield "one zero row, new weights asked", base, run(at(moved, 3, 0), labels, words, **tuned), "fail"
    yield "one NaN row, new weights asked", base, run(at(moved, 3, np.nan), labels, words, **tuned), "fail"
    yield (
        "5 % of the rows ten times longer",
        base,
        run(images * np.where(np.arange(n) % 20, 1, 10)[:, None], labels),
        "fail",
    )
    yield "NaN as logit scale", base, run(images, labels, logit_scale=np.nan), "fail"
    yield "NaN as repeat", base, run(images, labels, repeat=np.nan), "fail"
    yield "NaN as batch noise", base, run(images, labels, batches=np.nan), "fail"
    yield (
        "NaN as margins, a tenth of the outcomes changed",
        replace(base, margins=base.margins * np.nan),
        replace(base, hits=np.where(np.arange(n) % 20, base.hits, 1 - base.hits)),
        "fail",
    )
    yield "batch noise grows, nobody asked", base, run(images, labels, batches=9e-4), "inconclusive"
    black = picks(0.004) if n > 299 else [4, 9]
    yield (
        ".4 % black, almost equal, new weights asked",
        base,
        run(at(moved, black, jitter(np.repeat(unit(BASE), len(black), 0), 3e-4)), labels, words, **tuned),
        "fail",
    )
    noise = picks(0.004)
    yield (
        ".4 % noise rows, new weights asked",
        base,
        run(at(moved, noise, unit(g.normal(size=(len(noise), DIM)))), labels, words, **tuned),
        "inconclusive",
    )
    twice = np.arange(n) // 2 * 2
    yield (
        "every picture twice, bf16 asked",
        run(images[twice], labels[twice]),
        run(near[twice], labels[twice], asked=low, batches=0.01),
        "pass",
    )
    yield (
        "new weights asked, the old ones loaded",
        base,
        run(images, labels, asked=asked(weights="tag1")),
        "inconclusive",
    )
    yield (
        "preprocessing changed beside new weights",
        base,
        run(moved, labels, words, asked=tuned["asked"], observed=observed(weights="hash1", preprocessing="p9")),
        "inconclusive",
    )
    yield (
        "new weights, 38 points better by a bug",
        base,
        replace(run(moved, labels, words, **tuned), hits=np.ones(n, int)),
        "inconclusive",
    )
    yield (
        "new weights, outcomes of the old rows",
        base,
        replace(run(moved, labels, words, **tuned), hits=base.hits, margins=base.margins),
        "inconclusive",
    )
    shift = unit(images + 0.2 * unit(g.normal(size=DIM)))
    yield (
        "loader asked, rows .2 away, outcomes as before",
        base,
        replace(run(shift, labels, asked=asked(loader="b")), hits=base.hits),
        "inconclusive",
    )
    yield (
        "half of the dimensions asked, outcomes as before",
        base,
        replace(run(images[:, :32], labels, TXT[:, :32], asked=asked(output="32")), hits=base.hits),
        "inconclusive",
    )
    yield "half of the dimensions, nobody asked", base, run(images[:, :32], labels, TXT[:, :32]), "fail"
    yield "temperature asked", base, run(images, labels, logit_scale=50.0, asked=asked(output="50")), "inconclusive"
    yield "bf16 -> fp32, asked", run(near, labels, asked=low, batches=0.006), run(images, labels), "pass"
    there, here = {"asked": low, "observed": observed(device="a")}, {"asked": low, "observed": observed(device="b")}
    yield "another GPU in bf16", run(near, labels, **there), run(jitter(images, 0.014, 6), labels, **here), tie
    yield (
        "another GPU in fp32, rows .02",
        run(images, labels, observed=observed(device="a")),
        run(moved, labels, observed=observed(device="b")),
        "inconclusive",
    )
    noisy = {"asked": asked(precision="int8"), "batches": 0.09}
    yield (
        "int8, no hit left, its batch noise as large as its move",
        base,
        replace(run(jitter(images, 0.1), labels, **noisy), hits=base.hits * 0),
        "fail",
    )
    yield (
        "a noisy base, rows move by .1",
        run(near, labels, asked=low, batches=0.05),
        run(jitter(images, 0.1), labels, asked=low),
        "inconclusive",
    )
    tail = g.permutation(np.exp(0.6 * stats.norm.ppf((np.arange(n) + 0.5) / n)))[:, None]
    yield (
        "heavy tail under bf16: 9 medians",
        base,
        run(unit(images + 0.02 * tail * unit(g.normal(size=images.shape))), labels, asked=low),
        tie,
    )
    yield (
        "small pictures move by 12 medians, nobody asked",
        base,
        run(at(moved, noise, jitter(images, 0.24)[noise]), labels),
        "inconclusive",
    )
    yield "precision without a ceiling", base, run(moved, labels, words, asked=asked(precision="fp8")), tie
    group = np.where(np.arange(n) < n // 50, 0, np.arange(n))
    film = replace(base, clusters=group, hits=at(base.hits, group == 0, 1))
    yield (
        "a cluster of 2 % of the items lost",
        film,
        replace(run(moved, labels, words, **int8), clusters=group, hits=at(film.hits, group == 0, 0)),
        "inconclusive",
    )
    group = np.where(np.arange(n) < 12, 0, np.arange(n))
    scene = replace(base, clusters=group, labels=group % CLASSES, hits=at(base.hits, group == 0, 1))
    yield (
        "one film of 12 frames lost, its class with it",
        scene,
        replace(run(moved, group % CLASSES, words, **int8), clusters=group, hits=at(scene.hits, group == 0, 0)),
        tie,
    )
    graded = replace(base, hits=base.hits * 0.8 + 0.1)
    yield (
        "average precision: a twentieth loses .5, the others gain",
        graded,
        replace(run(moved, labels, words, **int8), hits=graded.hits + np.where(np.arange(n) % 20, 0.001, -0.5)),
        harm,
    )
    yield (
        "average precision wobbles by .01",
        graded,
        replace(run(moved, labels, words, **int8), hits=graded.hits + 0.01 * g.normal(size=n)),
        tie,
    )
    right, false = np.flatnonzero(base.hits)[: n * 3 // 50], np.flatnonzero(base.hits == 0)[: n * 3 // 50]
    yield (
        "an eighth of the outcomes changed, as many gained as lost, under int8",
        base,
        replace(run(moved, labels, words, **int8), hits=at(at(base.hits, right, 0), false, 1)),
        "inconclusive",
    )
    narrow = replace(base, margins=base.margins / 20)
    yield (
        "equivalent under int8, every near tie lost",
        narrow,
        replace(run(moved, labels, asked=asked(precision="int8"), batches=0.02), hits=base.hits * 0),
        "fail",
    )
    yield (
        "no hits, before and after",
        replace(base, hits=base.hits * 0),
        replace(run(near, labels, asked=low), hits=base.hits * 0),
        "inconclusive",
    )
    yield "NaN as an outcome", base, replace(base, hits=at(base.hits.astype(float), 0, np.nan)), "inconclusive"
    yield "fewer items", base, run(images[: n // 2], labels[: n // 2]), "inconclusive"
    yield "one item, which broadcasts", base, run(images[:1], labels[:1]), "inconclusive"
    yield "no items", run(images[:0], labels[:0]), run(images[:0], labels[:0]), "inconclusive"
    yield "other labels", base, replace(base, labels=(labels + 1) % CLASSES), "inconclusive"
    drifted = images
    for k in range(10):
        drifted = jitter(drifted, 9e-4, 20 + k)
    yield "ten updates that each passed, against the first", base, run(drifted, labels), "inconclusive"
    for k in (1, 8, 25):
        few = partial(few_of, labels[:k])
        yield f"{k} items, same code", few(images[:k]), few(images[:k]), "pass"
        yield f"{k} items, int8 asked", few(images[:k]), few(moved[:k], **int8), "inconclusive"
        yield f"{k} items, one broken", few(images[:k]), few(at(images[:k], 0, unit(g.normal(size=DIM)))), "fail"


@pytest.mark.parametrize("n", [5000, 60])
def test_each_situation_gets_the_verdict_it_must_get(n):
    wrong = []
    for name, base, head, expected in situations(n):
        comparison = compare_runs(as_run(base), as_run(head), RULES)
        if comparison.outcome != expected:
            said = "; ".join(f"{v.cell} {v.outcome}: {v.reason}" for v in comparison.verdicts if v.outcome != "pass")
            wrong.append(f"{name}: {comparison.outcome}, expected {expected} ({said[:300]})")
    assert not wrong, "\n".join(wrong)
