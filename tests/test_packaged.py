"""The packaged data sets: what the three manifests hold, and what a manifest or an installation must not do."""

import hashlib
import importlib.util
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from clipbench.data import packaged
from clipbench.data.dicom import read_dicom
from clipbench.data.packaged import packaged_dataset
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import fixtures

NAMES = ("natural", "medical", "medical_other")
MODULES = ("skimage", "pydicom", "data_store")


def manifest(name):
    return tomllib.loads((fixtures() / f"{name}.toml").read_text(encoding="utf-8"))


@pytest.fixture
def packages():
    for module in MODULES:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (the demo extra)")


@pytest.mark.parametrize("name", NAMES)
def test_packaged_set_has_eight_distinct_pictures_with_captions(packages, name):
    dataset = packaged_dataset(name)
    assert len(dataset) == 8
    assert len({item.image.sha256 for item in dataset.items}) == 8
    assert len({item.captions for item in dataset.items}) == 8
    assert all(len(item.captions) == 1 for item in dataset.items)
    assert dataset.prompts == ("This is {caption}",)


def test_natural_pictures_are_in_the_order_of_the_published_matrices(packages):
    order = [item.id for item in packaged_dataset("natural").items]
    published = tomllib.loads((fixtures() / "published" / "natural_similarity.toml").read_text(encoding="utf-8"))
    assert order == ["page", "chelsea", "astronaut", "rocket", "motorcycle_right", "camera", "horse", "coffee"]
    assert [matrix["names"] for matrix in published["matrix"]].count(order) >= 4
    assert all(sorted(matrix["names"]) == sorted(order) for matrix in published["matrix"])


def test_medical_sets_share_neither_id_nor_picture_nor_caption():
    first, other = manifest("medical")["item"], manifest("medical_other")["item"]
    for key in ("id", "sha256", "caption"):
        assert not {row[key] for row in first} & {row[key] for row in other}


@pytest.mark.parametrize("name", ["medical", "medical_other"])
def test_medical_set_spans_several_modalities(name):
    assert len({row["modality"] for row in manifest(name)["item"]}) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_opens_as_rgb_with_content(packages, name):
    for item in packaged_dataset(name).items:
        image = item.image.open()
        assert image.mode == "RGB", item.id
        assert np.asarray(image).std() > 5, item.id


@pytest.mark.parametrize("item_id", ["chest_xray", "tibia_xray"])
def test_x_rays_are_stored_inverted_and_shown_with_bright_bone(packages, item_id):
    pydicom = pytest.importorskip("pydicom")
    items = {item.id: item for name in NAMES[1:] for item in packaged_dataset(name).items}
    path = items[item_id].image.path
    stored = pydicom.dcmread(path).pixel_array.astype(float)
    shown = np.asarray(read_dicom(path).convert("L"), dtype=float)
    assert np.corrcoef(stored.ravel(), shown.ravel())[0, 1] < -0.8


def test_pixels_of_the_transesophageal_picture_are_made_square(packages):
    items = {item.id: item for item in packaged_dataset("medical_other").items}
    assert items["transesophageal_doppler"].image.open().size == (256, 160)


def test_perfusion_map_is_in_colour(packages):
    items = {item.id: item for item in packaged_dataset("medical_other").items}
    pixels = np.asarray(items["brain_perfusion_ct"].image.open()).astype(int)
    assert (np.ptp(pixels, axis=2) > 50).mean() > 0.1


