"""The embedder: every item once, the reference path's rows by less work, checked on a sample, and dropped where they disagree."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder, custom
from PIL import Image
from planted import paint

from clipbench.data.dataset import ImageRef, Item, read_stored
from clipbench.embed.cache import EmbeddingCache, Row
from clipbench.embed.embedder import AT_ONCE, TOLERANCE, Embedder
from clipbench.embed.evidence import hash_text
from clipbench.errors import DataError, DataUnavailableError, EncoderError
from clipbench.models.device import Resources
from clipbench.models.encoder import CustomEncoder, unit_rows
from clipbench.models.open_clip import OpenClipEncoder, _batches, load_open_clip
from clipbench.models.zoo import ModelSpec
from clipbench.types import Encoding

EIGHT = Resources(batch_size=8, workers=2)
TEXT_OPTIMIZATIONS = ("cut_texts", "shared_beginnings", "words_tokenized_once")
TEXTS = [f"a photo of {k} {word} " * (1 + k % 4) for k in range(40) for word in ("cats", "dogs")]


def loaded(name="tiny-vit", precision="fp32", activation="quickgelu"):
    return load_open_clip(ModelSpec(name, "random", "random:0", name, activation), "cpu", precision, offline=True)


def optimizing(encoder, cache=None, **resources):
    return Embedder(encoder, replace(EIGHT, **resources), cache)


def reference(encoder, **resources):
    return Embedder(encoder, replace(EIGHT, **resources), optimize=False)


@pytest.fixture
def vit(tiny_models):
    return loaded()


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for k in range(60):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (40 + k % 9, 60 - k % 7, 3), dtype=np.uint8)).save(path)
        found.append(Item(f"i{k}", ImageRef(path)))
    return found


class Sabotaged:
    """An encoder of ours whose reference path was changed behind the optimizations' back."""

    def __init__(self, encoder, by):
        self._encoder, self._by = encoder, by

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_texts(self, texts):
        return self._off(self._encoder.encode_texts(texts))

    def encode_images(self, images):
        return self._off(self._encoder.encode_images(images))

    def _off(self, rows):
        return (unit_rows(rows) + self._by).astype(np.float32)


class Turned(Sabotaged):
    """The same, for some items only: `is_wrong(text or image, place in the batch)`."""

    def __init__(self, encoder, is_wrong):
        super().__init__(encoder, 0)
        self._is_wrong = is_wrong

    def encode_texts(self, texts):
        return self._turned(texts, self._encoder.encode_texts(texts))

    def encode_images(self, images):
        return self._turned(images, self._encoder.encode_images(images))

    def _turned(self, inputs, rows):
        return np.stack(
            [np.roll(row, self._is_wrong(x, k)) for k, (x, row) in enumerate(zip(inputs, rows, strict=True))]
        )


class Quick(CustomEncoder):
    """An encoder that is its own optimized path, so that every call of the reference path can be seen."""

    def __init__(self):
        super().__init__(ColourEncoder(), "quick")
        self.checked = []

    def encode_texts(self, texts):
        self.checked += [int(text) for text in texts]
        return self._rows(texts)

    def optimized(self):
        return self.Optimized(self)

    @staticmethod
    def _rows(texts):
        return np.array([[np.cos(int(text)), np.sin(int(text))] for text in texts], dtype=np.float32)

    class Optimized:
        """The same rows, named "quick"."""

        def __init__(self, encoder):
            self._encoder = encoder

        def names(self, tower):
            return ("quick",)

        def encode_texts(self, texts, batch_size, positions, progress):
            return self._encoder._rows(texts)


# The optimized path gives the reference path's rows, and says what was done.


