"""ROCO's readers: the study's eight and the whole split, in the published layout and flat."""

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from clipbench.data.roco import roco_split, roco_study
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import fixtures

SHARED = Path(__file__).parents[2] / "shared" / "data" / "roco_mini"
STUDY = tuple(tomllib.loads((fixtures() / "roco_study.toml").read_text(encoding="utf-8"))["ids"])


def write_folder(folder, captions, images=None):
    (folder / "images").mkdir(parents=True)
    for key in captions if images is None else images:
        Image.new("L", (8, 8)).save(folder / "images" / f"{key}.jpg")
    text = "".join(f"{key}\t{caption}\n" for key, caption in captions.items())
    (folder / "captions.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def captions():
    others = {f"ROCO_{n:05d}": f"scan {n}" for n in range(90000, 90004)}
    return others | {key: f" caption of {key}" for key in reversed(STUDY)}


@pytest.fixture(params=["train/radiology", "."], ids=["published layout", "the radiology folder itself"])
def root(request, tmp_path, captions):
    write_folder(tmp_path / "roco" / request.param, captions)
    return tmp_path / "roco"


def captions_file(root):
    return next(root.rglob("captions.txt"))


def test_the_study_is_its_eight_images_in_its_own_order_with_their_captions(root):
    dataset = roco_study(root)
    assert [item.id for item in dataset.items] == list(STUDY)
    assert len(STUDY) == 8
    assert [item.captions for item in dataset.items] == [(f"caption of {key}",) for key in STUDY]
    assert (dataset.name, dataset.options["split"]) == ("roco_study", "train/radiology")
    assert "2ec69fe" in dataset.source


def test_the_split_is_every_captioned_image_in_the_order_of_ids(root, captions):
    dataset = roco_split(root)
    assert [item.id for item in dataset.items] == sorted(captions)
    assert dataset.exclusions == {"images_absent": 0, "blank_captions_dropped": 0, "links_followed": 0}
    assert dataset.items[0].image.open().mode == "RGB"


def test_absent_images_and_blank_captions_are_dropped_and_counted(root):
    next(root.rglob("ROCO_90001.jpg")).unlink()
    with captions_file(root).open("a", encoding="utf-8") as file:
        file.write("ROCO_95000\tnever downloaded\nROCO_95001\t \n")
    dataset = roco_split(root)
    assert len(dataset) == 11
    assert dataset.exclusions == {"images_absent": 2, "blank_captions_dropped": 1, "links_followed": 0}


@pytest.mark.parametrize("lost", ["image", "caption"])
def test_a_missing_image_or_caption_of_the_study_is_named(root, lost):
    if lost == "image":
        next(root.rglob(f"{STUDY[3]}.jpg")).unlink()
    else:
        path = captions_file(root)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if STUDY[3] not in line), encoding="utf-8")
    with pytest.raises(DataUnavailableError, match=f"lacks 1 of the study's 8 images or their captions: {STUDY[3]};"):
        roco_study(root)
    assert len(roco_split(root)) == 11


@pytest.mark.parametrize("read", [roco_study, roco_split])
def test_a_wrong_folder_is_unavailable_and_the_missing_part_of_the_layout_is_named(tmp_path, captions, read):
    with pytest.raises(DataUnavailableError, match="there is no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataUnavailableError, match=r"lacks train/radiology/captions\.txt; expected ROCO's layout"):
        read(tmp_path)
    folder = write_folder(tmp_path / "train/radiology", captions)
    (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataUnavailableError, match="lacks images/; expected ROCO's layout"):
        read(tmp_path)


def test_a_folder_with_captions_but_none_of_their_images_is_unavailable(tmp_path, captions):
    write_folder(tmp_path, captions, images=())
    with pytest.raises(DataUnavailableError, match="none of the 12 images"):
        roco_split(tmp_path)


@pytest.mark.fault("annotations that lie", "paths that leave their folder")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ROCO_1 no tab here", "line 13 is 'ROCO_1 no tab here'; expected an id, a tab and a caption"),
        ("\ta caption of nothing", "line 13 is .*; expected an id"),
        (f"{STUDY[0]}\tagain", f"line 13 repeats the id '{STUDY[0]}'"),
        ("../../x\tout", "names the image '../../x.jpg', which leaves"),
        ("../captions\tout", "names the image '../captions.jpg', which leaves"),
        ("/etc/hosts\tout", "which leaves"),
    ],
)
def test_a_malformed_line_is_named_with_its_number_and_an_id_that_leaves_the_folder_is_refused(root, line, message):
    with captions_file(root).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"captions\.txt.*{message}"):
        roco_split(root)


@pytest.mark.fault("annotations that lie")
def test_captions_that_are_not_utf8_are_named_with_the_byte(root):
    captions_file(root).write_bytes(b"ROCO_1\t caf\xe9\n")
    with pytest.raises(DataError, match=r"captions\.txt is not UTF-8: byte 11 is 0xe9"):
        roco_split(root)


def test_windows_line_ends_blank_lines_and_tabs_and_line_separators_inside_captions_are_read(tmp_path):
    write_folder(tmp_path, {}, images=("a", "b"))
    (tmp_path / "captions.txt").write_bytes("a\tone\ttwo \u2028 three\r\n\r\nb\tfour\x0b\x85five\r\n".encode())
    assert [item.captions for item in roco_split(tmp_path).items] == [("one\ttwo \u2028 three",), ("four\x0b\x85five",)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ROCO sample beside the checkout")
def test_a_sample_of_real_roco_is_read_and_lacks_the_study():
    dataset = roco_split(SHARED)
    assert (len(dataset), dataset.exclusions["images_absent"]) == (12, 0)
    assert dataset.items[0].image.open().mode == "RGB"
    with pytest.raises(DataUnavailableError, match="lacks 8 of the study's 8"):
        roco_study(SHARED)
