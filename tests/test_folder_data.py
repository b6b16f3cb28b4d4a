"""Labelled folders and class sets: the rows that ship, a user's own folders, and every malformed input by name."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipbench.data.folders import ClassSet, class_folders, class_set, labelled_folder, shipped_class_sets
from clipbench.errors import DataError, DataUnavailableError, UsageError


def write_images(root, **files):
    """`folder=("a.png", ...)`: one-pixel pictures; other suffixes become text."""
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            path = root / folder / name
            if path.suffix == ".txt":
                path.write_text("no picture")
            else:
                Image.new("RGB", (1, 1)).save(path)
    return root


def test_cifar10_is_labelled_in_its_own_order_whatever_the_folders_on_disk(tmp_path):
    root = write_images(tmp_path, truck=["b.png", "a.png"], airplane=["c.JPEG"])
    dataset = labelled_folder("cifar10", root)
    assert [(item.id, item.labels) for item in dataset.items] == [
        ("airplane/c.JPEG", (0,)),
        ("truck/a.png", (9,)),
        ("truck/b.png", (9,)),
    ]
    assert len(dataset.classes) == 10
    assert dataset.exclusions["classes_without_folder"] == 8
    assert "prompts.md" in dataset.source


@pytest.mark.parametrize("folder", ["aquarium_fish", "aquarium fish", "Aquarium-Fish"])
def test_a_folder_may_spell_its_class_with_other_case_underscores_hyphens_or_spaces(tmp_path, folder):
    dataset = labelled_folder("cifar100", write_images(tmp_path, **{folder: ["a.png"]}))
    assert dataset.classes[dataset.items[0].labels[0]] == "aquarium fish"


def test_what_is_no_image_and_empty_classes_are_left_alone_and_counted(tmp_path):
    root = write_images(tmp_path, cat=["a.png", "notes.txt", ".hidden.txt"], dog=[], bird=["list.txt"], frog=["b.webp"])
    write_images(root / "cat", inner=["c.png"])
    (root / "README").write_text("beside")
    (root / ".git").mkdir()
    dataset = labelled_folder("cifar10", root)
    assert [item.id for item in dataset.items] == ["cat/a.png", "frog/b.webp"]
    assert dataset.exclusions == {
        "other_files_ignored": 3,
        "inner_folders_ignored": 1,
        "empty_class_folders": 2,
        "classes_without_folder": 6,
        "links_followed": 0,
    }


def test_an_unknown_name_takes_its_classes_from_the_folders(tmp_path):
    root = write_images(tmp_path, tabby_cat=["a.png"], dog=["b.png"])
    dataset = labelled_folder("mine", root)
    assert dataset.classes == ("dog", "tabby cat")
    assert class_set("mine", root).templates == ("a photo of a {}.",)
    assert (dataset.name, dataset.exclusions["classes_without_folder"]) == ("mine", 0)


def test_a_class_file_in_the_root_names_classes_and_templates(tmp_path):
    root = write_images(tmp_path, n01=["a.png"], n02=["b.png"])
    (root / "classes.toml").write_text(
        'folders = ["n02", "n01", "n03"]\nclasses = ["dog", "cat", "owl"]\ntemplates = ["a sketch of a {}"]\nsource = "me"'
    )
    dataset = labelled_folder("mine", root)
    assert [(item.id, item.labels) for item in dataset.items] == [("n02/b.png", (0,)), ("n01/a.png", (1,))]
    assert (dataset.classes, dataset.source) == (("dog", "cat", "owl"), "me")
    assert dataset.exclusions == {
        "other_files_ignored": 0,
        "inner_folders_ignored": 0,
        "empty_class_folders": 0,
        "classes_without_folder": 1,
        "links_followed": 0,
    }
    assert class_set("mine", root).templates == ("a sketch of a {}",)


def test_a_class_file_with_templates_only_leaves_the_classes_to_the_folders(tmp_path):
    root = write_images(tmp_path, red_fox=["a.png"])
    (root / "classes.toml").write_text('templates = ["{}", "a {} at night"]')
    assert class_set("mine", root).classes == ("red fox",)
    assert class_set("mine", root).templates == ("{}", "a {} at night")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = [", "is not valid TOML"),
        ('klasses = ["a"]', "unknown key 'klasses'; did you mean classes"),
        ('classes = "cat"', "classes = 'cat'; expected a list of texts"),
        ("classes = []", "classes = []; expected a list of texts"),
        ('classes = ["cat", " "]', "none of them blank"),
        ('classes = ["cat", "dog"]\nfolders = ["cat"]', "has 2 classes but 1 folders"),
        ('folders = ["cat", "cat"]', "names a class folder twice"),
        ('templates = ["a photo"]', "has the template 'a photo'; expected one"),
        ('templates = ["{} and {}"]', "has the template"),
        ('templates = ["{} {name}"]', "has the template"),
    ],
)
def test_a_malformed_class_file_is_named_with_the_key(tmp_path, text, message):
    root = write_images(tmp_path, cat=["a.png"])
    (root / "classes.toml").write_text(text)
    with pytest.raises(DataError, match=r"classes\.toml") as caught:
        labelled_folder("mine", root)
    assert message in str(caught.value)


def test_a_class_file_that_a_shipped_name_would_overrule_is_an_error(tmp_path):
    root = write_images(tmp_path, cat=["a.png"])
    (root / "classes.toml").write_text('classes = ["cat"]')
    with pytest.raises(DataError, match="would not be read"):
        labelled_folder("cifar10", root)


def test_a_folder_that_is_no_class_is_named_with_the_closest_class(tmp_path):
    root = write_images(tmp_path, airplan=["a.png"])
    with pytest.raises(DataError, match=r"airplan is none of the 10 classes of cifar10; expected .* such as airplane"):
        labelled_folder("cifar10", root)


def test_two_folders_of_one_class_are_an_error(tmp_path):
    root = write_images(tmp_path, maple_tree=["a.png"], **{"maple tree": ["a.png"]})
    with pytest.raises(DataError, match="maple tree and maple_tree, which are the same class"):
        labelled_folder("cifar100", root)


def test_no_folder_no_class_folder_and_no_image_are_unavailable(tmp_path):
    with pytest.raises(DataUnavailableError, match="there is no folder"):
        labelled_folder("cifar10", tmp_path / "nowhere")
    with pytest.raises(DataUnavailableError, match="holds no class folder"):
        labelled_folder("cifar10", tmp_path)
    with pytest.raises(DataUnavailableError, match=r"no class folder of 1 .* holds an image; expected .*\.png"):
        labelled_folder("cifar10", write_images(tmp_path, cat=["a.txt"]))


def test_an_unknown_name_without_a_folder_lists_the_names_that_ship():
    with pytest.raises(UsageError, match=r"'cifar11'; expected one of cifar10, cifar100, imagenet1k"):
        class_set("cifar11")


@pytest.mark.fault("paths that leave their folder")
def test_a_name_cannot_reach_another_file_than_the_rows_that_ship():
    with pytest.raises(UsageError, match="no class names ship"):
        class_set("../roco_study")


@pytest.mark.parametrize(
    ("name", "n", "templates"), [("cifar10", 10, 18), ("cifar100", 100, 18), ("imagenet1k", 1000, 80)]
)
def test_a_row_that_ships_is_whole(name, n, templates):
    if name == "imagenet1k":
        pytest.importorskip("open_clip", reason="ImageNet's texts come from open_clip")
    row = class_set(name)
    assert isinstance(row, ClassSet)
    assert len(row.classes) == len(row.folders) == len(set(row.folders)) == n
    assert len(set(row.templates)) == templates
    assert row.source
    assert name in shipped_class_sets()


def test_imagenet_folders_are_wordnet_ids_in_sorted_order_which_is_the_order_of_its_classes():
    pytest.importorskip("open_clip", reason="ImageNet's texts come from open_clip")
    row = class_set("imagenet1k")
    assert list(row.folders) == sorted(row.folders)
    pairs = dict(zip(row.folders, row.classes, strict=True))
    assert (pairs["n01440764"], pairs["n02123045"], pairs["n15075141"]) == ("tench", "tabby cat", "toilet paper")
    assert row.templates[0] == "a bad photo of a {}."


def test_cifar100_speaks_with_spaces_where_its_folders_have_underscores():
    row = class_set("cifar100")
    assert row.classes == tuple(folder.replace("_", " ") for folder in row.folders)
    assert row.classes[58] == "pickup truck"


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
def test_labels_point_at_the_class_of_the_folder(names):
    with tempfile.TemporaryDirectory() as folder:
        root = write_images(Path(folder), **{name: ["x.png"] for name in names})
        dataset = labelled_folder("mine", root)
        assert class_folders(root) == tuple(sorted(names))
        assert [f"{dataset.classes[item.labels[0]]}/x.png" for item in dataset.items] == [i.id for i in dataset.items]