@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_texts_are_the_reference_paths_rows_and_the_result_says_what_was_done(tiny_models, name, activation):
    encoder = loaded(name, activation=activation)
    texts = [*TEXTS, "", "word " * 100, *TEXTS[:5]]
    found, expected = optimizing(encoder).texts(texts), reference(encoder).texts(texts)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
    assert found.optimizations == {*TEXT_OPTIMIZATIONS, "distinct_texts"}
    assert (found.encoding.n, found.encoding.shared, found.encoding.cached) == (87, 5, 0)
    assert found.encoding.checked >= 1
    assert found.encoding.largest_distance <= 1e-5
    assert (expected.encoding, expected.optimizations) == (Encoding(87), set())


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_images_are_the_reference_paths_rows_in_the_order_given(tiny_models, items, name, workers):
    encoder = loaded(name)
    found = optimizing(encoder, workers=workers).images(items)
    np.testing.assert_allclose(found.rows, reference(encoder).images(items).rows, atol=1e-5)
    assert found.ids == tuple(item.id for item in items)
    assert found.optimizations == ({"channels_last"} if name == "tiny-rn" else set())
    assert bool(found.encoding.checked) == (name == "tiny-rn")


def test_what_the_model_is_given_is_pixel_for_pixel_its_own_preprocessing(vit, items):
    seen = []
    forward = vit.forward_images
    vit.forward_images = lambda pixels: seen.append(pixels) or forward(pixels)
    optimizing(vit).images(items)
    assert torch.equal(torch.cat(seen), vit.pixels([item.image.open() for item in items]))


def test_no_batch_is_larger_than_asked_for_and_only_the_last_is_smaller(vit, tmp_path):
    sizes = []
    forward = vit.forward_images
    vit.forward_images = lambda pixels: sizes.append(len(pixels)) or forward(pixels)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "b.png")
    crops = [Item(f"{n}{k}", ImageRef(tmp_path / f"{n}.png", crop=(k, 0, 40, 40))) for n in "ab" for k in range(13)]
    optimizing(vit).images(crops)
    assert sizes == [8, 8, 8, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_stay_within_the_tolerance_of_the_precision(tiny_models, precision):
    found = optimizing(loaded(precision=precision)).texts(TEXTS).encoding
    assert not found.dropped
    assert 0 <= found.largest_distance <= TOLERANCE[precision][0]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_row_of_a_text_that_differs_in_one_word_is_never_within_the_tolerance(tiny_models, precision):
    rows = reference(loaded(precision=precision)).texts(TEXTS).rows
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)[~np.eye(len(TEXTS), dtype=bool)]
    assert apart.min() > max(TOLERANCE[precision])


def test_an_encoder_that_is_not_ours_is_called_as_it_is():
    calls = []

    class Theirs(ColourEncoder):
        def encode_texts(self, texts):
            calls.append(list(texts))
            return np.ones((len(texts), 4))

    found = optimizing(custom(Theirs()), batch_size=2).texts(["a", "a", "b"])
    assert calls == [["a", "a"], ["b"]]
    assert (found.encoding, found.optimizations) == (Encoding(3), set())


def test_a_class_derived_from_ours_has_no_optimizations(vit):
    vit.__class__ = type("Derived", (OpenClipEncoder,), {})
    assert vit.optimized() is None


def test_without_optimizations_every_item_is_encoded_every_time(vit, items):
    cache = EmbeddingCache()
    embedder = Embedder(vit, EIGHT, cache, optimize=False)
    for _ in range(2):
        assert embedder.texts(["a", "a"]).encoding == Encoding(2)
        assert embedder.images(items).encoding == Encoding(60)
    assert cache.get(names(["a"])) == ({}, {})


def test_the_reference_path_can_be_asked_for_once(vit):
    embedder = optimizing(vit)
    embedder.texts(["a", "b"])
    assert embedder.texts(["a", "b"], reference=True).encoding == Encoding(2)
    assert embedder.texts(["a", "b"]).encoding.shared == 2


# A sample of everything that the reference path did not encode is checked; what disagrees is dropped.


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_an_optimization_that_disagrees_is_dropped_and_the_result_says_so(tiny_models, items, name):
    encoder = Sabotaged(loaded(name), 1e-3)
    texts = optimizing(encoder).texts(TEXTS)
    np.testing.assert_array_equal(texts.rows, reference(encoder).texts(TEXTS).rows)
    assert texts.optimizations == set()
    assert "with cut_texts, shared_beginnings, words_tokenized_once a sampled row is" in texts.encoding.dropped
    assert "away from the reference path's, allowed 1e-05" in texts.encoding.dropped
    if name == "tiny-rn":
        images = optimizing(encoder).images(items)
        np.testing.assert_array_equal(images.rows, reference(encoder).images(items).rows)
        assert "with channels_last a sampled row is" in images.encoding.dropped


