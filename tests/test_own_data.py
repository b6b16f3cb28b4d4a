"""`--dataset NAME=PATH`: each shape is understood, and what is malformed is named with its file and line."""

import csv
import json
import tarfile

import pytest
from fakes import ColourEncoder, custom, load, measure
from PIL import Image

from clipbench.data.dataset import DataOptions, Dataset, ImageRef, Item, limited
from clipbench.data.folders import class_set_of
from clipbench.data.own import look
from clipbench.errors import ClipbenchError, DataError, UsageError
from clipbench.options import Options

COLOURS = dict(zip(ColourEncoder.names, ColourEncoder.colours, strict=True))


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), COLOURS[colour]).save(path)
    return path


def row(colour, **more):
    return {"image": f"pictures/{colour}.png", "texts": [f"a {colour} one"], "labels": [colour], **more}


@pytest.fixture
def folder(tmp_path):
    for colour in COLOURS:
        paint(tmp_path / "own" / "pictures" / f"{colour}.png", colour)
    return tmp_path / "own"


@pytest.fixture
def listed(folder):
    """Write a list of rows, or of lines as they are, and return its folder."""

    def write(*rows):
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


def test_a_list_of_pictures_is_classified_and_searched_by_what_it_says(listed):
    root = listed(*(row(c, group="warm" if c == "red" else "cold", language="en") for c in COLOURS))
    assert sorted(look("own", root)) == ["retrieval", "zero_shot"]
    result = measure("zero_shot", custom(ColourEncoder()), load("zero_shot", dataset={"own": root}))
    assert result.scores["acc1"].value == 1.0
    assert result.protocol.classes == ("blue", "green", "red", "white")
    assert set(result.answers["images"].slices) == {"warm", "cold", "language en"}
    found = measure("retrieval", custom(ColourEncoder()), load("retrieval", dataset={"own": root}))
    assert found.key == ("retrieval", "fake", "own")
    assert found.scores["image_retrieval_recall@1"].value == 1.0
    assert len(found.answers["text_to_image"].slices["cold"]) == 3


def test_each_caption_may_have_a_language_of_its_own(listed):
    texts = [{**row(c, language=["en", "de"]), "texts": [f"a {c} one", f"ein {c}"]} for c in COLOURS]
    result = measure("retrieval", custom(ColourEncoder()), load("retrieval", dataset={"own": listed(*texts)}))
    assert {name: len(of) for name, of in result.answers["text_to_image"].slices.items()} == {
        "language en": 4,
        "language de": 4,
    }
    assert result.answers["image_to_text"].slices == {}


def test_csv_says_the_same_with_lists_as_json(folder):
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption", "label", "must_pass", "note"])
        writer.writerow(["pictures/red.png", '["a red one", "red, really"]', "red", "true", "x"])
        writer.writerow(["pictures/blue.png", "a blue one", "blue", "", ""])
    first, second = load("retrieval", dataset={"own": folder}).items
    assert (first.captions, first.must_pass) == (("a red one", "red, really"), True)
    assert (second.captions, second.must_pass) == (("a blue one",), False)


def test_several_labels_make_it_a_multi_label_data_set(listed):
    root = listed(row("red", labels=["red", "blue"]), row("blue"))
    assert sorted(look("own", root)) == ["multilabel", "retrieval"]
    result = measure("multilabel", custom(ColourEncoder()), load("multilabel", dataset={"own": root}))
    assert result.scores["mean_average_precision"].n == 2


