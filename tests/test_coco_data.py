"""COCO's readers: what becomes an item, what is dropped and counted, and every malformed input by name."""

import gc
import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipbench.data.coco import (
    SQUARE_PADDING,
    coco_crops,
    coco_multilabel,
    coco_retrieval,
    is_empty,
    is_outside,
    square_crop,
    tight_crop,
)
from clipbench.data.dataset import ImageRef
from clipbench.data.packaged import packaged_coco
from clipbench.errors import DataError, DataUnavailableError, UsageError
from clipbench.paths import fixtures

SHARED = Path(__file__).parents[2] / "shared" / "data" / "coco_mini"
WIDTH, HEIGHT = 60, 40


def image(number, name=None):
    return {"id": number, "file_name": name or f"{number}.png", "width": WIDTH, "height": HEIGHT}


def box(number, image_id, category_id, bbox=(5, 5, 20, 10), crowd=0):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "iscrowd": crowd}


def caption(number, image_id, text):
    return {"id": number, "image_id": image_id, "caption": text}


def write_root(root, split="val2017", *, images, boxes=(), captions=(), absent=()):
    """A folder in COCO's layout. Categories stand out of order: labels must follow their ids."""
    categories = [{"id": 17, "name": "cat"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for row in images:
        if row["id"] not in absent:
            Image.new("RGB", (row["width"], row["height"]), (row["id"], 0, 0)).save(root / split / row["file_name"])
    instances = {"images": images, "annotations": list(boxes), "categories": categories}
    write_json(root / f"annotations/instances_{split}.json", instances)
    write_json(root / f"annotations/captions_{split}.json", {"images": images, "annotations": list(captions)})
    return root


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    boxes = [box(31, 3, 17), box(12, 1, 90), box(11, 1, 1), box(21, 2, 17)]
    captions = [caption(n, 1 + n % 3, f"caption {n}") for n in range(15)]
    return write_root(tmp_path / "coco", images=[image(3), image(1), image(2)], boxes=boxes, captions=captions)


def edit(root, name, change):
    path = root / "annotations" / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


INSTANCES, CAPTIONS = "instances_val2017.json", "captions_val2017.json"


# --- crops


def test_each_box_is_an_item_labelled_in_the_order_of_category_ids_and_boxes_of_an_image_are_neighbours(root):
    dataset = coco_crops(root)
    assert dataset.classes == ("person", "cat", "toothbrush")
    assert [(item.id, item.labels) for item in dataset.items] == [
        ("11", (0,)),
        ("12", (2,)),
        ("21", (1,)),
        ("31", (1,)),
    ]
    assert [item.image.path.name for item in dataset.items] == ["1.png", "1.png", "2.png", "3.png"]
    assert set(dataset.exclusions.values()) == {0}
    assert dataset.options["split"] == "val2017"


def test_a_square_crop_is_one_and_a_half_times_the_longer_side_centred_on_the_box():
    assert square_crop([10, 20, 30, 40], 100, 100) == (-5, 10, 55, 70)


def test_a_square_crop_is_white_outside_the_image(root):
    edit(root, INSTANCES, lambda c: c["annotations"][2].update(bbox=[0, 0, 20, 20]))
    first = coco_crops(root).items[0].image
    assert first.crop == (-5, -5, 25, 25)
    picture = first.open()
    assert (picture.size, picture.getpixel((4, 4)), picture.getpixel((5, 5))) == ((30, 30), (255, 255, 255), (1, 0, 0))


def padded_crop(pixels, bbox):
    """The published crop, slowly: pad, cut box numbers to whole pixels, slice, all in padded coordinates."""
    canvas = np.pad(pixels, SQUARE_PADDING, constant_values=255)
    x, y, w, h = int(bbox[0] + 600), int(bbox[1] + 600), max(int(bbox[2]), 1), max(int(bbox[3]), 1)
    r = max(w, h)
    x, y = x - (r - w) / 2, y - (r - h) / 2
    rows, columns = canvas.shape
    bottom, right = y + 1.25 * r, x + 1.25 * r
    last_row, last_column = (
        (int(bottom) if bottom < rows else rows - 1),
        (int(right) if right < columns else columns - 1),
    )
    return canvas[max(0, int(y - 0.25 * r)) : last_row, max(0, int(x - 0.25 * r)) : last_column]


@st.composite
def image_and_box(draw, limit=200):
    width, height = draw(st.integers(1, limit)), draw(st.integers(1, limit))
    left, top = draw(st.floats(-3, width - 0.01)), draw(st.floats(-3, height - 0.01))
    return width, height, [left, top, draw(st.floats(0.01, 2.5 * limit)), draw(st.floats(0.01, 2.5 * limit))]


@given(image_and_box())
@settings(deadline=None, max_examples=60)
def test_a_square_crop_equals_the_published_code_on_a_padded_array(case):
    width, height, bbox = case
    pixels = np.arange(width * height, dtype=np.int64).reshape(height, width) % 251
    left, top, right, bottom = square_crop(bbox, width, height)
    canvas = np.pad(pixels, SQUARE_PADDING, constant_values=255)
    ours = canvas[top + SQUARE_PADDING : bottom + SQUARE_PADDING, left + SQUARE_PADDING : right + SQUARE_PADDING]
    np.testing.assert_array_equal(ours, padded_crop(pixels, bbox))
    assert min(ours.shape) >= 1


def test_a_square_crop_never_reaches_further_than_the_published_padding():
    assert square_crop([0, 0, 9e6, 9e6], 50, 40) == (-600, -600, 649, 639)


def test_a_tight_crop_rounds_outwards_and_stays_in_the_image():
    assert tight_crop([10.2, 20.9, 5.1, 30.0], 100, 45) == (10, 20, 16, 45)
    assert tight_crop([-3.5, -0.1, 4.0, 0.2], 100, 45) == (0, 0, 1, 1)


@given(image_and_box())
def test_a_tight_crop_of_a_visible_box_holds_a_pixel_and_every_pixel_the_box_touches(case):
    width, height, bbox = case
    if is_outside(bbox, width, height):
        return
    left, top, right, bottom = tight_crop(bbox, width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left <= max(bbox[0], 0)
    assert right >= min(bbox[0] + bbox[2], width)
    assert top <= max(bbox[1], 0)
    assert bottom >= min(bbox[1] + bbox[3], height)


@pytest.mark.parametrize(
    ("bbox", "outside"),
    [
        ((60, 0, 5, 5), True),
        ((-5, 0, 5, 5), True),
        ((0, 40, 5, 5), True),
        ((0, -5, 5, 5), True),
        ((59, 39, 9, 9), False),
    ],
)
def test_a_box_is_outside_when_it_shares_no_area_with_the_image(bbox, outside):
    assert is_outside(bbox, WIDTH, HEIGHT) is outside


def test_boxes_without_area_or_outside_the_image_are_dropped_and_counted(root):
    assert is_empty([1, 1, 0, 5])
    assert not is_empty([1, 1, 0.1, 5])
    added = [box(90, 2, 1, (5, 5, 0, 10)), box(91, 2, 1, (5, 5, 4, -1)), box(92, 2, 1, (60, 5, 4, 4))]
    edit(root, INSTANCES, lambda c: c["annotations"].extend(added))
    for crop in ("square", "tight"):
        dataset = coco_crops(root, crop)
        assert len(dataset) == 4
        assert (dataset.exclusions["empty_boxes_dropped"], dataset.exclusions["outside_boxes_dropped"]) == (2, 1)


def test_crowd_boxes_stay_in_the_published_crop_and_go_from_the_tight_one_counted_in_both(root):
    edit(root, INSTANCES, lambda c: c["annotations"].append(box(99, 2, 1, crowd=1)))
    square, tight = coco_crops(root), coco_crops(root, "tight")
    assert (len(square), square.exclusions["crowd_boxes_kept"], square.options["crowd_boxes"]) == (5, 1, "kept")
    assert (len(tight), tight.exclusions["crowd_boxes_dropped"], tight.options["crowd_boxes"]) == (4, 1, "dropped")


def test_an_unknown_crop_is_a_usage_error_that_lists_the_known_ones(root):
    with pytest.raises(UsageError, match=r"'round'.*square, tight"):
        coco_crops(root, "round")


def test_absent_images_are_dropped_with_their_boxes_and_counted(root):
    (root / "val2017/1.png").unlink()
    crops, multilabel, retrieval = coco_crops(root), coco_multilabel(root), coco_retrieval(root)
    assert [item.id for item in crops.items] == ["21", "31"]
    assert (crops.exclusions["images_absent"], crops.exclusions["boxes_of_absent_images_dropped"]) == (1, 2)
    assert ([item.id for item in multilabel.items], multilabel.exclusions["images_absent"]) == (["2", "3"], 1)
    assert ([item.id for item in retrieval.items], retrieval.exclusions["images_absent"]) == (["2", "3"], 1)


@pytest.mark.parametrize("read", [coco_crops, coco_multilabel, coco_retrieval])
def test_a_folder_without_any_of_the_images_is_unavailable(root, read):
    for path in (root / "val2017").iterdir():
        path.unlink()
    with pytest.raises(DataUnavailableError, match="none of the images"):
        read(root)


def test_annotations_without_a_usable_box_or_caption_are_an_error_not_an_empty_data_set(root):
    edit(root, INSTANCES, lambda c: c.update(annotations=[]))
    edit(root, CAPTIONS, lambda c: c.update(annotations=[]))
    for read in (coco_crops, coco_retrieval):
        with pytest.raises(DataError, match="nothing is left"):
            read(root)


def test_the_order_of_rows_in_the_files_changes_no_fingerprint(root):
    before = [read(root).fingerprint for read in (coco_crops, coco_multilabel)]
    for table in ("images", "categories", "annotations"):
        edit(root, INSTANCES, lambda c, table=table: random.Random(7).shuffle(c[table]))
    assert [read(root).fingerprint for read in (coco_crops, coco_multilabel)] == before


# --- several labels


def test_an_image_has_the_ascending_set_of_its_classes_and_none_when_it_has_no_box(root):
    change = [box(13, 1, 90), box(14, 1, 17, crowd=1)]
    edit(root, INSTANCES, lambda c: c.update(annotations=[box(12, 1, 90), box(11, 1, 1), box(21, 2, 17), *change]))
    dataset = coco_multilabel(root)
    assert [(item.id, item.labels) for item in dataset.items] == [("1", (0, 1, 2)), ("2", (1,)), ("3", ())]
    assert dataset.exclusions == {
        "images_absent": 0,
        "images_without_labels_kept": 1,
        "labels_from_crowd_boxes_only": 1,
        "links_followed": 0,
    }


def test_val2014_is_read_where_only_val2014_has_instances(tmp_path):
    root = write_root(tmp_path, "val2014", images=[image(1)], boxes=[box(5, 1, 1)])
    assert coco_crops(root).options["split"] == coco_multilabel(root).options["split"] == "val2014"
    assert coco_crops(root).name == "coco_val2014"


# --- captions


def test_captions_beyond_five_blank_and_duplicate_ones_and_images_without_are_handled_and_counted(tmp_path):
    texts = {1: ["a", "b", "c", "d", "e", "f", "g"], 2: ["a", "z", "z", "  "], 3: ["\n"], 4: []}
    captions = [caption(10 * key + n, key, text) for key, row in texts.items() for n, text in enumerate(row)]
    root = write_root(tmp_path, images=[image(n) for n in (4, 3, 2, 1)], captions=captions)
    dataset = coco_retrieval(root)
    assert [(item.id, item.captions) for item in dataset.items] == [("1", tuple("abcde")), ("2", ("a", "z", "z"))]
    assert dataset.exclusions == {
        "images_absent": 0,
        "images_without_captions_dropped": 2,
        "blank_captions_dropped": 2,
        "captions_beyond_five_dropped": 2,
        "duplicate_captions_kept": 2,
        "links_followed": 0,
    }
    assert dataset.options["split"] == "val2017"


def karpathy(number, split="test", key="cocoid", **changes):
    sentences = [{"raw": f"sentence {n} of {number}"} for n in range(6)]
    row = {"filename": f"{number}.png", "filepath": "val2014", "split": split, key: number, "sentences": sentences}
    return row | changes


@pytest.fixture
def karpathy_root(tmp_path):
    root = write_root(tmp_path / "coco", "val2014", images=[image(1), image(2), image(3)])
    write_json(root / "dataset_coco.json", {"images": [karpathy(2), karpathy(3, "restval"), karpathy(1)]})
    return root


@pytest.mark.parametrize("place", ["dataset_coco.json", "annotations/dataset_coco.json"])
def test_karpathys_test_images_are_read_with_their_first_five_sentences(karpathy_root, place):
    (karpathy_root / "dataset_coco.json").rename(karpathy_root / place)
    dataset = coco_retrieval(karpathy_root)
    assert [item.id for item in dataset.items] == ["1", "2"]
    assert dataset.items[0].captions == tuple(f"sentence {n} of 1" for n in range(5))
    assert dataset.items[0].image.open().getpixel((0, 0)) == (1, 0, 0)
    assert dataset.options["split"] == "karpathy test"
    assert dataset.exclusions["captions_beyond_five_dropped"] == 2


def test_karpathys_rows_without_cocoid_or_filepath_are_read_by_imgid_from_val2014(karpathy_root):
    row = karpathy(2, key="imgid")
    del row["filepath"]
    write_json(karpathy_root / "dataset_coco.json", {"images": [row]})
    assert [item.image.path for item in coco_retrieval(karpathy_root).items] == [karpathy_root / "val2014/2.png"]


@pytest.mark.fault("annotations that lie")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([karpathy(1, "train")], "no image whose split is 'test'"),
        ([karpathy(1), karpathy(1)], "cocoid = 1, which appears twice"),
        ([karpathy(1, sentences="x")], "image number 1 has sentences = 'x'; expected a list"),
        ([karpathy(1, sentences=[{"tokens": []}])], "a sentence lacks the key 'raw'"),
        ([karpathy(1, filepath=None)], "has filepath = None"),
        ([{"split": "test"}], "lacks the key 'imgid'"),
        ([3], "image number 1 is 3; expected an object"),
        ([karpathy(1, filepath="../..")], "leaves"),
        ({}, "has images = {}; expected a list"),
    ],
)
def test_a_malformed_split_file_is_named_with_image_and_key(karpathy_root, images, message):
    write_json(karpathy_root / "dataset_coco.json", {"images": images})
    with pytest.raises(DataError, match=r"dataset_coco\.json.*") as caught:
        coco_retrieval(karpathy_root)
    assert message in str(caught.value)


def test_a_split_file_without_val2014_says_so_and_what_is_read_without_it(karpathy_root):
    (karpathy_root / "val2014").rename(karpathy_root / "elsewhere")
    with pytest.raises(DataUnavailableError, match=r"lacks val2014/.*without that file, val2017 is read"):
        coco_retrieval(karpathy_root)


# --- bad input


@pytest.mark.parametrize(
    ("read", "missing"),
    [
        (coco_crops, "annotations/instances_val2017.json"),
        (coco_multilabel, "annotations/instances_val2017.json"),
        (coco_retrieval, "annotations/captions_val2017.json"),
        (coco_crops, "val2017/"),
        (coco_multilabel, "val2017/"),
        (coco_retrieval, "val2017/"),
    ],
)
def test_a_wrong_folder_is_unavailable_and_the_missing_part_of_the_layout_is_named(root, read, missing):
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(DataUnavailableError, match=f"lacks {missing}; expected COCO's official layout"):
        read(root)
    with pytest.raises(DataUnavailableError, match="there is no folder"):
        read(root / "nowhere")


@pytest.mark.fault("JSON and TOML made to harm")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n  {"id": 1,, }]}', "is not JSON, or cut short: .* at line 2, column 12"),
        (b'{"images": [{"id": 1', "is not JSON, or cut short: .* at line 1, column 21"),
        (b"", "is not JSON, or cut short: .* at line 1, column 1"),
        (b'{"images": "\xff"}', "is not UTF-8: byte 12 is 0xff"),
        (b"[1, 2]", r"is \[1, 2\]; expected an object"),
        (b'{"images": []}', "lacks the key"),
        (b"[" * 100_000, "is not the expected JSON: it is nested too deeply"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "is not the expected JSON: a whole number of 5,000 digits"),
    ],
    ids=["malformed", "cut off", "empty", "not UTF-8", "not an object", "no tables", "bottomless", "long number"],
)
@pytest.mark.parametrize(("read", "name"), [(coco_crops, INSTANCES), (coco_retrieval, CAPTIONS)])
def test_a_file_that_is_no_annotation_file_is_named_with_the_position(root, read, name, content, message):
    (root / "annotations" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} {message}"):
        read(root)
    assert gc.isenabled()


