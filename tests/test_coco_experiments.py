"""COCO crops, multi-label and retrieval, from the annotation files to the metrics, against clip-benchmark on the same rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from fakes import custom, load, measure
from oracles import average_precision as slow_average_precision
from oracles import retrieval_ranks as slow_ranks
from planted import Loader, PlantedEncoder, TorchModel, write_coco
from sklearn.metrics import average_precision_score

from clipbench.errors import DataError
from clipbench.experiments.classification import CROP_TEMPLATES, templates_for
from clipbench.models.encoder import unit_rows
from clipbench.statistics import clustered_wilson_interval, wilson_interval

SHARED = Path(__file__).parents[2] / "shared" / "data" / "coco_mini"
RNG = np.random.default_rng(0)
BOXES = [RNG.integers(0, 11, n).tolist() for n in RNG.integers(0, 5, 30)]


@pytest.fixture(autouse=True)
def item_of_one(monkeypatch):
    """clip-benchmark 1.6.2 calls float() on an array of one number, which numpy 2.4 refuses."""
    monkeypatch.setattr(
        zeroshot_classification, "float", lambda x: np.asarray(x, dtype=np.float64).item(), raising=False
    )


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path, BOXES)


def measured(name, encoder, **data):
    return measure(name, custom(encoder), load(name, **data), batch_size=7)


def middles():
    """The number that an image's middle pixel shows: that of the patch under it."""
    starts = np.cumsum([0] + [len(image) for image in BOXES[:-1]])
    return [s + len(image) // 2 if image else 4000 + i for i, (s, image) in enumerate(zip(starts, BOXES, strict=True))]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_crops_equal_clip_benchmark_box_by_box(coco):
    encoder = PlantedEncoder(dim=5)
    result = measured("coco_crops", encoder, coco=coco)
    labels = [label for image in BOXES for label in image]
    classes = [f"class {c}" for c in range(12)]
    model, loader = TorchModel(encoder), Loader(encoder.table[: len(labels)], torch.tensor(labels), classes)
    templates = ["a photo of a {c}."]
    theirs = zeroshot_classification.evaluate(model, loader, model.tokenizer, classes, templates, "cpu", amp=False)
    assert {name: m.value for name, m in result.scores.items()} == pytest.approx(theirs, abs=1e-6)
    assert result.dataset.n == len(labels)
    assert result.answers["images"].confusion().sum() == len(labels)
    assert (result.protocol.options["crop"], result.protocol.options["split"]) == ("square", "val2017")


def test_the_tight_crop_is_an_option_and_stands_in_the_protocol(coco):
    result = measured("coco_crops", PlantedEncoder(), coco=coco, coco_crop="tight")
    assert result.protocol.options["crop"] == "tight"


def test_multilabel_equals_clip_benchmark_and_scikit_learn(coco):
    encoder = PlantedEncoder(dim=5)
    result = measured("coco_multilabel", encoder, coco=coco)
    truth = np.array([[c in image for c in range(12)] for image in BOXES])
    rows = encoder.table[middles()]
    classes = [f"class {c}" for c in range(12)]
    model = TorchModel(encoder)
    shown = truth.any(axis=0)
    loader = Loader(rows, torch.tensor(truth), classes)
    classifier = zeroshot_classification.zero_shot_classifier(
        model, model.tokenizer, classes, ["a photo of a {c}."], "cpu", amp=False
    )
    scores, target = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=False)
    theirs = zeroshot_classification.average_precision_per_class(scores, target).numpy()[shown]
    np.testing.assert_allclose(result.scores["mean_average_precision"].outcomes.values, theirs, atol=1e-6)
    assert result.scores["mean_average_precision"].value == pytest.approx(theirs.mean(), abs=1e-6)
    sklearn = average_precision_score(truth[:, shown], scores.numpy()[:, shown], average="macro")
    assert result.scores["mean_average_precision"].value == pytest.approx(sklearn, abs=1e-6)
    assert list(result.scores["mean_average_precision"].outcomes.ids) == [
        c for c, there in zip(classes, shown, strict=True) if there
    ]
    assert result.provenance.exclusions["images_without_labels_kept"] == sum(not image for image in BOXES)