def test_labels_of_a_list_may_have_other_names_in_classes_toml(listed):
    root = listed(row("red", labels="c1"), row("blue", labels="c2"))
    (root / "classes.toml").write_text(
        'folders = ["c2", "c1"]\nclasses = ["blue sky", "red earth"]\ntemplates = ["{}!"]\n'
    )
    dataset = load("zero_shot", dataset={"own": root})
    assert (dataset.classes, dataset.prompts) == (("blue sky", "red earth"), ("{}!",))
    assert [item.labels for item in dataset.items] == [(1,), (0,)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"image": ', r"metadata\.jsonl:2 is not JSON, or cut short"),
        ('["x"]', r"metadata\.jsonl:2 is .*expected an object"),
        ({"image": "pictures/red.png"}, r":2 has neither `texts` nor `labels`"),
        ({"texts": ["x"]}, r":2 has no `image`"),
        (row("red", must_pas=True), r":2 has the key 'must_pas'; did you mean must_pass\?"),
        (row("red", caption="x"), r":2 says texts twice"),
        (row("red", texts=["x", " "]), r":2 has texts = .*none of them blank"),
        (row("red", group=["a", "b"]), r":2 has group = .*expected one text"),
        (row("red", language=["en", "de"]), r":2 has 2 languages for 1 texts"),
        ({**row("red"), "must_pass": "maybe"}, r":2 has must_pass = 'maybe'; expected true or false"),
        (row("blue"), r":2 repeats the id 'pictures/blue\.png' of .*metadata\.jsonl:1; give each its own `id`"),
        (row("red", image="pictures/absent.png"), r":2 names the picture 'pictures/absent\.png', which is not in"),
        (row("red", image="../../secret.png"), "which leaves"),
        (row("red", image="/etc/passwd"), "which leaves"),
        (row("red", texts=["\ud800"]), r":2 has texts"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named_and_is_a_usage_error(listed, bad, message):
    root = listed(row("blue"), bad)
    with pytest.raises(DataError, match=message):
        look("own", root)
    with pytest.raises(UsageError, match=message):
        Options.from_kwargs(dataset={"own": root})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,texts\na.png\n", r"metadata\.csv:2 has 1 columns, and the first line names 2"),
        ('image,texts\na.png,"["x"\n', r"metadata\.csv:2 is no CSV"),
        ("image,texts\n", "holds no item"),
    ],
)
def test_csv_that_cannot_be_read_is_named_with_its_line(folder, text, message):
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        look("own", folder)


def test_what_is_not_understood_is_refused_with_what_lies_there(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "rows.npy").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"it holds 1 folders without images \(train\), 1 files of \.npy; expected meta"
    ):
        Options.from_kwargs(dataset={"x": tmp_path})
    with pytest.raises(UsageError, match=r"--dataset x=.*nowhere: no such folder"):
        Options.from_kwargs(dataset={"x": tmp_path / "nowhere"})
    with pytest.raises(UsageError, match=r"a file \.npy; expected"):
        Options.from_kwargs(dataset={"x": tmp_path / "rows.npy"})
    for option in ("coco", "roco"):
        with pytest.raises(UsageError, match=f"--{option} .*expected"):
            Options.from_kwargs(**{option: tmp_path})
    with pytest.raises(UsageError, match=r"no class folder of 1 in .* holds an image"):
        Options.from_kwargs(zero_shot={"x": tmp_path})


def test_class_folders_are_found_and_one_name_is_one_data_set(folder, tmp_path):
    for colour in COLOURS:
        paint(tmp_path / "classes" / colour / "0.png", colour)
    options = Options.from_kwargs(dataset={"colours": tmp_path / "classes"})
    assert options.datasets_of("zero_shot") == ["colours"]
    with pytest.raises(UsageError, match="--zero-shot and --dataset are both given colours="):
        Options.from_kwargs(dataset={"colours": tmp_path / "classes"}, zero_shot={"colours": tmp_path / "classes"})


@pytest.mark.parametrize("name", ["imagenet-r", "my_photos"])
def test_folders_called_by_wordnet_ids_get_imagenet_s_names(tmp_path, name):
    for wnid in ("n01443537", "n01440764"):
        paint(tmp_path / "wn" / wnid / "0.png", "red")
    dataset = load("zero_shot", dataset={name: tmp_path / "wn"})
    assert dataset.classes == ("tench", "goldfish")
    assert len(dataset.prompts) == 80
    assert load("zero_shot", zero_shot={name: tmp_path / "wn"}).classes == ("tench", "goldfish")