def test_a_byte_order_mark_is_no_error(root):
    path = root / "annotations" / INSTANCES
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(coco_crops(root)) == 4


MISSING = object()


@pytest.mark.fault("annotations that lie")
@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        (
            "annotations",
            "category_id",
            999,
            "annotation 31 has category_id = 999, which is none of the 3 ids in 'categories'",
        ),
        ("annotations", "image_id", 999, "annotation 31 has image_id = 999, which is none of the 3 ids in 'images'"),
        ("annotations", "bbox", MISSING, "annotation 31 lacks the key 'bbox'"),
        ("annotations", "bbox", [1, 2, 3], "annotation 31 has bbox = [1, 2, 3]; expected [left, top, width, height]"),
        ("annotations", "bbox", [1, 2, 3, "4"], "annotation 31 has bbox"),
        ("annotations", "bbox", [1, 2, 3, float("nan")], "annotation 31 has bbox"),
        ("annotations", "bbox", [1, 2, 3, float("inf")], "annotation 31 has bbox"),
        ("annotations", "bbox", [1, 2, 3, 10**400], "annotation 31 has bbox"),
        ("annotations", "iscrowd", "no", "annotation 31 has iscrowd = 'no'; expected 0 or 1"),
        ("annotations", "category_id", "cat", "annotation 31 has category_id = 'cat'; expected a whole number"),
        ("annotations", "id", MISSING, "annotation number 1 (without a whole id) lacks the key 'id'"),
        ("annotations", "id", 11, "annotation 11 appears twice"),
        ("images", "id", 1, "image 1 appears twice"),
        ("images", "file_name", 5, "image 3 has file_name = 5; expected a text"),
        ("images", "file_name", "\ud800.jpg", r"image 3 has file_name = '\ud800.jpg'; expected a text"),
        ("images", "width", 0, "image 3 has width = 0; expected a whole number of pixels above 0"),
        ("categories", "name", " ", "category 17 has name = ' '; expected a text that is not blank"),
        ("categories", "name", "person", "more than one category is called 'person'"),
    ],
)
def test_a_malformed_instance_row_is_named_by_file_id_and_key(root, table, key, value, message):
    def change(content):
        row = content[table][0]
        row.pop(key) if value is MISSING else row.update({key: value})

    edit(root, INSTANCES, change)
    for read in (coco_crops, coco_multilabel):
        with pytest.raises(DataError) as caught:
            read(root)
        assert message in str(caught.value)
        assert INSTANCES in str(caught.value)