def test_multilabel_ties_equal_the_slow_oracle(coco):
    class Coarse(PlantedEncoder):
        def text_row(self, text):
            return np.sign(super().text_row(text))

        def image_row(self, number):
            return np.sign(super().image_row(number))

    result = measured("coco_multilabel", encoder := Coarse(dim=3), coco=coco)
    outcomes = result.scores["mean_average_precision"].outcomes
    assert outcomes.axis == "classes"  # a comparison counts the images behind them
    for name, found in zip(outcomes.ids, outcomes.values, strict=True):
        scores = [int(encoder.image_row(m) @ encoder.text_row(f"a photo of a {name}.")) for m in middles()]
        relevant = [int(name.split()[1]) in image for image in BOXES]
        assert found == pytest.approx(slow_average_precision(scores, relevant))


def test_eighty_templates_are_ensembled_where_there_are_images_enough_to_be_worth_it():
    assert templates_for(999) == CROP_TEMPLATES
    assert len(templates_for(1000)) == 80
    assert all(template.count("{}") == 1 for template in templates_for(5000))


def test_no_class_on_any_image_is_an_error_that_says_so(tmp_path):
    dataset = load("coco_multilabel", coco=write_coco(tmp_path, [[], [1]]))
    bare = replace(dataset, items=dataset.items[:1])
    with pytest.raises(DataError, match="no image shows any of the 12 classes"):
        measure("coco_multilabel", custom(PlantedEncoder()), bare)


