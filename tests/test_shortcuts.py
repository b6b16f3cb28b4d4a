"""Shortcuts: the plain call's rows, named, checked on a sample, dropped when they disagree, never for an encoder that is not ours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import custom
from PIL import Image

from clipbench.data.dataset import ImageRef, Item
from clipbench.embed.images import embed_images
from clipbench.embed.known import KnownRows
from clipbench.embed.rows import AT_ONCE, TOLERANCE, Made, spread, text_name
from clipbench.embed.texts import embed_texts
from clipbench.models.open_clip import OpenClipEncoder, _batches, load_open_clip
from clipbench.models.zoo import ModelSpec
from clipbench.settings import Settings

PLAIN = Settings(plain=True, batch_size=8)
FAST = Settings(batch_size=8, workers=2)
TEXTS = [f"a photo of {k} {word} " * (1 + k % 4) for k in range(40) for word in ("cats", "dogs")]


def loaded(name="tiny-vit", precision="fp32", activation="quickgelu"):
    return load_open_clip(ModelSpec(name, "random", "random:0", name, activation), "cpu", precision, offline=True)


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
    """An encoder of ours whose plain call was changed behind the shortcuts' back."""

    def __init__(self, encoder, factor):
        self._encoder, self._factor = encoder, factor

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_texts(self, texts):
        return self._off(self._encoder.encode_texts(texts))

    def encode_images(self, images):
        return self._off(self._encoder.encode_images(images))

    def _off(self, rows):
        return (rows + self._factor).astype(np.float32)


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


@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_texts_are_the_plain_calls_rows_and_the_result_says_what_was_done(tiny_models, name, activation):
    encoder = loaded(name, activation=activation)
    texts = [*TEXTS, "", "word " * 100, *TEXTS[:5]]
    found, expected = embed_texts(encoder, texts, FAST), embed_texts(encoder, texts, PLAIN)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
    assert found.made.shortcuts == {"cut_texts", "distinct_texts"}
    assert (found.made.n, found.made.shared, found.made.cached) == (87, 5, 0)
    assert found.made.checked >= 1
    assert found.made.largest_distance <= 1e-5
    assert expected.made == Made(87)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_images_are_the_plain_calls_rows(tiny_models, items, name, workers):
    encoder = loaded(name)
    found = embed_images(encoder, items, replace(FAST, workers=workers))
    expected = embed_images(encoder, items, PLAIN)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
    assert found.kept == tuple(items)
    assert found.made.shortcuts == ({"channels_last"} if name == "tiny-rn" else set())
    assert bool(found.made.checked) == (name == "tiny-rn")


def test_what_the_model_is_given_is_pixel_for_pixel_its_own_preprocessing(vit, items):
    seen = []
    forward = vit.forward_images
    vit.forward_images = lambda pixels: seen.append(pixels) or forward(pixels)
    embed_images(vit, items, FAST)
    assert torch.equal(torch.cat(seen), vit.pixels([item.image.open() for item in items]))


