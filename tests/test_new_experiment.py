"""An experiment, a data set with a root of its own, and an encoder of two methods, defined here alone: nothing elsewhere knows them.

They are measured, judged, compared, ranked, drawn and reported by what they declare.
"""

import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image
from running import NATURAL

from clipbench import evaluate
from clipbench.data.dataset import DataOptions, Dataset, ImageRef, Item, Root, Source
from clipbench.errors import UsageError
from clipbench.experiments import Experiment, Measured, cosines_of, register, registered, score
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.metrics import hits_at, ranked
from clipbench.types import Answers, Matrix, MetricSpec, Outcomes

NAMES, COPIES = ("red", "green", "blue"), 110
SQUARES = Root("squares", "a folder of coloured squares")
SEEN = MetricSpec("colours_seen", "rate", cluster=True, ranked=True, headline=True, answers="images")
WARMTH = MetricSpec("warmth", "cosine", "neither")


class TwoMethods:
    """Sees the mean colour of an image and reads colour names."""

    axis = np.eye(3)

    def encode_images(self, images):
        return np.stack([np.asarray(image, dtype=np.float64).mean(axis=(0, 1)) + 1 for image in images]) @ self.axis

    def encode_texts(self, texts):
        return np.eye(3)[[NAMES.index(text.split()[0]) for text in texts]] + 0.01


class ColourBlind(TwoMethods):
    """Takes one green in five for red."""

    def encode_images(self, images):
        rows = super().encode_images(images)
        for row, image in zip(rows, images, strict=True):
            if image.getpixel((0, 0))[1] > 200 and image.getpixel((0, 0))[2] % 5 == 0:
                row[:] = row[[1, 0, 2]]
        return rows


def squares(root):
    items = [
        Item(f"{name}-{k}", ImageRef(root / f"{name}-{k}.png"), labels=(label,))
        for label, name in enumerate(NAMES)
        for k in range(COPIES)
    ]
    return Dataset("squares", tuple(items), "made by this test", NAMES, prompts=("{}",))


def sources(options: DataOptions):
    root = options.folder(SQUARES)
    return () if root is None else (Source("squares", partial(squares, root)),)


def colours(embedder, dataset):
    images, classes = embedder.images(dataset.items), embedder.classes(dataset.classes, dataset.prompts)
    cosines = cosines_of(images, classes)
    labels = np.array([item.labels[0] for item in dataset.items])
    pairs = tuple(f"pair {k // 2}" for k in range(len(labels)))
    found = ranked(cosines, labels)
    hits = hits_at(found.ranks, 1).astype(float)
    likeness = Matrix("cosine", classes.rows.astype(float) @ classes.rows.T, classes.ids, classes.ids)
    return Measured(
        [score(SEEN, Outcomes(images.ids, hits, pairs)), score(WARMTH, Outcomes(images.ids, cosines[:, 0]))],
        images,
        classes,
        {"likeness": likeness},
        {"images": Answers(images.ids, NAMES, *found.taken_for, labels)},
    )


COLOURS = Experiment("colours", (SEEN, WARMTH), sources, colours, root=SQUARES)


@pytest.fixture
def folder(tmp_path):
    """Squares of three colours, each a little different from the next."""
    root = tmp_path / "squares_of_mine"
    root.mkdir()
    for label, name in enumerate(NAMES):
        for k in range(COPIES):
            colour = [k % 40, k % 40, k % 40]
            colour[label] = 215 + k % 40
            Image.new("RGB", (4, 4), tuple(colour)).save(root / f"{name}-{k}.png")
    return root


def measured(encoder, folder):
    with registered(COLOURS):
        return evaluate(encoder, ["colours"], squares=folder)


def test_it_is_measured_with_intervals_by_kind_and_evidence(folder):
    (result,) = measured(TwoMethods(), folder).results
    seen, warmth = result.scores.values()
    assert (seen.value, seen.n, seen.spec) == (1.0, 330, SEEN)
    assert seen.interval[0] > 0.9
    assert warmth.interval[0] < warmth.value < warmth.interval[1]
    assert set(result.evidence) == {"images", "texts"}
    assert result.answers["images"].confusion().tolist() == (np.eye(3) * COPIES).tolist()


@pytest.mark.parametrize(("head", "outcome"), [(TwoMethods, "pass"), (ColourBlind, "fail")])
def test_it_is_compared_by_the_rules_of_its_kinds(folder, head, outcome):
    base, after = (measured(encoder(), folder) for encoder in (TwoMethods, head))
    comparison = compare_runs(base, after, read_rules())
    assert comparison.outcome == outcome
    if outcome == "fail":
        assert [(v.metric, v.kind) for v in comparison.of("fail")] == [("", "rows"), ("colours_seen", "quality")]
        assert comparison.items[0].top_after[0][0] == "red"
    (warmth,) = [v for v in comparison.verdicts if v.metric == "warmth"]
    assert warmth.outcome == ("pass" if outcome == "pass" else "note")


def test_a_session_gives_it_an_option_ranks_draws_and_reports_it(pytester, folder):
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    pytester.makepyfile(
        colour_models="from test_new_experiment import ColourBlind, TwoMethods",
        test_colours="import pytest\n"
        "pytestmark = pytest.mark.experiment('colours')\n"
        "def test_colours(subject, dataset): assert subject.measure('colours', dataset=dataset)[0].scores\n",
    )
    pytester.syspathinsert()
    models = [word for name in ("TwoMethods", "ColourBlind") for word in ("--model", f"colour_models:{name}")]
    arguments = [NATURAL, "test_colours.py", *models, "--device", "cpu", "-k", "colours", "-p", "no:cacheprovider"]
    with registered(COLOURS):
        result = pytester.runpytest_inprocess(*arguments, "--squares", str(folder))
        absent = pytester.runpytest_inprocess(*arguments, "--results", "elsewhere")
        wrong = pytester.runpytest_inprocess(*arguments, "--squares", "nowhere")
    result.assert_outcomes(passed=2, deselected=8)
    absent.assert_outcomes(deselected=10)
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*--squares *nowhere: no such folder*"])
    summary = (pytester.path / "results" / "summary.md").read_text()
    assert re.search(r"colours_seen.*1\.000", summary)
    assert "colour_models:TwoMethods is better" in summary
    assert "Most confused classes" in summary
    figures = [path.name for path in (pytester.path / "results" / "figures").iterdir()]
    for wanted in ("colours-colour-models-TwoMethods-", "ranking-colours-on-squares"):
        assert any(name.startswith(wanted) for name in figures)
    run = json.loads((pytester.path / "results" / "run.json").read_text())["clipbench"]
    assert run["plan"] == [["colours", f"colour_models:{name}", "squares"] for name in ("TwoMethods", "ColourBlind")]
    assert run["results"][0]["metrics"]["colours_seen"]["spec"]["cluster"] is True


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(UsageError, match="is there already"):
        register(Experiment("natural", (), lambda options: (), colours))
