"""Evidence per item: sketches that keep distances and are the same everywhere, hashes of contents, lengths before normalising."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipbench.data.dataset import ImageRef
from clipbench.embed.embedder import Embedder
from clipbench.embed.evidence import PROJECTIONS, STEP, hash_pixels, hash_text, signs, sketch
from clipbench.models.device import Resources
from clipbench.models.encoder import unit_rows

DIM = 64
FIXED = unit_rows(np.arange(1, 2 * DIM + 1, dtype=np.float64).reshape(2, DIM) % 7 - 3)
PINNED = [
    [-3584, 1536, -4608, 2048, 0, -3072, -4608, -512, 2560, -10752, -1024, 1024, 4096, -8192, 4096, 512],
    [-3348, 4378, -773, 773, -4378, -3863, 4893, 1803, 4378, 2833, 5408, -258, 258, -1288, 773, -773],
]


def test_the_sketch_of_a_fixed_row_is_what_it_always_was():
    assert sketch(FIXED).tolist() == PINNED


def test_another_process_gives_the_same_sketch():
    code = (
        "import numpy as np; from clipbench.embed.evidence import sketch; from clipbench.models.encoder import unit_rows; "
        f"print(sketch(unit_rows(np.arange(1, {2 * DIM + 1}, dtype=np.float64).reshape(2, {DIM}) % 7 - 3)).tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == str(PINNED)


@pytest.mark.parametrize("dim", [32, 512, 1024])
def test_the_distance_of_two_sketches_is_that_of_their_rows_within_its_standard_deviation(dim):
    rng = np.random.default_rng(0)
    one = rng.standard_normal((4000, dim))
    other = one + rng.choice([0.05, 0.3, 1.0, 5.0], (4000, 1)) * rng.standard_normal((4000, dim))
    ratio = np.linalg.norm(apart(sketch(unit_rows(one)), sketch(unit_rows(other))) * STEP, axis=1)
    ratio /= np.linalg.norm(apart(unit_rows(one), unit_rows(other)), axis=1)
    assert np.sqrt((ratio**2).mean()) == pytest.approx(1, abs=0.02)
    assert ratio.std() == pytest.approx(0.18, abs=0.02)
    assert 0.3 < ratio.min() < ratio.max() < 1.9


def apart(one, other):
    return one.astype(np.float64) - other


@given(st.integers(0, 1000), st.integers(2, 40))
def test_a_sketch_is_linear_but_for_its_steps_and_does_not_depend_on_the_other_rows(seed, n):
    rows = unit_rows(np.random.default_rng(seed).standard_normal((n, DIM)))
    found = sketch(rows)
    assert (found.shape, found.dtype) == ((n, PROJECTIONS), np.int16)
    np.testing.assert_array_equal(found[: n // 2], sketch(rows[: n // 2]))
    np.testing.assert_allclose(found * STEP, rows.astype(np.float64) @ signs(DIM) / 4, atol=STEP / 2 + 1e-12)


def test_the_signs_are_half_of_each_kind_and_those_of_two_dims_have_nothing_to_do_with_each_other():
    assert set(np.unique(signs(512))) == {-1.0, 1.0}
    assert abs(signs(512).mean()) < 0.05
    assert abs((signs(512)[:256] == signs(256)).mean() - 0.5) < 0.05


def test_a_sketch_that_does_not_fit_is_cut_and_does_not_wrap_around():
    row = signs(DIM)[:, :1].T / np.sqrt(DIM)  # all of the row in one projection: 8 / 4 = 2 = 32,768 steps
    assert sketch(row)[0, 0] == 32767
    assert sketch(-row)[0, 0] == -32768


@pytest.fixture
def colours(tmp_path):
    return colour_dataset(tmp_path)


def images(dataset):
    return Embedder(custom(ColourEncoder()), Resources()).images(dataset.items).evidence


def test_lengths_are_those_of_the_rows_before_they_are_normalised(colours):
    found = images(colours)
    raw = ColourEncoder().encode_images([item.image.open() for item in colours.items])
    np.testing.assert_allclose(found.lengths, np.linalg.norm(raw, axis=1), rtol=1e-6)
    assert found.dim == 3
    np.testing.assert_array_equal(found.sketches, sketch(unit_rows(raw)))


def test_a_file_that_was_written_anew_with_the_same_pixels_changes_its_content_alone(colours, tmp_path):
    before = images(colours)
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.png", compress_level=0)
    after = images(colours)
    assert (before.contents != after.contents).tolist() == [True, False, False, False]
    np.testing.assert_array_equal(before.pixels, after.pixels)


def test_another_pixel_changes_both_hashes(colours, tmp_path):
    before = images(colours)
    picture = Image.open(tmp_path / "green.png")
    picture.putpixel((3, 4), (0, 254, 0))
    picture.save(tmp_path / "green.png")
    after = images(colours)
    for name in ("contents", "pixels"):
        assert (getattr(before, name) != getattr(after, name)).tolist() == [False, True, False, False]


def test_another_crop_of_a_file_has_other_pixels_and_the_same_content(colours):
    red = colours.items[0]
    part = replace(red, image=ImageRef(red.image.path, crop=(0, 0, 9, 9)))
    whole, cut = images(colours), images(replace(colours, items=(part, *colours.items[1:])))
    np.testing.assert_array_equal(whole.contents, cut.contents)
    assert (whole.pixels != cut.pixels).tolist() == [True, False, False, False]


def test_pictures_of_equal_bytes_and_another_shape_are_told_apart():
    assert hash_pixels(Image.new("RGB", (4, 6))) != hash_pixels(Image.new("RGB", (6, 4)))
    assert hash_pixels(Image.new("RGB", (2, 2))) != hash_pixels(Image.new("L", (6, 2)))


@pytest.mark.parametrize("place", [0, 7, 8, 8191, 8192, 20_000, 59 * 59 * 3 * 2 - 1])
@pytest.mark.parametrize("bit", [1, 128])
def test_one_bit_of_one_pixel_anywhere_changes_the_hash(place, bit):
    values = np.random.default_rng(0).integers(0, 256, 59 * 118 * 3, dtype=np.uint8)
    before = hash_pixels(Image.fromarray(values.reshape(59, 118, 3)))
    values[place] ^= bit
    assert hash_pixels(Image.fromarray(values.reshape(59, 118, 3))) != before


def test_a_pictures_hash_is_the_same_everywhere_and_for_ever():
    values = (np.arange(64 * 64 * 3) * 7 % 251).astype(np.uint8).reshape(64, 64, 3)
    assert hash_pixels(Image.fromarray(values)) == 8702814824554983716


def test_a_text_is_hashed_letter_by_letter_lone_surrogates_too():
    assert hash_text("a cat") == 0x51E4674156077982
    assert len({hash_text(text) for text in ("a cat", "a cat ", "A cat", "\ud800", "")}) == 5


def test_texts_have_no_pixels_and_classes_one_row_each():
    embedder = Embedder(custom(ColourEncoder()), Resources())
    texts = embedder.texts(["red", "blue", "red"]).evidence
    assert texts.contents.tolist() == [hash_text("red"), hash_text("blue"), hash_text("red")]
    assert texts.pixels.size == 0
    before, after = (embedder.classes(("red", "blue"), (t, "the {}")).evidence for t in ("a {}", "one {}"))
    assert before.ids == ("red", "blue")
    assert before.lengths == pytest.approx([1, 1], abs=1e-6)
    assert before.sketches.shape == (2, PROJECTIONS)
    assert (before.contents != after.contents).all()