class Batched(Sabotaged):
    """The same, where a row depends on how many are in its batch, as in TF32: `_by` more where there are several."""

    def encode_texts(self, texts):
        rows = self._encoder.encode_texts(texts)
        return self._off(rows) if len(texts) > 1 else rows


@pytest.mark.parametrize(("moved", "is_dropped"), [(1e-5, False), (1e-4, False), (1e-3, True)])
def test_what_another_batch_size_moves_on_this_device_is_allowed_up_to_the_precisions_limit(vit, moved, is_dropped):
    found = optimizing(Batched(vit, moved)).texts(TEXTS).encoding
    assert bool(found.dropped) == is_dropped
    assert "allowed 0.001" in found.dropped or not is_dropped


def test_a_difference_that_another_batch_size_does_not_make_is_not_allowed(vit):
    assert "allowed 1e-05" in optimizing(Sabotaged(vit, 1e-4)).texts(TEXTS).encoding.dropped


def test_after_one_disagreement_later_results_of_that_tower_are_the_reference_paths_too(vit):
    cache = EmbeddingCache()
    embedder = optimizing(Turned(vit, lambda text, place: text == "odd"), cache)
    assert not embedder.texts(TEXTS[:40]).encoding.dropped
    assert embedder.texts(["odd", "even"]).encoding.dropped
    later = embedder.texts(TEXTS)
    np.testing.assert_array_equal(later.rows, reference(vit).texts(TEXTS).rows)
    assert (later.optimizations, later.encoding.shared, later.encoding.checked) == (set(), 0, 0)
    assert later.encoding.dropped
    assert cache.get(names(TEXTS)) == ({}, {})


def test_rows_of_both_paths_are_never_mixed_in_one_result(monkeypatch):
    monkeypatch.setattr("clipbench.embed.embedder.AT_ONCE", 10)
    encoder = Quick()
    rows = encoder._rows
    encoder._rows = lambda texts: rows(texts) * [1, 1 if int(texts[0]) < 20 else -1]  # wrong from the third part on
    encoder.encode_texts = rows
    found = optimizing(encoder).texts([str(k) for k in range(1, 40)])
    assert found.encoding.dropped
    np.testing.assert_array_equal(found.rows, unit_rows(rows([str(k) for k in range(1, 40)])))


FAULTS = {
    "the shortest texts": lambda text, place: len(text) < 10,
    "the longest texts": lambda text, place: len(text) > 90,
    "behind a batch's first item": lambda text, place: place > 0,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("n", [12, 60])
def test_a_reference_path_that_is_other_for_some_texts_only_is_found_out(vit, fault, n):
    texts = ["a", *(f"a photo of {k} cats" for k in range(n)), "word " * 20]
    assert optimizing(Turned(vit, FAULTS[fault])).texts(texts).encoding.dropped
    assert not optimizing(Turned(vit, lambda text, place: False)).texts(texts).encoding.dropped


def test_a_reference_path_that_is_other_behind_the_first_image_of_a_batch_is_found_out(tiny_models, items):
    assert optimizing(Turned(loaded("tiny-rn"), lambda image, place: place > 0)).images(items).encoding.dropped


def test_optimized_rows_of_another_dim_are_dropped():
    encoder = Quick()
    encoder.encode_texts = lambda texts: np.ones((len(texts), 3), dtype=np.float32)
    found = optimizing(encoder).texts(["1", "2"])
    assert "a sampled row has 2 dimensions, the reference path's 3" in found.encoding.dropped
    assert found.rows.shape == (2, 3)


def test_optimized_rows_that_are_no_numbers_are_dropped():
    encoder = Quick()
    rows = encoder._rows
    encoder.encode_texts = rows
    encoder._rows = lambda texts: rows(texts) * np.nan
    found = optimizing(encoder).texts(["1", "2"])
    assert found.encoding.dropped
    np.testing.assert_array_equal(found.rows, unit_rows(rows(["1", "2"])))


def test_a_difference_within_the_tolerance_keeps_the_optimization(vit):
    assert not optimizing(Sabotaged(vit, 1e-7)).texts(TEXTS).encoding.dropped


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(1, 4, 1), (2, 1, 2), (3, 8, 3), (99, 1, 2), (99, 4, 4), (400, 1, 4), (900, 4, 8), (AT_ONCE, 256, 8)],
)
def test_the_sample_is_a_batch_at_least_and_grows_with_the_set_up_to_its_limit(n, batch_size, expected):
    encoder = Quick()
    texts = [str(k) for k in range(10_000, 10_000 + n)]
    found = optimizing(encoder, batch_size=batch_size).texts(texts)
    assert found.encoding.checked == len(set(encoder.checked)) == expected
    assert encoder.checked[0] == 10_000
    assert n == 1 or encoder.checked[-1] == 10_000 + n - 1


