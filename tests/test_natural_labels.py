"""Labels on natural images: the notebook's probabilities, and what they are held to."""

import numpy as np
import pytest
from fakes import custom
from planted import PlantedEncoder

from clipbench.data.packaged import packaged_dataset
from clipbench.errors import DataError
from clipbench.experiments import experiment
from clipbench.experiments.natural_labels import natural_labels, softmax
from clipbench.judge.references import judged, label_verdicts, published_labels
from clipbench.result import DatasetIdentity, Items, Metric, ModelIdentity, Result
from clipbench.settings import Settings

FIGURES = {figure.model: figure for figure in published_labels()}
CLASSES = sorted({label for figure in published_labels() for top in figure.labels.values() for label in top})


def result_like(figure, change=lambda item, row: row, **identity):
    """A result with exactly the published probabilities, what is left over going to a label of no figure."""
    ids = tuple(figure.labels)
    rows = []
    for item in ids:
        row = np.array([figure.labels[item].get(label, 0.0) for label in CLASSES])
        rows.append([*change(item, row), 0.0])
    model = ModelIdentity(figure.model, "openai", **identity)
    protocol = {"prompts": "This is a photo of a {}", "classes": [*CLASSES, "nothing"]}
    return Result(
        "natural_labels", model, DatasetIdentity("natural_cifar100", "0", len(ids)), protocol,
        {"top1_probability": Metric(0.5, len(ids))}, Items(ids=ids), {"probabilities": np.array(rows)},
    )  # fmt: skip


def test_probabilities_are_the_softmax_of_a_hundred_cosines_of_the_underscored_names():
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    settings = Settings()
    dataset = experiment("natural_labels").load(settings)
    encoder = custom(PlantedEncoder(dim=64))
    result = natural_labels(encoder, dataset, settings)
    assert "sweet_pepper" in dataset.classes
    assert len(dataset.classes) == 100
    item = packaged_dataset("natural").items[3]
    image = encoder.encode_images([item.image.open()])[0].astype(float)
    powers = [np.exp(100 * image @ encoder.encode_texts([f"This is a photo of a {c}"])[0]) for c in dataset.classes]
    np.testing.assert_allclose(result.arrays["probabilities"][3], powers / np.sum(powers), rtol=1e-5)
    assert result.items.outcomes["top1_probability"][3] == pytest.approx(max(powers) / sum(powers), rel=1e-5)
    assert result.protocol["logit_scale"] == 100


def test_softmax_rows_sum_to_one_and_do_not_overflow():
    rows = softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]]))
    np.testing.assert_allclose(rows, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e)], [0.5, 0.5]])


def test_a_broken_picture_is_an_error(tmp_path):
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    from dataclasses import replace

    from clipbench.data.dataset import ImageRef

    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = experiment("natural_labels").load(Settings())
    broken = replace(dataset.items[0], image=ImageRef(tmp_path / "x.png"))
    with pytest.raises(DataError, match="1 of 8 images are broken"):
        natural_labels(custom(PlantedEncoder()), replace(dataset, items=(broken, *dataset.items[1:])), Settings())


@pytest.mark.parametrize("model", sorted(FIGURES))
def test_the_published_figure_passes_its_own_check(model):
    verdicts = {v.metric: v for v in judged(result_like(FIGURES[model]))}
    assert {m: v.verdict for m, v in verdicts.items()} == {"top1_label": "pass", "top1_probability": "pass"}
    compared = 7 if model == "ViT-B/32" else 8
    assert f"{compared} of {compared} published winners win" in verdicts["top1_label"].reason


def test_another_winner_fails_by_name():
    def to_girl(item, row):
        return np.roll(row, 1) if item == "astronaut" else row

    label, probability = label_verdicts(result_like(FIGURES["ViT-B/32"], to_girl))
    assert (label.verdict, probability.verdict) == ("fail", "fail")
    assert "astronaut is" in label.reason
    assert "published woman" in label.reason


def test_a_probability_further_off_than_the_tolerance_fails_and_one_within_passes():
    figure = FIGURES["ViT-B/32"]

    def moved(by):
        return lambda item, row: row - by * (row == row.max()) if item == "horse" else row

    allowed = figure.allowed(0.3647)
    assert allowed == pytest.approx(0.003 + 0.01 + 0.1 * 0.3647)
    assert [v.verdict for v in label_verdicts(result_like(figure, moved(0.98 * allowed)))] == ["pass", "pass"]
    assert [v.verdict for v in label_verdicts(result_like(figure, moved(1.02 * allowed)))] == ["pass", "fail"]


def test_the_picture_that_changed_is_left_out():
    def other_camera(item, row):
        return np.roll(row, 3) if item == "camera" else row

    label, _ = label_verdicts(result_like(FIGURES["ViT-B/32"], other_camera))
    assert label.verdict == "pass"
    assert "camera left out (another picture)" in label.reason
    assert [v.verdict for v in label_verdicts(result_like(FIGURES["ViT-L/14@336px"], other_camera))] == ["fail", "fail"]


def test_nothing_is_held_against_random_weights_another_tag_or_bf16():
    figure = FIGURES["ViT-B/32"]
    assert not list(label_verdicts(result_like(figure, precision="bf16")))
    from dataclasses import replace

    published = result_like(figure)
    for tag in ("random:0", "laion2b_s34b_b79k"):
        assert judged(replace(published, model=replace(published.model, pretrained=tag))) == ()