@pytest.mark.fault("annotations that lie")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("caption", 5, "annotation 0 has caption = 5; expected a text"),
        ("caption", MISSING, "annotation 0 lacks the key 'caption'"),
        ("image_id", 77, "annotation 0 has image_id = 77"),
        ("id", 3, "annotation 3 appears twice"),
    ],
)
def test_a_malformed_caption_row_is_named_by_file_id_and_key(root, key, value, message):
    def change(content):
        row = content["annotations"][0]
        row.pop(key) if value is MISSING else row.update({key: value})

    edit(root, CAPTIONS, change)
    with pytest.raises(DataError) as caught:
        coco_retrieval(root)
    assert message in str(caught.value)
    assert CAPTIONS in str(caught.value)


@pytest.mark.fault("paths that leave their folder")
@pytest.mark.parametrize(
    "name", ["../../x.jpg", "/etc/hosts", "", "a\0b", "../../coco-neighbour/x.jpg", "deep/../../../x"]
)
@pytest.mark.parametrize(
    ("read", "file"), [(coco_crops, INSTANCES), (coco_multilabel, INSTANCES), (coco_retrieval, CAPTIONS)]
)
def test_a_file_name_that_leaves_the_root_is_refused_whether_or_not_something_is_there(root, read, file, name):
    edit(root, file, lambda c: c["images"][0].update(file_name=name))
    with pytest.raises(DataError, match=r"leaves .*: refused"):
        read(root)


