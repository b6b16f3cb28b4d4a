"""Decoded pictures: decoded once in a session that needs them again and has the memory, and always the same pixels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset
from PIL import Image

import clipbench.data.dataset
import clipbench.paths
from clipbench import evaluate
from clipbench.data.dataset import held_bytes, kept_pictures, picture_budget_bytes, read_image
from clipbench.errors import DataError, DataUnavailableError


@pytest.fixture
def decodings(monkeypatch):
    """The names of the files that are decoded while the test runs."""
    names = []
    decode = clipbench.data.dataset._decoded
    monkeypatch.setattr(
        clipbench.data.dataset, "_decoded", lambda path, depth: names.append(path.name) or decode(path, depth)
    )
    return names


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return path


def test_a_kept_picture_is_decoded_once_and_has_the_same_pixels(path, decodings):
    expected = np.asarray(read_image(path))
    with kept_pictures(1 << 20):
        found = [np.asarray(read_image(path)) for _ in range(3)]
        assert held_bytes() == 30 * 40 * 4
    assert decodings == ["picture.png"] * 2
    for pixels in found:
        np.testing.assert_array_equal(pixels, expected)


def test_what_a_caller_does_to_its_picture_changes_no_other(path):
    with kept_pictures(1 << 20):
        before = np.asarray(read_image(path))
        read_image(path).paste((0, 0, 0), (0, 0, 40, 30))
        np.testing.assert_array_equal(np.asarray(read_image(path)), before)


def test_the_first_callers_picture_is_its_own_too(path):
    with kept_pictures(1 << 20):
        first = read_image(path)
        before = np.asarray(first).copy()
        first.paste((0, 0, 0), (0, 0, 40, 30))
        np.testing.assert_array_equal(np.asarray(read_image(path)), before)


def test_nothing_is_kept_unless_asked_for_nor_afterwards(path, decodings):
    read_image(path)
    read_image(path)
    with kept_pictures(1 << 20):
        read_image(path)
    read_image(path)
    assert decodings == ["picture.png"] * 4
    assert held_bytes() == 0


def test_what_does_not_fit_is_decoded_again_and_throws_nothing_out(path, tmp_path, decodings):
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 30)).save(other)
    with kept_pictures(30 * 40 * 4):
        for _ in range(2):
            read_image(path)
            read_image(other)
        assert held_bytes() == 30 * 40 * 4
    assert decodings == ["picture.png", "other.png", "other.png"]


def test_a_file_that_changed_is_decoded_again(path):
    with kept_pictures(1 << 20):
        read_image(path)
        Image.new("RGB", (11, 12), (1, 2, 3)).save(path)
        assert read_image(path).size == (11, 12)


def test_missing_and_broken_files_are_errors_as_before(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with kept_pictures(1 << 20):
        for _ in range(2):
            with pytest.raises(DataError):
                read_image(tmp_path / "broken.png")
            with pytest.raises(DataUnavailableError):
                read_image(tmp_path / "absent.png")


def test_many_threads_keep_one_picture_once(path):
    with kept_pictures(1 << 20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: read_image(path), range(64)))
        assert held_bytes() == 30 * 40 * 4


def test_a_session_of_several_experiments_decodes_no_file_twice(tmp_path, decodings, monkeypatch):
    dataset = colour_dataset(tmp_path)
    monkeypatch.setattr("clipbench.session.Session.dataset", lambda session, one, name: replace(dataset, name=name))
    evaluate(ColourEncoder(), ["medical", "medical_other", "natural"], device="cpu")
    assert sorted(decodings) == sorted(item.image.path.name for item in dataset.items)


def test_a_containers_limit_bounds_the_budget(tmp_path, monkeypatch):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(clipbench.paths, "_CONTAINER_MEMORY", ((limit, used),))
    unlimited = picture_budget_bytes()
    limit.write_text("max\n")
    used.write_text("60000000\n")
    assert picture_budget_bytes() > unlimited / 2
    limit.write_text("100000000\n")
    assert picture_budget_bytes() == 10_000_000
    limit.write_text("50000000\n")
    assert picture_budget_bytes() == 0