# Rows that are there already.


def names(texts):
    return [f"text:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts]


class Stored(EmbeddingCache):
    """Rows that an earlier session left in a store."""

    is_empty = False

    def __init__(self, texts, rows):
        super().__init__()
        self._stored = {name: Row(row) for name, row in zip(names(texts), rows, strict=True)}

    def get(self, names):
        shared, _ = super().get(names)
        return shared, {n: self._stored[n] for n in names if n in self._stored and n not in shared and self._is_valid}


def test_a_wrong_cached_row_is_found_out_among_new_ones_that_are_right(vit):
    rows = vit.encode_texts(TEXTS[:-1])
    wrong = optimizing(vit, Stored(TEXTS[:-1], np.roll(rows, 1, axis=1))).texts(TEXTS)
    assert "with cached_rows a sampled row is" in wrong.encoding.dropped
    np.testing.assert_array_equal(wrong.rows, reference(vit).texts(TEXTS).rows)
    right = optimizing(vit, Stored(TEXTS[:-1], rows)).texts(TEXTS)
    assert (right.encoding.cached, right.encoding.dropped) == (79, "")
    assert right.optimizations == {"cached_rows", *TEXT_OPTIMIZATIONS}
    assert right.encoding.checked == 8 + 1


def test_texts_that_are_only_encoded_once_are_checked_too(vit, monkeypatch):
    monkeypatch.setattr("clipbench.models.open_clip.text_cut", lambda model: None)
    found = optimizing(vit).texts(["a cat", "a dog", "a cat"])
    assert found.optimizations == {"distinct_texts"}
    assert (found.encoding.n, found.encoding.shared, found.encoding.checked) == (3, 1, 2)
    np.testing.assert_array_equal(found.rows[0], found.rows[2])
    assert "distinct_texts" in optimizing(Sabotaged(vit, 1e-3)).texts(["a cat", "a dog", "a cat"]).encoding.dropped


def test_what_a_session_encoded_is_not_encoded_again(vit, items):
    embedder = optimizing(vit)
    first = embedder.images(items)
    batches = []
    vit.forward_images = lambda pixels: batches.append(len(pixels)) or OpenClipEncoder.forward_images(vit, pixels)
    again = embedder.images([*items[30:], *items[:30]])
    assert batches == [8]  # the sample
    np.testing.assert_array_equal(again.rows, np.concatenate([first.rows[30:], first.rows[:30]]))
    assert again.optimizations == {"shared_rows"}
    assert (again.encoding.shared, again.encoding.checked) == (60, 8)


def test_shared_rows_have_the_evidence_of_the_first_time(vit, items):
    embedder = optimizing(vit)
    first, again = embedder.images(items).evidence, embedder.images(items).evidence
    for name in ("contents", "pixels", "lengths", "sketches"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_another_crop_or_another_content_of_the_same_file_is_another_item(vit, items):
    embedder = optimizing(vit)
    embedder.images(items[:2])
    cropped = Item("c", ImageRef(items[0].image.path, crop=(0, 0, 20, 20)))
    assert embedder.images([cropped]).encoding.shared == 0
    Image.new("RGB", (50, 50), (1, 2, 3)).save(items[0].image.path)
    assert embedder.images(items[:1]).encoding.shared == 0


def test_a_shared_row_that_the_reference_path_does_not_confirm_is_dropped(vit, items):
    cache = EmbeddingCache()
    optimizing(vit, cache).images(items)
    found = optimizing(Sabotaged(vit, 1e-3), cache).images(items).encoding
    assert "with shared_rows a sampled row is" in found.dropped
    assert found.shared == 0
    assert optimizing(vit, cache).images(items).encoding.shared == 0


# Images: decoded once, broken ones left out and named.


class Recorder(ColourEncoder):
    """Keeps every picture it is given."""

    def __init__(self):
        self.seen = []

    def encode_images(self, images):
        self.seen += [np.asarray(image) for image in images]
        return np.ones((len(images), 2))


@pytest.fixture
def crops(tmp_path):
    for name in "ab":
        paint(tmp_path / f"{name}.png", list(range(10)))
    boxes = [(-6, -6, 18, 18), (0, 0, 12, 12), (12, 0, 24, 12), (100, -3, 140, 20)]
    return [Item(f"{n}{k}", ImageRef(tmp_path / f"{n}.png", crop=box)) for n in "ab" for k, box in enumerate(boxes)]


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_file_is_decoded_once_for_all_its_crops_and_no_pixel_changes(crops, monkeypatch, workers, batch_size):
    decoded = []
    monkeypatch.setattr(
        "clipbench.embed.embedder.read_stored",
        lambda path, depth: decoded.append(path.name) or read_stored(path, depth),
    )
    recorder = Recorder()
    embedded = optimizing(custom(recorder), batch_size=batch_size, workers=workers).images(crops)
    assert sorted(decoded) == ["a.png", "b.png"]
    assert embedded.ids == tuple(crop.id for crop in crops)
    for seen, item in zip(recorder.seen, crops, strict=True):
        np.testing.assert_array_equal(seen, np.asarray(item.image.open()))


def test_every_crop_of_a_broken_file_is_left_out_and_named(crops, tmp_path):
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:60])
    embedded = optimizing(custom(Recorder())).images(crops)
    assert embedded.ids == ("b0", "b1", "b2", "b3")
    assert embedded.kept == (4, 5, 6, 7)
    assert [reason.split(":")[0] for reason in embedded.broken] == ["a0", "a1", "a2", "a3"]
    assert embedded.broken_names == ("a.png",)
    assert embedded.exclusions["broken_images"] == 1