@pytest.mark.parametrize("dim", [2, 8])
def test_retrieval_equals_clip_benchmark(coco, dim):
    encoder = PlantedEncoder(dim=dim)
    result = measured("coco_retrieval", encoder, coco=coco)
    captions = [[f"caption {k} of picture {i}" for k in range(3)] for i in range(len(BOXES))]
    model = TorchModel(encoder)
    loader = Loader(encoder.table[middles()], captions)
    theirs = zeroshot_retrieval.evaluate(model, loader, model.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert {name: m.value for name, m in result.scores.items()} == pytest.approx(theirs, abs=1e-6)


def test_retrieval_ties_equal_the_slow_oracle_and_intervals_know_which_captions_share_an_image(coco):
    class Coarse(PlantedEncoder):
        def image_row(self, number):
            return np.sign(super().image_row(number))

        def text_row(self, text):
            return np.sign(super().text_row(text))

    encoder = Coarse(dim=4)
    dataset = load("coco_retrieval", coco=coco)
    result = measure("coco_retrieval", custom(encoder), dataset)
    images = unit_rows(custom(encoder).encode_images([item.image.open() for item in dataset.items]))
    texts = unit_rows(custom(encoder).encode_texts([c for item in dataset.items for c in item.captions]))
    text_image = [i for i, item in enumerate(dataset.items) for _ in item.captions]
    slow = slow_ranks(np.rint(4 * texts.astype(float) @ images.astype(float).T).tolist(), text_image)
    for k in (1, 5, 10):
        for way, ranks in zip(("image", "text"), slow, strict=True):
            hits = result.scores[f"{way}_retrieval_recall@{k}"].outcomes.values
            assert hits.tolist() == [int(rank < k) for rank in ranks]
    found = result.scores["image_retrieval_recall@5"]
    hits = found.outcomes.values
    assert found.interval == pytest.approx(clustered_wilson_interval(hits, text_image))
    found = result.scores["text_retrieval_recall@5"]
    hits = found.outcomes.values
    assert found.interval == pytest.approx(wilson_interval(sum(hits), len(hits)))


def test_retrieval_outcomes_name_their_id_lists(coco):
    result = measured("coco_retrieval", PlantedEncoder(), coco=coco)
    by_text, by_image = (result.scores[f"{way}_retrieval_recall@1"].outcomes for way in ("image", "text"))
    assert (by_text.ids[:4], by_text.axis) == (("1#0", "1#1", "1#2", "2#0"), "text_ids")
    assert by_text.clusters[:4] == ("1", "1", "1", "2")
    assert (by_image.ids[:2], by_image.axis, by_image.clusters) == (("1", "2"), "image_ids", None)
    assert result.protocol.prompts == ("{caption}",)


def test_retrieval_says_what_each_query_was_taken_for(coco):
    result = measured("coco_retrieval", PlantedEncoder(), coco=coco)
    by_text, by_image = (result.answers[way] for way in ("text_to_image", "image_to_text"))
    assert (by_text.ids, by_text.candidates) == (by_image.candidates, by_image.ids)
    assert [by_text.candidates[label] for label in by_text.labels[:4]] == ["1", "1", "1", "2"]
    assert by_image.labels is None
    for way, found in (("image", by_text), ("text", by_image)):
        hits = result.scores[f"{way}_retrieval_recall@1"].outcomes.values
        assert ((found.margins > 0) == (hits == 1)).all()


def test_recall_is_absent_where_every_query_would_hit(tmp_path):
    result = measured("coco_retrieval", PlantedEncoder(), coco=write_coco(tmp_path, [[0]] * 5))
    assert set(result.scores) == {"image_retrieval_recall@1", "text_retrieval_recall@1"}
    with pytest.raises(DataError, match="1 image can be decoded"):
        measured("coco_retrieval", PlantedEncoder(), coco=write_coco(tmp_path / "one", [[0]]))


def test_captions_of_a_broken_image_are_left_out_with_it(coco):
    picture = coco / "val2017" / "000003.png"
    picture.write_bytes(picture.read_bytes()[:50])
    result = measured("coco_retrieval", PlantedEncoder(), coco=coco)
    assert result.dataset.n == len(BOXES) - 1
    assert "4#0" not in result.evidence["texts"].ids
    assert (result.provenance.exclusions["broken_images"], result.provenance.broken) == (1, ("000003.png",))


def test_captions_beyond_the_context_are_counted_where_the_encoder_can_tell(coco):
    class Counting(PlantedEncoder):
        def count_truncated(self, texts):
            return sum(text.startswith("caption 1") for text in texts)

    assert measured("coco_retrieval", Counting(), coco=coco).provenance.exclusions["truncated_texts"] == len(BOXES)
    assert "truncated_texts" not in measured("coco_retrieval", PlantedEncoder(), coco=coco).provenance.exclusions


@pytest.mark.parametrize("name", ["coco_crops", "coco_multilabel", "coco_retrieval"])
def test_the_packaged_miniature_is_the_default(name):
    pytest.importorskip("skimage", reason="the miniature's pictures are scikit-image's")
    result = measured(name, PlantedEncoder())
    assert result.dataset.name == "coco_mini"
    assert all(0 <= m.value <= 1 for m in result.scores.values())


@pytest.mark.parametrize("name", ["coco_crops", "coco_multilabel", "coco_retrieval"])
@pytest.mark.skipif(not SHARED.is_dir(), reason="the 25 real COCO images are not beside this checkout")
def test_real_coco_images_run_end_to_end(name):
    result = measured(name, PlantedEncoder(), coco=SHARED)
    assert result.dataset.n == {"coco_crops": 213}.get(name, 25)
    assert result.provenance.exclusions["broken_images"] == 0


def test_a_set_of_some_hundred_images_is_scored_whole(tmp_path):
    boxes = [[(7 * i + k) % 12 for k in range(7)] for i in range(300)]
    root = write_coco(tmp_path, boxes, captions=5)
    encoder = PlantedEncoder(dim=64)
    assert measured("coco_retrieval", encoder, coco=root).scores["image_retrieval_recall@1"].n == 1500
    assert measured("coco_crops", encoder, coco=root).scores["acc1"].n == 2100
