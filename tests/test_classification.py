"""Zero-shot classification: equal to clip-benchmark and scikit-learn on the same rows, end to end, and right by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification
from fakes import ColourEncoder, colour_dataset, custom
from hypothesis import given
from hypothesis import strategies as st
from oracles import confusion_matrix as slow_confusion
from oracles import label_ranks as slow_ranks
from planted import Loader, PlantedEncoder, TorchModel, paint
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.embedder import Embedder
from clipbench.errors import DataError
from clipbench.experiments import result_of
from clipbench.experiments.classification import ZERO_SHOT, answers_of, class_ids, classification
from clipbench.models.device import Resources
from clipbench.statistics import clustered_wilson_interval, wilson_interval

TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{}")


@pytest.fixture(autouse=True)
def item_of_one(monkeypatch):
    """clip-benchmark 1.6.2 calls float() on an array of one number, which numpy 2.4 refuses."""
    monkeypatch.setattr(
        zeroshot_classification, "float", lambda x: np.asarray(x, dtype=np.float64).item(), raising=False
    )


def classified(encoder, dataset, templates=("{}",)):
    measured = classification(Embedder(custom(encoder), Resources(batch_size=5)), dataset, templates)
    return result_of(ZERO_SHOT, custom(encoder), dataset, measured)


def labelled(folder, labels, n_classes):
    """One painted picture a label; the picture's number is its place."""
    items = []
    for number, label in enumerate(labels):
        paint(folder / f"{number}.png", [number])
        items.append(Item(str(number), ImageRef(folder / f"{number}.png"), labels=(label,)))
    return Dataset("planted", tuple(items), "made by the tests", tuple(f"class {c}" for c in range(n_classes)))