@pytest.mark.fault("links in a folder of pictures")
def test_links_in_the_folder_are_followed_wherever_they_lead_and_counted(root, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    assert coco_crops(root).exclusions["links_followed"] == 0
    for picture in sorted((root / "val2017").iterdir()):  # as hubs, DVC and git-annex lay files out
        picture.rename(store / picture.name)
        picture.symlink_to(store / picture.name)
    assert len(coco_crops(root)) == 4
    for read in (coco_crops, coco_multilabel, coco_retrieval):
        found = read(root)
        assert found.exclusions["links_followed"] == len({item.image.path for item in found.items})


@pytest.mark.fault("links in a folder of pictures")
@pytest.mark.parametrize("target", ["nowhere", "1.png", "/dev/zero"])
def test_a_link_that_leads_to_no_file_is_an_absent_image(root, target):
    (root / "val2017/1.png").unlink()
    (root / "val2017/1.png").symlink_to(target)
    assert coco_crops(root).exclusions["images_absent"] == 1


@pytest.mark.fault("paths that leave their folder")
def test_a_name_that_leaves_the_root_behind_a_link_is_refused(root, tmp_path):
    (tmp_path / "store/inner").mkdir(parents=True)
    (root / "val2017/1.png").rename(tmp_path / "store/1.png")
    (root / "val2017/linked").symlink_to(tmp_path / "store/inner")
    edit(root, INSTANCES, lambda c: c["images"][0].update(file_name="linked/../1.png"))
    with pytest.raises(DataError, match=r"leaves .*: refused"):
        coco_crops(root)


@pytest.mark.fault("links in a folder of pictures")
def test_an_image_folder_that_is_itself_a_link_is_followed(root, tmp_path):
    (root / "val2017").rename(tmp_path / "disk")
    (root / "val2017").symlink_to(tmp_path / "disk")
    found = coco_crops(root)
    assert len(found) == 4
    assert found.exclusions["links_followed"] > 0


@pytest.mark.parametrize("name", ["no such folder/x.png", ".", "..", "x" * 5000, "1.png/x"])
def test_a_file_name_inside_the_root_that_is_no_file_is_an_absent_image(root, name):
    edit(root, INSTANCES, lambda c: c["images"][0].update(file_name=name))
    assert coco_crops(root).exclusions["images_absent"] == 1


def test_pycocotools_does_not_print(root, capsys):
    coco_crops(root)
    coco_retrieval(root)
    assert capsys.readouterr() == ("", "")


# --- the packaged miniature


@pytest.fixture(scope="module")
def mini():
    pytest.importorskip("skimage", reason="the packaged pictures come with the demo extra")
    return packaged_coco()


def test_the_miniature_reads_through_the_same_functions(mini):
    crops, tight = coco_crops(mini.root, images=mini.images), coco_crops(mini.root, "tight", images=mini.images)
    multilabel, retrieval = coco_multilabel(mini.root, mini.images), coco_retrieval(mini.root, mini.images)
    assert [len(d) for d in (crops, tight, multilabel, retrieval)] == [14, 14, 12, 12]
    assert {d.name for d in (crops, multilabel, retrieval)} == {"coco_mini"}
    assert len(crops.classes) == 80
    assert multilabel.exclusions["images_without_labels_kept"] == 5
    assert all(len(item.captions) == 5 for item in retrieval.items)
    assert len({text for item in retrieval.items for text in item.captions}) == 60


def test_the_miniatures_boxes_lie_in_pictures_of_the_stated_size(mini):
    rows = json.loads((mini.root / "annotations" / INSTANCES).read_text(encoding="utf-8"))
    sizes = {row["id"]: (row["width"], row["height"]) for row in rows["images"]}
    assert {row["id"]: mini.images[row["file_name"]].open().size for row in rows["images"]} == sizes
    for row in rows["annotations"]:
        (left, top, width, height), (right, bottom) = row["bbox"], sizes[row["image_id"]]
        assert 0 <= left < left + width <= right
        assert 0 <= top < top + height <= bottom


def test_the_miniature_ships_annotations_and_no_picture():
    files = [path for path in (fixtures() / "coco_mini").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [CAPTIONS, INSTANCES]


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailableError, match=r'scikit-image.*pip install "clipbench\[demo\]"'):
        packaged_coco()


def test_a_picture_other_than_the_pinned_one_is_unavailable(mini):
    name = next(iter(mini.images))
    with pytest.raises(DataUnavailableError, match="not the expected picture"):
        ImageRef(mini.images[name].path, "0" * 64).check()


# --- real COCO, where it lies beside the checkout


@pytest.mark.skipif(not SHARED.is_dir(), reason="no COCO sample beside the checkout")
def test_a_sample_of_real_coco_is_read_and_decoded():
    crops, tight = coco_crops(SHARED), coco_crops(SHARED, "tight")
    assert (len(crops), crops.exclusions["crowd_boxes_kept"]) == (213, 2)
    assert (len(tight), tight.exclusions["crowd_boxes_dropped"]) == (211, 2)
    for item in (crops.items[0], crops.items[-1]):
        picture = item.image.open()
        assert abs(picture.width - picture.height) <= 1
    retrieval = coco_retrieval(SHARED)
    assert (len(retrieval), sum(len(item.captions) for item in retrieval.items)) == (25, 125)
    assert len(coco_multilabel(SHARED)) == 25
