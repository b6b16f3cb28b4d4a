"""Labels on natural images: the notebook's probabilities, and what they are held to."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import custom, measure
from planted import PlantedEncoder

from clipbench.data.dataset import DataOptions, ImageRef
from clipbench.data.packaged import packaged_dataset
from clipbench.errors import DataError
from clipbench.experiments.classification import LABEL_TEMPLATE, NATURAL_LABELS, softmax
from clipbench.judge.references import judge, label_verdicts, published_labels
from clipbench.models.encoder import unit_rows
from clipbench.types import DatasetIdentity, Matrix, ModelIdentity, Protocol, Result

FIGURES = {figure.model: figure for figure in published_labels()}
CLASSES = sorted({label for figure in published_labels() for top in figure.labels.values() for label in top})


def result_like(figure, change=lambda item, row: row, **identity):
    """A result with exactly the published probabilities, what is left over going to a label of no figure."""
    ids = tuple(figure.labels)
    rows = []
    for item in ids:
        row = np.array([figure.labels[item].get(label, 0.0) for label in CLASSES])
        rows.append([*change(item, row), 0.0])
    classes = (*CLASSES, "nothing")
    return Result(
        "natural_labels",
        ModelIdentity(figure.model, "openai", **identity),
        DatasetIdentity("natural_cifar100", "0", len(ids)),
        Protocol((LABEL_TEMPLATE,), classes=classes),
        {},
        {"probabilities": Matrix("probability", np.array(rows), ids, classes, 100.0)},
    )


@pytest.fixture(scope="module")
def labelled():
    """The eight natural pictures with a hundred class names."""
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    (source,) = NATURAL_LABELS.sources(DataOptions())
    return source.load()


def test_probabilities_are_the_softmax_of_a_hundred_cosines_of_the_underscored_names(labelled):
    encoder = custom(PlantedEncoder(dim=64))
    result = measure("natural_labels", encoder, labelled)
    assert "sweet_pepper" in labelled.classes
    assert len(labelled.classes) == 100
    item = packaged_dataset("natural").items[3]
    image, *texts = unit_rows(
        np.concatenate(
            [
                encoder.encode_images([item.image.open()]),
                encoder.encode_texts([f"This is a photo of a {c}" for c in labelled.classes]),
            ]
        )
    ).astype(float)
    powers = np.exp(100 * np.array(texts) @ image)
    matrix = result.matrices["probabilities"]
    np.testing.assert_allclose(matrix.values[3], powers / np.sum(powers), rtol=1e-4)
    winners = result.scores["top1_probability"].outcomes
    assert winners.values[3] == pytest.approx(max(powers) / sum(powers), rel=1e-4)
    assert (result.protocol.options["logit_scale"], matrix.scale) == (100, 100)


def test_softmax_rows_sum_to_one_and_do_not_overflow():
    rows = softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]]))
    np.testing.assert_allclose(rows, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e)], [0.5, 0.5]])


def test_a_broken_picture_is_an_error(tmp_path, labelled):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    broken = replace(labelled.items[0], image=ImageRef(tmp_path / "x.png"))
    with pytest.raises(DataError, match="1 of 8 images are broken"):
        measure("natural_labels", custom(PlantedEncoder()), replace(labelled, items=(broken, *labelled.items[1:])))


@pytest.mark.parametrize("model", sorted(FIGURES))
def test_the_published_figure_passes_its_own_check(model):
    verdicts = {v.metric: v for v in judge(result_like(FIGURES[model]))}
    assert {m: v.outcome for m, v in verdicts.items()} == {"top1_label": "pass", "top1_probability": "pass"}
    compared = 7 if model == "ViT-B/32" else 8
    assert f"{compared} of {compared} published winners win" in verdicts["top1_label"].reason


def test_another_winner_fails_by_name():
    def to_girl(item, row):
        return np.roll(row, 1) if item == "astronaut" else row

    label, probability = label_verdicts(result_like(FIGURES["ViT-B/32"], to_girl))
    assert (label.outcome, probability.outcome) == ("fail", "fail")
    assert "astronaut is" in label.reason
    assert "published woman" in label.reason


def test_a_probability_further_off_than_the_tolerance_fails_and_one_within_passes():
    figure = FIGURES["ViT-B/32"]

    def moved(by):
        return lambda item, row: row - by * (row == row.max()) if item == "horse" else row

    allowed = figure.allowed(0.3647)
    assert allowed == pytest.approx(0.003 + 0.01 + 0.1 * 0.3647)
    assert [v.outcome for v in label_verdicts(result_like(figure, moved(0.98 * allowed)))] == ["pass", "pass"]
    assert [v.outcome for v in label_verdicts(result_like(figure, moved(1.02 * allowed)))] == ["pass", "fail"]


def test_the_picture_that_changed_is_left_out():
    def other_camera(item, row):
        return np.roll(row, 3) if item == "camera" else row

    label, _ = label_verdicts(result_like(FIGURES["ViT-B/32"], other_camera))
    assert label.outcome == "pass"
    assert "camera left out (another picture)" in label.reason
    assert [v.outcome for v in label_verdicts(result_like(FIGURES["ViT-L/14@336px"], other_camera))] == ["fail", "fail"]


def test_nothing_is_held_against_random_weights_another_tag_or_bf16():
    figure = FIGURES["ViT-B/32"]
    assert not list(label_verdicts(result_like(figure, precision="bf16")))
    published = result_like(figure)
    for tag in ("random:0", "laion2b_s34b_b79k"):
        assert judge(replace(published, model=replace(published.model, pretrained=tag))) == ()