def test_a_broken_image_is_left_out_of_the_optimized_path_too(tiny_models, items):
    items[7].image.path.write_bytes(b"no image")
    encoder = loaded("tiny-rn")
    found = optimizing(encoder).images(items)
    assert len(found.ids) == 59
    assert [reason.split(":")[0] for reason in found.broken] == ["i7"]
    np.testing.assert_allclose(found.rows, reference(encoder).images(items).rows, atol=1e-5)


def test_where_the_sample_is_a_broken_image_another_one_is_checked(tiny_models, items):
    items[-1].image.path.write_bytes(b"no image")
    found = optimizing(loaded("tiny-rn")).images(items)
    assert found.encoding.checked == 8
    assert len(found.ids) == 59


def test_a_broken_image_is_named_once_where_the_optimized_path_is_dropped(tiny_models, items):
    items[7].image.path.write_bytes(b"no image")
    found = optimizing(Sabotaged(loaded("tiny-rn"), 1e-3)).images(items)
    assert found.encoding.dropped
    assert [reason.split(":")[0] for reason in found.broken] == ["i7"]


def test_a_set_without_any_image_that_can_be_decoded_is_an_error(items):
    for item in items[:2]:
        item.image.path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 2 images could be decoded; the first: i0: "):
        optimizing(custom(Recorder())).images(items[:2])