def test_no_batch_is_larger_than_asked_for_and_only_the_last_is_smaller(vit, tmp_path):
    sizes = []
    forward = vit.forward_images
    vit.forward_images = lambda pixels: sizes.append(len(pixels)) or forward(pixels)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "b.png")
    crops = [Item(f"{n}{k}", ImageRef(tmp_path / f"{n}.png", crop=(k, 0, 40, 40))) for n in "ab" for k in range(13)]
    embed_images(vit, crops, FAST)
    assert sizes == [8, 8, 8, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_stay_within_the_tolerance_of_the_precision(tiny_models, precision):
    found = embed_texts(loaded(precision=precision), TEXTS, FAST)
    assert not found.made.dropped
    assert 0 <= found.made.largest_distance <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_row_of_a_text_that_differs_in_one_word_is_never_within_the_tolerance(tiny_models, precision):
    plain = embed_texts(loaded(precision=precision), TEXTS, PLAIN).rows
    apart = np.linalg.norm(plain[:, None] - plain[None], axis=2)[~np.eye(len(TEXTS), dtype=bool)]
    assert apart.min() > TOLERANCE[precision]


@pytest.mark.parametrize("factor", [1e-3, np.nan])
def test_a_shortcut_that_disagrees_is_dropped_and_the_result_says_so(vit, items, factor):
    encoder = Sabotaged(loaded("tiny-rn"), factor)
    texts = embed_texts(encoder, TEXTS, FAST)
    np.testing.assert_array_equal(texts.rows, embed_texts(encoder, TEXTS, PLAIN).rows)
    images = embed_images(encoder, items, FAST)
    np.testing.assert_array_equal(images.rows, embed_images(encoder, items, PLAIN).rows)
    for made in (texts.made, images.made):
        assert made.shortcuts == set()
        assert "away from the plain call's" in made.dropped
        assert "dropped" in made.to_json()


def test_an_encoder_whose_shortcut_was_found_wrong_takes_none_afterwards(vit, items):
    settings = replace(FAST, known=KnownRows())
    assert (
        "with cut_texts, distinct_texts a sampled row"
        in embed_texts(Sabotaged(vit, 1e-3), TEXTS * 2, settings).made.dropped
    )
    assert embed_texts(vit, TEXTS, settings).made == Made(80)
    assert embed_images(vit, items, settings).made == Made(60)
    assert embed_texts(vit, TEXTS, replace(FAST, known=KnownRows())).made.shortcuts == {"cut_texts"}


FAULTS = {
    "the shortest texts": lambda text, place: len(text) < 10,
    "the longest texts": lambda text, place: len(text) > 90,
    "behind a batch's first item": lambda text, place: place > 0,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("n", [12, 60])
def test_a_plain_call_that_is_wrong_for_some_texts_only_is_found_out(vit, fault, n):
    texts = ["a", *(f"a photo of {k} cats" for k in range(n)), "word " * 20]
    encoder = Turned(vit, FAULTS[fault])
    assert embed_texts(encoder, texts, FAST).made.dropped
    assert not embed_texts(Turned(vit, lambda text, place: False), texts, FAST).made.dropped


def test_a_plain_call_that_is_wrong_behind_the_first_image_of_a_batch_is_found_out(tiny_models, items):
    found = embed_images(Turned(loaded("tiny-rn"), lambda image, place: place > 0), items, FAST)
    assert found.made.dropped


def test_texts_that_are_only_made_once_are_checked_too(vit, monkeypatch):
    monkeypatch.setattr("clipbench.models.open_clip.text_cut", lambda model: None)
    found = embed_texts(vit, ["a cat", "a dog", "a cat"], FAST)
    assert found.made.shortcuts == {"distinct_texts"}
    assert (found.made.shared, found.made.checked) == (1, 2)
    assert embed_texts(Sabotaged(vit, 1e-3), ["a cat", "a dog", "a cat"], FAST).made.dropped


class Cached(KnownRows):
    """Rows that a cache of an earlier session holds."""

    def __init__(self, rows):
        super().__init__()
        self.cached = rows

    def get(self, names):
        return {}, {name: self.cached[name] for name in names if name in self.cached}


def test_a_wrong_cached_row_is_found_out_among_new_ones_that_are_right(vit):
    wrong = {text_name(text): np.roll(row, 1) for text, row in zip(TEXTS[:-1], embed_texts(vit, TEXTS, PLAIN).rows)}
    assert embed_texts(vit, TEXTS, replace(FAST, known=Cached(wrong))).made.dropped
    right = {text_name(text): row for text, row in zip(TEXTS[:-1], embed_texts(vit, TEXTS, PLAIN).rows)}
    found = embed_texts(vit, TEXTS, replace(FAST, known=Cached(right))).made
    assert (found.cached, found.unconfirmed, found.dropped) == (79, 0, "")


def test_cached_rows_beside_no_model_are_counted_as_unconfirmed(vit):
    rows = {text_name(text): row for text, row in zip(TEXTS, embed_texts(vit, TEXTS, PLAIN).rows)}
    asleep = Sabotaged(vit, 0)
    asleep.is_loaded = False
    found = embed_texts(asleep, TEXTS, replace(FAST, known=Cached(rows))).made
    assert (found.cached, found.unconfirmed, found.checked) == (80, 80, 0)


def test_a_difference_within_the_tolerance_keeps_the_shortcut(vit):
    assert not embed_texts(Sabotaged(vit, 1e-7), TEXTS, FAST).made.dropped


def test_an_encoder_that_is_not_ours_is_called_as_it_is(vit):
    calls = []

    class Theirs:
        def encode_images(self, images):
            return np.ones((len(images), 4))

        def encode_texts(self, texts):
            calls.append(list(texts))
            return np.ones((len(texts), 4))

    found = embed_texts(custom(Theirs()), ["a", "a", "b"], Settings(batch_size=2))
    assert calls == [["a", "a"], ["b"]]
    assert found.made == Made(3)


def test_a_class_derived_from_ours_has_no_shortcuts(vit):
    vit.__class__ = type("Derived", (OpenClipEncoder,), {})
    assert vit.shortcuts() is None


def test_plain_settings_take_no_shortcut(vit, items):
    known = KnownRows()
    settings = replace(PLAIN, known=known)
    assert embed_texts(vit, ["a", "a"], settings).made == Made(2)
    assert embed_images(vit, items, settings).made == Made(60)
    assert known.get([]) == ({}, {})


def test_what_a_session_encoded_is_not_encoded_again(vit, items):
    settings = replace(FAST, known=KnownRows())
    first = embed_images(vit, items, settings)
    batches = []
    vit.forward_images = lambda pixels: batches.append(len(pixels)) or OpenClipEncoder.forward_images(vit, pixels)
    again = embed_images(vit, [*items[30:], *items[:30]], settings)
    assert batches == [8]  # the sample
    np.testing.assert_array_equal(again.rows, np.concatenate([first.rows[30:], first.rows[:30]]))
    assert again.made.shortcuts == {"shared_rows"}
    assert (again.made.shared, again.made.checked) == (60, 8)


def test_another_crop_or_another_content_of_the_same_file_is_another_item(vit, items):
    settings = replace(FAST, known=KnownRows())
    embed_images(vit, items[:2], settings)
    cropped = Item("c", ImageRef(items[0].image.path, crop=(0, 0, 20, 20)))
    assert embed_images(vit, [cropped], settings).made.shared == 0
    Image.new("RGB", (50, 50), (1, 2, 3)).save(items[0].image.path)
    assert embed_images(vit, items[:1], settings).made.shared == 0


def test_a_shared_row_that_the_plain_call_does_not_confirm_is_dropped(vit, items):
    settings = replace(FAST, known=KnownRows())
    embed_images(vit, items, settings)
    found = embed_images(Sabotaged(vit, 1e-3), items, settings)
    assert found.made.dropped
    assert found.made.shared == 0
    assert settings.known.get(["anything"]) == ({}, {})


def test_a_broken_image_is_left_out_of_the_fast_path_too(vit, items):
    items[7].image.path.write_bytes(b"no image")
    found = embed_images(vit, items, FAST)
    assert len(found.kept) == 59
    assert [reason.split(":")[0] for reason in found.broken] == ["i7"]
    np.testing.assert_allclose(found.rows, embed_images(vit, items, PLAIN).rows, atol=1e-6)


def test_where_the_sample_is_a_broken_image_another_one_is_checked(tiny_models, items):
    items[-1].image.path.write_bytes(b"no image")
    found = embed_images(loaded("tiny-rn"), items, FAST)
    assert found.made.checked == 8
    assert len(found.kept) == 59


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
    embed_texts(vit, TEXTS, replace(FAST, batch_size=1))
    assert max(seen) <= vit.card["context_length"]
    seen.clear()
    embed_texts(vit, TEXTS, replace(FAST, batch_size=1, text_positions=2048))
    assert max(seen) > vit.card["context_length"]


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(1, 4, 1), (2, 1, 2), (3, 8, 3), (99, 1, 2), (99, 4, 4), (400, 1, 4), (900, 4, 8), (AT_ONCE, 256, 8)],
)
def test_the_sample_is_a_batch_at_least_and_grows_with_the_set_up_to_its_limit(n, batch_size, expected):
    sample = spread(range(100, 100 + n), batch_size)
    assert len(sample) == len(set(sample)) == expected
    assert sample[0] == 100
    assert len(sample) == 1 or sample[-1] == 100 + n - 1


def test_no_place_has_no_sample():
    assert spread([], 4) == []
