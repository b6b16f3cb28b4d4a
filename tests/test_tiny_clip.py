"""The tiny CLIP: small, right on pictures that it has not seen, and made of drawings that are the same everywhere."""

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from fakes import measure
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors import safe_open
from tiny_clip.drawings import CLASSES, ORIENTATION, main, pictured, scene, where, write_coco, write_folders

from clipbench.data.coco import coco_crops, coco_multilabel, coco_retrieval
from clipbench.data.folders import labelled_folder
from clipbench.errors import UsageError
from clipbench.models import load_encoder, wrap_encoder
from clipbench.models.device import Resources
from clipbench.models.zoo import ModelSpec

PICTURES = 400


@pytest.fixture(scope="module")
def one_thread():
    """A model so small spends its time waiting where two threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(one_thread):
    return tiny_clip.encoder()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"), PICTURES)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), PICTURES)


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")}


def test_unseen_pictures_of_twenty_classes_are_told_apart_but_not_all_of_them(encoder, folders):
    result = measure("zero_shot", encoder, labelled_folder("shapes", folders), batch_size=64)
    assert 0.6 <= result.scores["acc1"].value <= 0.95
    assert result.scores["acc5"].value > 0.9
    assert (np.abs(result.answers["images"].margins) < 0.01).any(), (
        "no near tie: no small change could ever flip an answer"
    )


def test_captions_find_their_pictures_far_above_chance(encoder, coco):
    result = measure("coco_retrieval", encoder, coco_retrieval(coco), batch_size=64)
    assert result.scores["image_retrieval_recall@1"].value > 20 / PICTURES
    assert result.scores["text_retrieval_recall@1"].value > 20 / PICTURES
    assert measure("coco_crops", encoder, coco_crops(coco), batch_size=64).scores["acc1"].value > 0.5


def test_the_weights_are_committed_in_half_precision_and_take_less_than_a_megabyte(encoder):
    assert tiny_clip.WEIGHTS.stat().st_size + tiny_clip.VOCABULARY.stat().st_size <= 1_000_000
    with safe_open(tiny_clip.WEIGHTS, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118  # no mapping
    assert {tensor.dtype for tensor in encoder.model.state_dict().values()} == {torch.float32}


def test_everything_of_the_model_can_be_observed(encoder):
    observed = encoder.observed()
    assert observed["activation"] == "quickgelu"
    assert {type(module.gelu) for name, module in encoder.model.named_modules() if name.endswith("mlp")} == {QuickGELU}
    assert observed["weights"]
    assert len(observed["tensors"]) == len(encoder.model.state_dict())
    assert encoder.optimized().names("texts") == ("cut_texts", "shared_beginnings", "words_tokenized_once")
    assert encoder.count_truncated(["a red circle", "a red circle " * 20]) == 1


def test_its_words_are_its_own(encoder):
    rows = encoder.tokens(["A Red circle.", "a red circle.", "a red", "zyxomma"])
    assert torch.equal(rows[0], rows[1])
    assert (rows[2] > 0).sum() == 4, "start, two words, end"
    assert encoder.card["vocab_size"] == len(encoder.tokenizer.encoder) < 1000
    assert encoder.tokenizer.decode(encoder.tokenizer.encode("zyxomma")).strip() == "zyxomma"


def test_the_factory_is_a_model_of_the_command_line_and_shows_everything_there_too(one_thread):
    spec = ModelSpec("tiny_clip:encoder", "factory", "factory", location="tiny_clip:encoder")
    found = load_encoder(spec, Resources(), offline=True)
    assert found.identity.name == "tiny_clip:encoder"
    assert found.observed()["tensors"]
    assert found.optimized() is not None
    with pytest.raises(UsageError, match="ask for that one"):
        load_encoder(spec, Resources(precision="bf16"), offline=True)
    assert wrap_encoder(tiny_clip.encoder(), Resources()).tokens(["a red circle"]).shape == (
        1,
        tiny_clip.CONTEXT_LENGTH,
    )


@pytest.mark.parametrize("write", [write_folders, write_coco])
def test_a_set_is_the_same_every_time_other_with_another_seed_and_grows_at_its_end(tmp_path, write):
    once, again, other, grown = (
        content(write(tmp_path / name, n, seed))
        for name, n, seed in (("a", 40, 1), ("b", 40, 1), ("c", 40, 7), ("d", 44, 1))
    )
    assert once == again
    pictures = {name for name in once if not name.endswith(".json")}
    assert all(grown[name] == once[name] for name in pictures)
    assert not set(once.values()) & set(other.values())


def test_class_folders_are_what_zero_shot_reads(folders):
    dataset = labelled_folder("shapes", folders)
    assert sorted(dataset.classes) == sorted(CLASSES)
    assert np.bincount([item.labels[0] for item in dataset.items]).tolist() == [PICTURES // len(CLASSES)] * len(CLASSES)
    for item in dataset.items:
        item.image.open()


def test_coco_s_layout_is_what_the_experiments_read(coco):
    crops, pictures, captioned = coco_crops(coco), coco_multilabel(coco), coco_retrieval(coco)
    assert crops.classes == pictures.classes == CLASSES
    assert len(pictures) == len(captioned) == PICTURES < len(crops)
    assert {len(item.captions) for item in captioned.items} == {5}
    assert crops.exclusions["outside_boxes_dropped"] == crops.exclusions["empty_boxes_dropped"] == 0
    several = [item for item in pictures.items if len(item.labels) > 1]
    assert len(several) > PICTURES / 4
    assert (
        sum(any(mark in caption for caption in item.captions) for item in captioned.items for mark in ("two", "three"))
        > PICTURES / 10
    )
    assert all(
        item.captions[0].lower() in {c.lower().rstrip(".") + end for c in item.captions for end in ("", ".")}
        for item in captioned.items
    )


def test_pictures_come_in_the_forms_in_which_files_do(tmp_path):
    write_folders(tmp_path, 1000)
    opened = [Image.open(path) for path in tmp_path.glob("*/*")]
    assert {image.mode for image in opened} == {"RGB", "RGBA", "L", "P"}
    assert {image.format for image in opened} == {"JPEG", "PNG"}
    assert any(image.width > image.height for image in opened)
    assert any(image.width < image.height for image in opened)
    assert 5 <= sum(image.getexif().get(ORIENTATION, 1) != 1 for image in opened) <= 30


def test_a_drawing_is_of_its_class_and_says_where_things_are():
    drawing, _ = pictured(3, 7)
    assert CLASSES[drawing.things[0].label] == CLASSES[7]
    assert pictured(3, 7)[0].image.tobytes() == drawing.image.tobytes()
    thing = scene(3, 7)[0].things[0]
    image = Image.new("RGB", (90, 90))
    assert where(type(thing)(0, (70, 5, 10, 10), ""), image) == "at the top right"
    assert where(type(thing)(0, (40, 40, 10, 10), ""), image) == "in the middle"
    assert where(type(thing)(0, (40, 75, 10, 10), ""), image) == "at the bottom"


def test_sets_are_written_by_a_command(tmp_path):
    main(["coco", str(tmp_path / "coco"), "-n", "5"])
    main(["folders", str(tmp_path / "folders"), "-n", "20", "--seed", "4"])
    assert len(coco_retrieval(tmp_path / "coco")) == 5
    assert len(labelled_folder("shapes", tmp_path / "folders")) == 20


def test_the_training_s_prompts_are_clipbench_s_own():
    from tiny_clip.train import TEMPLATES

    assert TEMPLATES[0] == "a photo of a {}."
    assert len(TEMPLATES) == 1 + len(open_clip.OPENAI_IMAGENET_TEMPLATES)