@pytest.mark.parametrize("n_classes", [3, 5, 11])
def test_metrics_equal_clip_benchmark_and_scikit_learn_on_the_same_rows(tmp_path, n_classes):
    labels = np.random.default_rng(1).integers(0, n_classes, 60).tolist()
    encoder = PlantedEncoder(dim=6)
    dataset = labelled(tmp_path, labels, n_classes)
    ours = classified(encoder, dataset, TEMPLATES)
    model = TorchModel(encoder)
    loader = Loader(encoder.table[:60], torch.tensor(labels), dataset.classes)
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    theirs = zeroshot_classification.evaluate(
        model, loader, model.tokenizer, list(dataset.classes), templates, "cpu", amp=False
    )
    assert set(ours.scores) == {name for name, value in theirs.items() if not np.isnan(value)}
    for name, metric in ours.scores.items():
        assert metric.value == pytest.approx(theirs[name], abs=1e-6), name
    cosines = (
        unit(encoder.table[:60]) @ Embedder(custom(encoder), Resources()).classes(dataset.classes, TEMPLATES).rows.T
    )
    picked = cosines.argmax(axis=1)
    assert ours.scores["mean_per_class_recall"].value == pytest.approx(balanced_accuracy_score(labels, picked))
    np.testing.assert_array_equal(
        ours.answers["images"].confusion(), sklearn_confusion(labels, picked, labels=range(n_classes))
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_encoder_that_sees_colours_is_never_wrong_and_a_blind_one_is_always(tmp_path):
    class Blind(ColourEncoder):
        def encode_images(self, images):
            return np.ones((len(images), 3))

        def encode_texts(self, texts):
            return np.ones((len(texts), 3))

    plain = colour_dataset(tmp_path)
    items = tuple(Item(i.id, i.image, labels=(k,)) for k, i in enumerate(plain.items))
    dataset = Dataset("colours", items, "tests", ColourEncoder.names)
    seeing = classified(ColourEncoder(), dataset)
    assert {name: m.value for name, m in seeing.scores.items()} == {"acc1": 1.0, "mean_per_class_recall": 1.0}
    assert np.trace(seeing.answers["images"].confusion()) == 4
    blind = classified(Blind(), dataset)
    assert {name: m.value for name, m in blind.scores.items()} == {"acc1": 0.0, "mean_per_class_recall": 0.0}


@given(st.integers(0, 1000), st.integers(2, 7))
def test_tied_scores_equal_the_slow_oracles(seed, n_classes):
    rng = np.random.default_rng(seed)
    images, classes = rng.integers(-2, 3, (9, 3)), rng.integers(-2, 3, (n_classes, 3))
    labels = rng.integers(0, n_classes, 9)
    ranks, found = answered(images.astype(np.float32), classes.astype(np.float32), labels)
    table = (images @ classes.T).tolist()
    assert ranks.tolist() == slow_ranks(table, labels.tolist())
    assert found.confusion().tolist() == slow_confusion(table, labels.tolist(), n_classes)


def answered(images, classes, labels):
    ids, names = (tuple(str(k) for k in range(len(rows))) for rows in (images, classes))
    return answers_of(images, classes, labels, ids, names, [Item(i, ImageRef(Path(i))) for i in ids])


def test_scoring_a_part_at_a_time_changes_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    rows, classes = rng.standard_normal((50, 4), np.float32), rng.standard_normal((6, 4), np.float32)
    labels = rng.integers(0, 6, 50)
    ranks, whole = answered(rows, classes, labels)
    monkeypatch.setattr("clipbench.experiments.classification.IMAGES_AT_ONCE", 7)
    ranks_of_parts, parts = answered(rows, classes, labels)
    np.testing.assert_array_equal(ranks, ranks_of_parts)
    for name in ("top", "scores", "margins", "labels"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_items_of_one_file_widen_the_interval_and_items_of_their_own_do_not(tmp_path):
    paint(tmp_path / "many.png", list(range(12)))
    crops = tuple(
        Item(str(k), ImageRef(tmp_path / "many.png", crop=(12 * k, 0, 12 * k + 12, 12)), labels=(k % 3,))
        for k in range(12)
    )
    names = tuple("abc")
    own = labelled(tmp_path, [k % 3 for k in range(12)], 3)
    paint(tmp_path / "one.png", [12])
    mixed = Dataset("m", (*crops[:6], *own.items[6:]), "tests", names)
    result = classified(PlantedEncoder(), mixed)
    hits = result.scores["acc1"].outcomes.values
    files = ["many"] * 6 + [str(k) for k in range(6)]
    found = result.scores["acc1"]
    assert found.interval == pytest.approx(clustered_wilson_interval(hits, files))
    alone = classified(PlantedEncoder(), own)
    own_hits = alone.scores["acc1"].outcomes.values.sum()
    assert alone.scores["acc1"].interval == pytest.approx(wilson_interval(own_hits, 12))


def test_outcomes_align_with_their_ids(tmp_path):
    dataset = labelled(tmp_path, [4, 4, 1, 0, 4, 2], 6)
    result = classified(PlantedEncoder(), dataset)
    assert result.scores["acc1"].outcomes.ids == result.answers["images"].ids == ("0", "1", "2", "3", "4", "5")
    by_class = result.scores["mean_per_class_recall"].outcomes
    assert (by_class.ids, by_class.axis) == (("class 0", "class 1", "class 2", "class 4"), "classes")
    assert result.scores["mean_per_class_recall"].n == 4
    assert result.provenance.exclusions["classes_without_items"] == 2


def test_classes_of_one_name_tie_are_counted_and_keep_their_own_ids(tmp_path):
    dataset = labelled(tmp_path, [0, 1, 2], 3)
    same = Dataset("s", dataset.items, "tests", ("missile", "missile", "cat"))
    result = classified(PlantedEncoder(), same)
    assert result.scores["acc1"].outcomes.values[:2].tolist() == [0, 0]
    assert result.provenance.exclusions["classes_of_the_same_name"] == 2
    assert class_ids(same.classes) == result.evidence["texts"].ids == ("missile #0", "missile #1", "cat")


def test_a_broken_image_is_named_and_counted_and_the_others_are_scored(tmp_path):
    dataset = labelled(tmp_path, [0, 1, 2, 0], 3)
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    result = classified(PlantedEncoder(), dataset)
    assert result.dataset.n == 3
    assert result.scores["acc1"].outcomes.ids == ("0", "1", "3")
    assert result.provenance.exclusions["broken_images"] == 1
    assert result.provenance.broken == ("2.png",)


def test_greyscale_and_cmyk_images_are_counted(tmp_path):
    from PIL import Image

    dataset = labelled(tmp_path, [0, 1, 0, 1], 2)
    Image.new("L", (9, 9), 7).save(tmp_path / "0.png")
    Image.new("CMYK", (9, 9)).save(tmp_path / "1.jpg")
    items = (dataset.items[0], Item("1", ImageRef(tmp_path / "1.jpg"), labels=(1,)), *dataset.items[2:])
    result = classified(PlantedEncoder(), Dataset("d", items, "t", ("a", "b")))
    notes = result.provenance.exclusions
    assert (notes["greyscale_images"], notes["cmyk_images"], notes["broken_images"]) == (1, 1, 0)


def test_one_class_cannot_be_mistaken_and_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 1 class\(es\)"):
        classified(PlantedEncoder(), labelled(tmp_path, [0, 0], 1))


def test_towers_of_different_dim_are_refused(tmp_path):
    class Uneven(PlantedEncoder):
        def encode_texts(self, texts):
            return np.ones((len(texts), 5))

    with pytest.raises(DataError, match="texts of dim 5 and images of dim 16"):
        classified(Uneven(), labelled(tmp_path, [0, 1], 2))


def test_images_carry_their_label_and_their_group_into_the_answers(tmp_path):
    plain = labelled(tmp_path, [2, 0], 3)
    assert classified(PlantedEncoder(), plain).answers["images"].groups is None
    grouped = tuple(replace(item, group=name) for item, name in zip(plain.items, ("day", "night"), strict=True))
    found = classified(PlantedEncoder(), replace(plain, items=grouped)).answers["images"]
    assert (found.labels.tolist(), found.groups) == ([2, 0], ("day", "night"))
    assert found.candidates == ("class 0", "class 1", "class 2")
