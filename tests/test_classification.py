"""Zero-shot classification: equal to clip-benchmark and scikit-learn on the same rows, end to end, and right by hand."""

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
from clipbench.errors import DataError
from clipbench.experiments.classification import (
    class_embeddings,
    class_ids,
    classification_result,
    most_confused,
    score,
)
from clipbench.settings import Settings
from clipbench.statistics import clustered_wilson_interval, wilson_interval

SETTINGS = Settings(batch_size=5)
TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{}")


@pytest.fixture(autouse=True)
def item_of_one(monkeypatch):
    """clip-benchmark 1.6.2 calls float() on an array of one number, which numpy 2.4 refuses."""
    monkeypatch.setattr(
        zeroshot_classification, "float", lambda x: np.asarray(x, dtype=np.float64).item(), raising=False
    )


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
    ours = classification_result("x", custom(encoder), dataset, TEMPLATES, SETTINGS)
    model = TorchModel(encoder)
    loader = Loader(encoder.table[:60], torch.tensor(labels), dataset.classes)
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    theirs = zeroshot_classification.evaluate(
        model, loader, model.tokenizer, list(dataset.classes), templates, "cpu", amp=False
    )
    assert set(ours.metrics) == {name for name, value in theirs.items() if not np.isnan(value)}
    for name, metric in ours.metrics.items():
        assert metric.value == pytest.approx(theirs[name], abs=1e-6), name
    cosines = unit(encoder.table[:60]) @ class_embeddings(custom(encoder), dataset.classes, TEMPLATES, SETTINGS).rows.T
    picked = cosines.argmax(axis=1)
    assert ours.metrics["mean_per_class_recall"].value == pytest.approx(balanced_accuracy_score(labels, picked))
    np.testing.assert_array_equal(ours.arrays["confusion"], sklearn_confusion(labels, picked, labels=range(n_classes)))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_class_is_the_mean_of_its_unit_rows_and_a_unit_row_itself():
    class Two:
        def encode_images(self, images):
            raise AssertionError

        def encode_texts(self, texts):
            return np.array(
                [{"the a": [3.0, 0.0], "an a": [0.0, 0.5], "the b": [1.0, 1.0], "an b": [2.0, 2.0]}[t] for t in texts]
            )

    rows = class_embeddings(custom(Two()), ("a", "b"), ("the {}", "an {}"), SETTINGS).rows
    np.testing.assert_allclose(rows, np.full((2, 2), np.sqrt(0.5)), atol=1e-7)


def test_an_encoder_that_sees_colours_is_never_wrong_and_a_blind_one_is_always(tmp_path):
    class Blind(ColourEncoder):
        def encode_images(self, images):
            return np.ones((len(images), 3))

        def encode_texts(self, texts):
            return np.ones((len(texts), 3))

    plain = colour_dataset(tmp_path)
    items = tuple(Item(i.id, i.image, labels=(k,)) for k, i in enumerate(plain.items))
    dataset = Dataset("colours", items, "tests", ColourEncoder.names)
    seeing = classification_result("x", custom(ColourEncoder()), dataset, ("{}",), SETTINGS)
    assert {name: m.value for name, m in seeing.metrics.items()} == {"acc1": 1.0, "mean_per_class_recall": 1.0}
    assert "most_confused" not in seeing.arrays
    blind = classification_result("x", custom(Blind()), dataset, ("{}",), SETTINGS)
    assert {name: m.value for name, m in blind.metrics.items()} == {"acc1": 0.0, "mean_per_class_recall": 0.0}


@given(st.integers(0, 1000), st.integers(2, 7))
def test_tied_scores_equal_the_slow_oracles(seed, n_classes):
    rng = np.random.default_rng(seed)
    images, classes = rng.integers(-2, 3, (9, 3)), rng.integers(-2, 3, (n_classes, 3))
    labels = rng.integers(0, n_classes, 9)
    scored = score(images.astype(np.float32), classes.astype(np.float32), labels)
    table = (images @ classes.T).tolist()
    assert scored.ranks.tolist() == slow_ranks(table, labels.tolist())
    assert scored.confusion.tolist() == slow_confusion(table, labels.tolist(), n_classes)


def test_scoring_a_part_at_a_time_changes_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    rows, classes = rng.standard_normal((50, 4), np.float32), rng.standard_normal((6, 4), np.float32)
    labels = rng.integers(0, 6, 50)
    whole = score(rows, classes, labels)
    monkeypatch.setattr("clipbench.experiments.classification.IMAGES_AT_ONCE", 7)
    parts = score(rows, classes, labels)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.confusion, parts.confusion)