def test_pictures_are_found_without_importing_their_package(packages, pytester):
    code = (
        "import sys; from clipbench.data.packaged import packaged_dataset; packaged_dataset('medical');"
        "sys.exit(any(name in sys.modules for name in ('skimage', 'pydicom', 'data_store', 'torch')))"
    )
    assert pytester.run(sys.executable, "-c", code).ret == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fixtures folder of our own and an installed package `stand_in` with one picture: write(text) makes a.toml."""
    module = tmp_path / "site" / "stand_in"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('a packaged data set imports nothing')")
    Image.new("RGB", (4, 4), "red").save(module / "red.png")
    monkeypatch.syspath_prepend(module.parent)
    monkeypatch.setattr(packaged, "fixtures", lambda: tmp_path)
    return tmp_path


def rows(folder, **changes):
    digest = hashlib.sha256((folder / "site" / "stand_in" / "red.png").read_bytes()).hexdigest()
    row = {"id": "red", "package": "stand-in", "module": "stand_in", "file": "red.png", "sha256": digest}
    return {**row, "caption": "a red square", "source": "made here", **changes}


def write(folder, row, top=(), extra=""):
    keys = {"name": "a", "source": "made here", "licence": "none", "prompt": "This is {caption}", **dict(top)}
    lines = [f"{key} = {value!r}" for key, value in keys.items() if value is not None]
    lines += ['versions = { stand-in = "2.0" }', extra, "[[item]]"]
    lines += [f"{key} = {value!r}" for key, value in row.items() if value is not None]
    (folder / "a.toml").write_text("\n".join(lines))


def test_manifest_becomes_a_data_set(folder):
    write(folder, rows(folder))
    dataset = packaged_dataset("a")
    assert (dataset.name, dataset.source, dataset.items[0].captions) == ("a", "made here", ("a red square",))
    assert dataset.items[0].image.open().getpixel((0, 0)) == (255, 0, 0)


def test_missing_package_names_it_and_the_install_command(folder):
    write(folder, rows(folder, module="no_such_module"))
    with pytest.raises(DataUnavailableError, match=r'stand-in .*not installed.*pip install "clipbench\[demo\]"'):
        packaged_dataset("a")


def test_other_picture_than_the_pinned_one_names_the_version_to_install(folder):
    write(folder, rows(folder, sha256="0" * 64))
    with pytest.raises(DataUnavailableError, match=r'red\.png.*pip install "stand-in==2\.0"'):
        packaged_dataset("a")


def test_picture_that_the_installed_package_lacks_names_the_version_to_install(folder):
    write(folder, rows(folder, file="blue.png"))
    with pytest.raises(DataUnavailableError, match=r'blue\.png.*pip install "stand-in==2\.0"'):
        packaged_dataset("a")


@pytest.mark.parametrize("key", ["id", "package", "module", "file", "sha256", "caption", "source"])
def test_missing_item_key_is_named(folder, key):
    write(folder, rows(folder, **{key: None}))
    with pytest.raises(DataError, match=rf"item 1 .*the key '{key}' is missing"):
        packaged_dataset("a")


@pytest.mark.parametrize("key", ["name", "source", "licence", "prompt"])
def test_missing_top_key_is_named(folder, key):
    write(folder, rows(folder), top={key: None})
    with pytest.raises(DataError, match=rf"a\.toml: the key '{key}' is missing"):
        packaged_dataset("a")


def test_unknown_keys_are_named_with_the_likeliest(folder):
    write(folder, rows(folder, captoin="x"))
    with pytest.raises(DataError, match=r"item 1 \(red\): unknown key 'captoin'; did you mean caption"):
        packaged_dataset("a")
    write(folder, rows(folder), extra="promt = 'x'")
    with pytest.raises(DataError, match=r"unknown key 'promt'; did you mean prompt"):
        packaged_dataset("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "caption = ' '; expected a text"),
        ({"caption": 3}, "caption = 3; expected a text"),
    ],
)
def test_malformed_item_is_named(folder, changes, message):
    write(folder, rows(folder, **changes))
    with pytest.raises(DataError, match=f"item 1 .*{message}"):
        packaged_dataset("a")


def test_versions_that_are_no_table_of_texts_are_refused(folder):
    write(folder, rows(folder))
    path = folder / "a.toml"
    path.write_text(path.read_text().replace('"2.0"', "2.0"))
    with pytest.raises(DataError, match=r"versions = .*expected a table of texts"):
        packaged_dataset("a")


def test_absent_and_broken_manifests_are_named(folder):
    with pytest.raises(DataError, match=r"no packaged data set 'a'.*a\.toml"):
        packaged_dataset("a")
    (folder / "a.toml").write_text("name = ")
    with pytest.raises(DataError, match=r"a\.toml is not valid TOML"):
        packaged_dataset("a")