def test_imagenet_s_other_validation_sets_share_all_of_its_classes(tmp_path):
    paint(tmp_path / "wn" / "n01443537" / "0.png", "red")
    assert len(load("zero_shot", dataset={"imagenet-sketch": tmp_path / "wn"}).classes) == 1000
    paint(tmp_path / "v2" / "1" / "0.png", "red")
    paint(tmp_path / "v2" / "10" / "0.png", "red")
    dataset = load("zero_shot", dataset={"imagenetv2": tmp_path / "v2"})
    assert [item.labels[0] for item in dataset.items] == [1, 10]
    assert dataset.classes[1] == "goldfish"
    with pytest.raises(DataError, match=r"'n99999999' is none of it; name the classes in a classes\.toml"):
        class_set_of("x", tmp_path, ("n01443537", "n99999999"))


def coco_file(path, captions):
    names = dict(enumerate(COLOURS))
    images = [{"id": k, "file_name": f"{c}.png", "width": 16, "height": 12} for k, c in names.items()]
    content = {"images": images}
    if captions:
        content["annotations"] = [{"id": k, "image_id": k, "caption": f"a {c} one"} for k, c in names.items()]
    else:
        content["categories"] = [{"id": k, "name": c} for k, c in names.items()]
        box = {"bbox": [2, 2, 5, 5], "iscrowd": 0}
        content["annotations"] = [{"id": k, "image_id": k, "category_id": k, **box} for k in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_coco_files_anywhere_are_read_by_what_they_hold(folder):
    captions = coco_file(folder / "my.json", True)
    (folder / "pictures").rename(folder / "images")
    assert load("retrieval", dataset={"own": captions}).items[0].captions == ("a red one",)
    assert load("retrieval", dataset={"own": folder}).name == "own"
    captions.unlink()
    coco_file(folder / "annotations" / "instances_mine.json", False)
    coco_file(folder / "annotations" / "captions_mine.json", True)
    assert sorted(look("own", folder)) == ["retrieval", "zero_shot"]
    dataset = load("zero_shot", dataset={"own": folder})
    assert (len(dataset), dataset.classes[0], dataset.items[0].image.crop is None) == (4, "red", False)
    coco_file(folder / "annotations" / "captions_other.json", True)
    with pytest.raises(
        DataError, match=r"2 files of captions \(captions_mine\.json, captions_other\.json\); give the one"
    ):
        look("own", folder)


def test_a_json_file_of_another_kind_is_refused_with_its_keys(tmp_path):
    (tmp_path / "x.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"is not COCO's: an object with lists of images"):
        look("x", tmp_path / "x.json")


@pytest.fixture
def shards(tmp_path, monkeypatch, folder):
    """Write shards as CLIP_benchmark publishes them, by the package that everybody writes them with."""
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(retrieval=False):
        split = tmp_path / "wds" / "test"
        split.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate((list(COLOURS)[:2], list(COLOURS)[2:])):
            with webdataset.TarWriter(str(split / f"{number}.tar")) as sink:
                for colour in part:
                    picture = (folder / "pictures" / f"{colour}.png").read_bytes()
                    label = (
                        {"txt": f"a {colour} one\nso {colour}"} if retrieval else {"cls": list(COLOURS).index(colour)}
                    )
                    sink.write({"__key__": f"s{list(COLOURS).index(colour)}", "png": picture, **label})
        (split / "nshards.txt").write_text("2\n")
        (split / "sizes.json").write_text('{"0.tar": 2, "1.tar": 2}')
        root = split.parent
        if retrieval:
            (root / "dataset_type.txt").write_text("retrieval")
        else:
            (root / "classnames.txt").write_text("\n".join(COLOURS))
            (root / "zeroshot_classification_templates.txt").write_text("a {c} picture\nso {c}\n")
        return root

    return write


def test_shards_are_read_with_their_own_classes_and_templates(shards):
    dataset = load("zero_shot", dataset={"wds": shards()})
    assert (dataset.classes, dataset.prompts) == (tuple(COLOURS), ("a {} picture", "so {}"))
    assert [item.labels for item in dataset.items] == [(0,), (1,), (2,), (3,)]
    assert measure("zero_shot", custom(ColourEncoder()), dataset).scores["acc1"].value == 1.0


def test_shards_of_captions_are_searched(shards):
    dataset = load("retrieval", dataset={"wds": shards(retrieval=True)})
    assert dataset.items[0].captions == ("a red one", "so red")
    assert len({item.id for item in dataset.items}) == 4


def test_shards_that_lack_something_say_what(shards):
    root = shards()
    (root / "test" / "1.tar").rename(root / "test" / "kept")
    with pytest.raises(DataError, match=r"nshards\.txt says 2 shards, and 1 are there \(1\.tar missing\)"):
        look("wds", root)
    (root / "test" / "kept").rename(root / "test" / "1.tar")
    (root / "test" / "sizes.json").write_text('{"0.tar": 3}')
    with pytest.raises(DataError, match=r"0\.tar holds 2 samples, and sizes\.json says 3"):
        look("wds", root)
    (root / "test" / "sizes.json").unlink()
    (root / "test" / "count.txt").write_text("5")
    with pytest.raises(DataError, match=r"holds 4 samples, and count\.txt says 5"):
        look("wds", root)


def test_shards_without_class_names_say_where_they_go(shards):
    root = shards()
    (root / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"has labels up to 3 and no classnames\.txt; put the names there"):
        load("zero_shot", dataset={"wds": root})


@pytest.mark.parametrize("cut", ["in a picture", "between samples", "in the end"])
def test_a_shard_that_ends_early_is_named(shards, cut):
    root = shards()
    path = root / "test" / "1.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    size = {
        "in a picture": last.offset_data + 1,
        "between samples": last.offset,
        "in the end": len(content.rstrip(b"\0")),
    }
    path.write_bytes(content[: size[cut]])
    with pytest.raises(DataError, match=r"1\.tar ends early|1\.tar is no tar, or damaged"):
        look("wds", root)


@pytest.mark.fault("paths that leave their folder")
def test_a_shard_whose_names_are_paths_writes_nowhere_else(shards, tmp_path):
    root = shards()
    picture = next((tmp_path / "own" / "pictures").glob("*.png"))
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for name, file in (("../../evil.png", picture), ("../../evil.cls", root / "label")):
            (root / "label").write_text("1")
            tar.add(file, name)
    (root / "test" / "sizes.json").unlink()
    dataset = load("zero_shot", dataset={"wds": root})
    assert not (tmp_path / "evil.png").exists()
    assert all((tmp_path / "cache") in item.image.path.parents for item in dataset.items)


@pytest.mark.fault("a user without name or home")
def test_without_a_home_folder_shards_name_the_way_out(shards, homeless, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(ClipbenchError, match=r"there is no place for the user's cache: .*set XDG_CACHE_HOME"):
        load("zero_shot", dataset={"wds": shards()})


def test_a_limit_takes_the_same_items_whatever_their_order_and_stands_in_the_protocol(folder):
    refs = ImageRef(folder / "pictures" / "red.png")
    items = tuple(Item(str(k), refs, labels=(k % 3,)) for k in range(50))
    whole, back = Dataset("x", items, "made", ("a", "b", "c")), Dataset("x", items[::-1], "made", ("a", "b", "c"))
    ten, again = (limited(one, DataOptions(limit=10)) for one in (whole, back))
    assert {i.id for i in ten.items} == {i.id for i in again.items}
    assert {i.id for i in ten.items} <= {i.id for i in limited(whole, DataOptions(limit=20)).items}
    assert (len(ten), ten.options, ten.classes) == (10, {"limit": 10}, whole.classes)
    assert limited(whole, DataOptions(limit=50)) is whole
    with pytest.raises(UsageError, match="--limit 1: expected 2 or more"):
        Options.from_kwargs(limit=1)


def test_errors_about_data_are_one_line(listed):
    root = listed(row("red", id="x\n::error::y"), row("blue", id="x\n::error::y"))
    with pytest.raises(ClipbenchError) as caught:
        look("own", root)
    assert "\n" not in str(caught.value)
