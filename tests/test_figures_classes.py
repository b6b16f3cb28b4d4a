"""The figures about classes: large enough to read, complete, and drawn for any text and any number of classes."""

import io

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom
from PIL import Image
from planted import PlantedEncoder, write_coco

from clipbench.data.dataset import DataOptions
from clipbench.embed.embedder import Embedder, Resources
from clipbench.experiments import experiment, result_of
from clipbench.report.figures import classes_to_draw, confusion_figure, figure_of, labels_figure

ODD = ["a $\\frac$ b", "\u202e\n\x00", "x" * 300, "_^{", ""]


def picture(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def test_eighty_classes_get_a_figure_whose_cells_hold_two_digits():
    confusion = np.random.default_rng(0).integers(0, 9, (80, 80)).astype(float)
    image = picture(confusion_figure(confusion, [f"class {c}" for c in range(80)], "title"))
    assert min(image.size) >= 80 * 25
    assert max(image.size) < 4000


def test_hits_are_blue_and_confusions_orange():
    image = np.asarray(picture(confusion_figure(np.array([[4.0, 0], [4, 0]]), ["a", "b"], "t")).convert("RGB"), int)
    blue = (image[..., 2] - image[..., 0] > 60).mean()
    orange = (image[..., 0] - image[..., 2] > 60).mean()
    assert blue > 0.02
    assert orange > 0.02
    right = np.asarray(picture(confusion_figure(np.diag([4.0, 4]), ["a", "b"], "t")).convert("RGB"), int)
    assert (right[..., 0] - right[..., 2] > 60).mean() < 0.001


def test_classes_that_never_occur_are_left_out_and_of_very_many_the_most_confused_are_shown():
    few = np.zeros((80, 80))
    few[3, 3], few[5, 7] = 4, 1
    assert classes_to_draw(few, 100, 80) == [3, 5, 7]
    many = np.eye(300) * 5
    many[10, 200] = 3
    assert len(classes_to_draw(many, 100, 80)) == 80
    assert {10, 200} <= set(classes_to_draw(many, 100, 80))
    assert picture(confusion_figure(many, [str(c) for c in range(300)], "t")).size[0] > 2000


def test_any_text_can_be_a_class_or_a_title():
    for title in ODD:
        picture(confusion_figure(np.eye(5), ODD, title))
        picture(labels_figure(np.eye(5), ODD, ODD, {}, title))


def test_labels_are_drawn_beside_their_pictures_and_fewer_than_five_are_enough(tmp_path):
    items = colour_dataset(tmp_path).items
    pictures = {item.id: item.image.open() for item in items}
    ids, names = [item.id for item in items], ColourEncoder.names
    with_pictures = np.asarray(picture(labels_figure(np.eye(4), ids, names, pictures, "t")).convert("RGB"))
    without = np.asarray(picture(labels_figure(np.eye(4), ids, names, {}, "t")).convert("RGB"))
    red = [((image == (255, 0, 0)).all(axis=-1)).mean() for image in (with_pictures, without)]
    assert red[0] > 0.01
    assert red[1] == 0
    picture(labels_figure(np.array([[0.6, 0.4]]), ["one"], ["a", "b"], {}, "t"))


@pytest.mark.parametrize(
    ("name", "is_drawn"), [("coco_crops", True), ("coco_multilabel", False), ("coco_retrieval", False)]
)
def test_a_result_is_drawn_by_the_evidence_it_carries(tmp_path, name, is_drawn):
    root = write_coco(tmp_path, [[0, 1], [2], [3, 4, 5]])
    one, encoder = experiment(name), custom(PlantedEncoder())
    (source,) = one.sources(DataOptions({"coco": (("", root),)}))
    dataset = source.load()
    content = figure_of(result_of(one, encoder, dataset, one.measure(Embedder(encoder, Resources()), dataset)), None)
    assert (content is not None) == is_drawn
    if content is not None:
        picture(content)
