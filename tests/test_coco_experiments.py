"""COCO crops, multi-label and retrieval, from the annotation files to the metrics, against clip-benchmark on the same rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from fakes import custom
from oracles import average_precision as slow_average_precision
from oracles import retrieval_ranks as slow_ranks
from planted import Loader, PlantedEncoder, TorchModel, write_coco
from sklearn.metrics import average_precision_score

from clipbench.errors import DataError
from clipbench.experiments import experiment
from clipbench.experiments.coco_multilabel import ONE_TEMPLATE, templates_for
from clipbench.experiments.retrieval import retrieval_result
from clipbench.settings import Settings
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
def settings(tmp_path):
    return Settings(coco=write_coco(tmp_path, BOXES), batch_size=7)


def measured(name, settings, encoder):
    return experiment(name).measure(custom(encoder), experiment(name).load(settings), settings)


def middles():
    """The number that an image's middle pixel shows: that of the patch under it."""
    starts = np.cumsum([0] + [len(image) for image in BOXES[:-1]])
    return [s + len(image) // 2 if image else 4000 + i for i, (s, image) in enumerate(zip(starts, BOXES, strict=True))]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_crops_equal_clip_benchmark_box_by_box(settings):
    encoder = PlantedEncoder(dim=5)
    result = measured("coco_crops", settings, encoder)
    labels = [label for image in BOXES for label in image]
    classes = [f"class {c}" for c in range(12)]
    model, loader = TorchModel(encoder), Loader(encoder.table[: len(labels)], torch.tensor(labels), classes)
    templates = ["a photo of a {c}."]
    theirs = zeroshot_classification.evaluate(model, loader, model.tokenizer, classes, templates, "cpu", amp=False)
    assert {name: m.value for name, m in result.metrics.items()} == pytest.approx(theirs, abs=1e-6)
    assert result.dataset.n == len(labels)
    assert result.arrays["confusion"].sum() == len(labels)
    assert (result.protocol["crop"], result.protocol["split"]) == ("square", "val2017")


def test_the_tight_crop_is_an_option_and_stands_in_the_protocol(settings):
    result = measured("coco_crops", replace(settings, coco_crop="tight"), PlantedEncoder())
    assert result.protocol["crop"] == "tight"


def test_multilabel_equals_clip_benchmark_and_scikit_learn(settings):
    encoder = PlantedEncoder(dim=5)
    result = measured("coco_multilabel", settings, encoder)
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
    np.testing.assert_allclose(result.items.outcomes["mean_average_precision"], theirs, atol=1e-6)
    assert result.metrics["mean_average_precision"].value == pytest.approx(theirs.mean(), abs=1e-6)
    sklearn = average_precision_score(truth[:, shown], scores.numpy()[:, shown], average="macro")
    assert result.metrics["mean_average_precision"].value == pytest.approx(sklearn, abs=1e-6)
    assert list(result.items.ids) == [c for c, there in zip(classes, shown, strict=True) if there]
    assert result.protocol["notes"]["images_without_labels_kept"] == sum(not image for image in BOXES)


def test_multilabel_ties_equal_the_slow_oracle(settings):
    class Coarse(PlantedEncoder):
        def text_row(self, text):
            return np.sign(super().text_row(text))

        def image_row(self, number):
            return np.sign(super().image_row(number))

    result = measured("coco_multilabel", settings, encoder := Coarse(dim=3))
    for name, found in zip(result.items.ids, result.items.outcomes["mean_average_precision"], strict=True):
        scores = [int(encoder.image_row(m) @ encoder.text_row(f"a photo of a {name}.")) for m in middles()]
        relevant = [int(name.split()[1]) in image for image in BOXES]
        assert found == pytest.approx(slow_average_precision(scores, relevant))


def test_eighty_templates_are_ensembled_where_there_are_images_enough_to_be_worth_it():
    assert templates_for(999) == ONE_TEMPLATE
    assert len(templates_for(1000)) == 80
    assert all(template.count("{}") == 1 for template in templates_for(5000))


def test_no_class_on_any_image_is_an_error_that_says_so(tmp_path):
    settings = Settings(coco=write_coco(tmp_path, [[], [1]]))
    dataset = experiment("coco_multilabel").load(settings)
    bare = replace(dataset, items=dataset.items[:1])
    with pytest.raises(DataError, match="no image shows any of the 12 classes"):
        experiment("coco_multilabel").measure(custom(PlantedEncoder()), bare, settings)


@pytest.mark.parametrize("dim", [2, 8])
def test_retrieval_equals_clip_benchmark(settings, dim):
    encoder = PlantedEncoder(dim=dim)
    result = measured("coco_retrieval", settings, encoder)
    captions = [[f"caption {k} of picture {i}" for k in range(3)] for i in range(len(BOXES))]
    model = TorchModel(encoder)
    loader = Loader(encoder.table[middles()], captions)
    theirs = zeroshot_retrieval.evaluate(model, loader, model.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert {name: m.value for name, m in result.metrics.items()} == pytest.approx(theirs, abs=1e-6)


def test_retrieval_ties_equal_the_slow_oracle_and_intervals_know_which_captions_share_an_image(settings):
    class Coarse(PlantedEncoder):
        def image_row(self, number):
            return np.sign(super().image_row(number))

        def text_row(self, text):
            return np.sign(super().text_row(text))

    encoder = Coarse(dim=4)
    dataset = experiment("coco_retrieval").load(settings)
    result = retrieval_result("coco_retrieval", custom(encoder), dataset, settings)
    images = custom(encoder).encode_images([item.image.open() for item in dataset.items])
    texts = custom(encoder).encode_texts([c for item in dataset.items for c in item.captions])
    text_image = [i for i, item in enumerate(dataset.items) for _ in item.captions]
    slow = slow_ranks(np.rint(4 * texts.astype(float) @ images.astype(float).T).tolist(), text_image)
    for k in (1, 5, 10):
        for way, ranks in zip(("image", "text"), slow, strict=True):
            assert result.items.outcomes[f"{way}_retrieval_recall@{k}"] == [int(rank < k) for rank in ranks]
    metric, hits = (x["image_retrieval_recall@5"] for x in (result.metrics, result.items.outcomes))
    assert (metric.low, metric.high) == pytest.approx(clustered_wilson_interval(hits, text_image))
    metric, hits = (x["text_retrieval_recall@5"] for x in (result.metrics, result.items.outcomes))
    assert (metric.low, metric.high) == pytest.approx(wilson_interval(sum(hits), len(hits)))


def test_retrieval_outcomes_name_their_id_lists(settings):
    result = measured("coco_retrieval", settings, PlantedEncoder())
    assert result.items.ids_of("image_retrieval_recall@1")[:4] == ["1#0", "1#1", "1#2", "2#0"]
    assert result.items.ids_of("text_retrieval_recall@1")[:2] == ["1", "2"]
    assert result.protocol["prompts"] == "{caption}"
    result.to_json()


def test_recall_is_absent_where_every_query_would_hit(tmp_path):
    result = measured("coco_retrieval", Settings(coco=write_coco(tmp_path, [[0]] * 5)), PlantedEncoder())
    assert set(result.metrics) == {"image_retrieval_recall@1", "text_retrieval_recall@1"}
    with pytest.raises(DataError, match="1 image can be decoded"):
        measured("coco_retrieval", Settings(coco=write_coco(tmp_path / "one", [[0]])), PlantedEncoder())


def test_captions_of_a_broken_image_are_left_out_with_it(settings):
    picture = settings.coco / "val2017" / "000003.png"
    picture.write_bytes(picture.read_bytes()[:50])
    result = measured("coco_retrieval", settings, PlantedEncoder())
    assert result.dataset.n == len(BOXES) - 1
    assert "4#0" not in result.items.id_lists["text_ids"]
    assert (result.protocol["notes"]["broken_images"], result.protocol["broken_images"]) == (1, ["000003.png"])


def test_captions_beyond_the_context_are_counted_where_the_encoder_can_tell(settings):
    class Counting(PlantedEncoder):
        def count_truncated(self, texts):
            return sum(text.startswith("caption 1") for text in texts)

    assert measured("coco_retrieval", settings, Counting()).protocol["notes"]["truncated_texts"] == len(BOXES)
    assert "truncated_texts" not in measured("coco_retrieval", settings, PlantedEncoder()).protocol["notes"]


@pytest.mark.parametrize("name", ["coco_crops", "coco_multilabel", "coco_retrieval"])
def test_the_packaged_miniature_is_the_default(name):
    pytest.importorskip("skimage", reason="the miniature's pictures are scikit-image's")
    result = measured(name, Settings(), PlantedEncoder())
    assert result.dataset.name == "coco_mini"
    assert all(0 <= m.value <= 1 for m in result.metrics.values())


@pytest.mark.parametrize("name", ["coco_crops", "coco_multilabel", "coco_retrieval"])
@pytest.mark.skipif(not SHARED.is_dir(), reason="the 25 real COCO images are not beside this checkout")
def test_real_coco_images_run_end_to_end(name):
    result = measured(name, Settings(coco=SHARED), PlantedEncoder())
    assert result.dataset.n == {"coco_crops": 213}.get(name, 25)
    assert result.protocol["notes"]["broken_images"] == 0
    result.to_json()


def test_a_set_of_some_hundred_images_is_scored_whole(tmp_path):
    boxes = [[(7 * i + k) % 12 for k in range(7)] for i in range(300)]
    settings = Settings(coco=write_coco(tmp_path, boxes, captions=5), batch_size=64)
    encoder = PlantedEncoder(dim=64)
    assert measured("coco_retrieval", settings, encoder).metrics["image_retrieval_recall@1"].n == 1500
    assert measured("coco_crops", settings, encoder).metrics["acc1"].n == 2100