@pytest.mark.parametrize("optimize", [True, False])
def test_a_missing_picture_is_an_error_that_names_it(vit, items, optimize):
    items[3].image.path.unlink()
    with pytest.raises(DataUnavailableError, match=r"3\.png"):
        Embedder(vit, EIGHT, optimize=optimize).images(items)


def test_greyscale_and_cmyk_files_are_counted_once_each(tmp_path):
    Image.new("L", (20, 20), 9).save(tmp_path / "grey.png")
    Image.new("CMYK", (20, 20)).save(tmp_path / "print.jpg")
    found = [Item(f"{k}", ImageRef(tmp_path / "grey.png", crop=(k, 0, 9, 9))) for k in range(3)]
    found.append(Item("print", ImageRef(tmp_path / "print.jpg")))
    exclusions = optimizing(custom(Recorder())).images(found).exclusions
    assert exclusions == {"broken_images": 0, "greyscale_images": 1, "cmyk_images": 1}


# Texts: whole batches, cut batches, classes.


def test_nothing_to_embed_is_an_error(vit):
    for embedder in (optimizing(vit), reference(vit)):
        with pytest.raises(DataError, match="no texts"):
            embedder.texts([])


def test_batches_of_cut_texts_hold_no_more_positions_than_allowed_and_every_text_once():
    lengths = sorted(np.random.default_rng(0).integers(2, 78, 500).tolist())
    batches = _batches(lengths, 512)
    assert [k for start, end in batches for k in range(start, end)] == list(range(500))
    assert all((end - start) * lengths[end - 1] <= 512 for start, end in batches)
    assert len(batches) <= 2 * sum(lengths) / 512 + 1


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    assert _batches([4, 77, 77], 10) == [(0, 1), (1, 2), (2, 3)]


def test_a_batch_size_that_was_asked_for_is_the_memory_of_cut_texts_too(vit):
    seen = []
    vit.model.token_embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    optimizing(vit, batch_size=1).texts(TEXTS)
    assert max(seen) <= vit.card["context_length"]
    seen.clear()
    optimizing(vit, batch_size=1, text_positions=2048).texts(TEXTS)
    assert max(seen) > vit.card["context_length"]


def test_texts_that_the_tokenizer_cuts_are_counted(vit):
    assert optimizing(vit).texts(["a cat", "word " * 100, "word " * 100]).exclusions == {"truncated_texts": 2}
    assert optimizing(custom(ColourEncoder())).texts(["a red cat"]).exclusions == {}


def test_a_text_names_itself_or_has_the_name_it_is_given():
    embedder = optimizing(custom(ColourEncoder()))
    assert embedder.texts(["red", "blue"]).ids == ("red", "blue")
    assert embedder.texts(["red", "blue"], ["a", "b"]).ids == ("a", "b")


def test_the_row_of_a_class_is_the_unit_mean_over_its_templates_of_unit_rows():
    raw = {"a red": [3.0, 4.0], "the red": [0.0, 9.0], "a blue": [2.0, 0.0], "the blue": [0.0, 1.0]}

    class Words(ColourEncoder):
        def encode_texts(self, texts):
            return np.array([raw[text] for text in texts])

    found = optimizing(custom(Words())).classes(["red", "blue"], ["a {}", "the {}"])
    expected = unit_rows(np.array([[0.3, 0.9], [0.5, 0.5]]))
    np.testing.assert_allclose(found.rows, expected, atol=1e-6)
    np.testing.assert_allclose(found.evidence.lengths, [0.9**0.5, 0.5**0.5], atol=1e-6)
    assert found.ids == ("red", "blue")
    assert found.evidence.contents.tolist() == [hash_text("a red\nthe red"), hash_text("a blue\nthe blue")]
    assert found.encoding.n == 4


def test_templates_that_cancel_out_are_an_error_that_says_so():
    class Opposed(ColourEncoder):
        def encode_texts(self, texts):
            return np.array([[1.0, 0.0] if text.startswith("a") else [-1.0, 0.0] for text in texts])

    with pytest.raises(EncoderError, match="mean over 2 templates returned a zero row for input 0"):
        optimizing(custom(Opposed())).classes(["red"], ["a {}", "the {}"])