def test_the_most_confused_pairs_come_most_frequent_first_then_by_share():
    confusion = np.array([[5, 3, 0], [3, 1, 1], [0, 0, 4]])
    assert most_confused(confusion).tolist() == [[1, 0, 3, 5], [0, 1, 3, 8], [1, 2, 1, 5]]
    assert most_confused(confusion, pairs=1).tolist() == [[1, 0, 3, 5]]
    assert most_confused(np.diag([2, 3])).shape == (0, 4)


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
    result = classification_result("x", custom(PlantedEncoder()), mixed, ("{}",), SETTINGS)
    hits = result.items.outcomes["acc1"]
    files = ["many"] * 6 + [str(k) for k in range(6)]
    found = result.metrics["acc1"]
    assert (found.low, found.high) == pytest.approx(clustered_wilson_interval(hits, files))
    alone = classification_result("x", custom(PlantedEncoder()), own, ("{}",), SETTINGS)
    own_hits = sum(alone.items.outcomes["acc1"])
    assert (alone.metrics["acc1"].low, alone.metrics["acc1"].high) == pytest.approx(wilson_interval(own_hits, 12))


def test_outcomes_align_with_their_ids(tmp_path):
    dataset = labelled(tmp_path, [4, 4, 1, 0, 4, 2], 6)
    result = classification_result("x", custom(PlantedEncoder()), dataset, ("{}",), SETTINGS)
    assert list(result.items.ids) == ["0", "1", "2", "3", "4", "5"]
    assert result.items.ids_of("mean_per_class_recall") == ["class 0", "class 1", "class 2", "class 4"]
    assert result.metrics["mean_per_class_recall"].n == 4
    assert result.protocol["notes"]["classes_without_items"] == 2
    assert result.to_json()["items"]["axes"] == {"mean_per_class_recall": "classes"}


def test_classes_of_one_name_tie_are_counted_and_keep_their_own_ids(tmp_path):
    dataset = labelled(tmp_path, [0, 1, 2], 3)
    same = Dataset("s", dataset.items, "tests", ("missile", "missile", "cat"))
    result = classification_result("x", custom(PlantedEncoder()), same, ("{}",), SETTINGS)
    assert result.items.outcomes["acc1"][:2] == [0, 0]
    assert result.protocol["notes"]["classes_of_the_same_name"] == 2
    assert class_ids(same.classes) == ["missile #0", "missile #1", "cat"]


def test_a_broken_image_is_named_and_counted_and_the_others_are_scored(tmp_path):
    dataset = labelled(tmp_path, [0, 1, 2, 0], 3)
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    result = classification_result("x", custom(PlantedEncoder()), dataset, ("{}",), SETTINGS)
    assert result.dataset.n == 3
    assert list(result.items.ids) == ["0", "1", "3"]
    assert result.protocol["notes"]["broken_images"] == 1
    assert result.protocol["broken_images"] == ["2.png"]


def test_greyscale_and_cmyk_images_are_counted(tmp_path):
    from PIL import Image

    dataset = labelled(tmp_path, [0, 1, 0, 1], 2)
    Image.new("L", (9, 9), 7).save(tmp_path / "0.png")
    Image.new("CMYK", (9, 9)).save(tmp_path / "1.jpg")
    items = (dataset.items[0], Item("1", ImageRef(tmp_path / "1.jpg"), labels=(1,)), *dataset.items[2:])
    result = classification_result(
        "x", custom(PlantedEncoder()), Dataset("d", items, "t", ("a", "b")), ("{}",), SETTINGS
    )
    notes = result.protocol["notes"]
    assert (notes["greyscale_images"], notes["cmyk_images"], notes["broken_images"]) == (1, 1, 0)


def test_one_class_cannot_be_mistaken_and_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 1 class\(es\)"):
        classification_result("x", custom(PlantedEncoder()), labelled(tmp_path, [0, 0], 1), ("{}",), SETTINGS)


def test_towers_of_different_dim_are_refused(tmp_path):
    class Uneven(PlantedEncoder):
        def encode_texts(self, texts):
            return np.ones((len(texts), 5))

    with pytest.raises(DataError, match="texts of dim 5 and images of dim 16"):
        classification_result("x", custom(Uneven()), labelled(tmp_path, [0, 1], 2), ("{}",), SETTINGS)
