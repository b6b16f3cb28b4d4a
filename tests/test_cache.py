"""The embedding cache: rows addressed by all they depend on, a sample of them checked, and no stale row in a result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder, custom
from PIL import Image

import clipbench.embed.cache
from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.cache import cache_of
from clipbench.embed.store import FILE, RowStore
from clipbench.errors import UsageError
from clipbench.experiments import experiment, result_of
from clipbench.models.device import Resources
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.session import Session

SPEC = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu")


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    items = []
    for k in range(12):
        path = folder / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        captions = tuple(f"caption {j} of picture {k} " * (1 + 9 * (j == k % 5)) for j in range(5))
        items.append(Item(f"i{k}", ImageRef(path), captions))
    return Dataset("pictures", tuple(items), "made by the tests")


@pytest.fixture
def written(monkeypatch):
    """Everything that is put into a store while the test runs, by key."""
    kept = {}
    put = RowStore.put
    monkeypatch.setattr(RowStore, "put", lambda store, values: kept.update(values) or put(store, values))
    return kept


def rows_in(written):
    """The rows of tiny-vit among what was written: a hash of the pixels, then 32 float32."""
    return {key: value for key, value in written.items() if len(value) == 8 + 32 * 4}


@pytest.fixture
def measure(tiny_models, pictures, tmp_path):
    """Measure retrieval in a session of its own; return (result, the session)."""

    def call(spec=SPEC, dataset=pictures, precision="fp32", cache=tmp_path / "cache", **options):
        session = Session(Options(cache=cache, precision=precision, **options), Resources("cpu", precision, 8))
        one, embedder = experiment("coco_retrieval"), session.embedder(spec)
        result = result_of(one, embedder.encoder, dataset, one.measure(embedder, dataset))
        session.close()
        return result, session

    return call


def counts(result):
    return {tower: how.cached for tower, how in result.provenance.encoding.items()}


def checked(result):
    return {tower: how.checked for tower, how in result.provenance.encoding.items()}


NOTHING, ALL = {"images": 0, "texts": 0}, {"images": 12, "texts": 60}


def same_outcomes(one, other):
    assert one.scores.keys() == other.scores.keys()
    for name, score in one.scores.items():
        assert (score.value, score.interval) == (other.scores[name].value, other.scores[name].interval)
        np.testing.assert_array_equal(score.outcomes.values, other.scores[name].outcomes.values)


def test_the_second_session_takes_every_row_from_the_cache_and_checks_a_sample(measure):
    first, _ = measure()
    again, _ = measure()
    same_outcomes(first, again)
    assert (counts(first), counts(again)) == (NOTHING, ALL)
    assert again.provenance.optimizations == ("cached_rows",)
    assert checked(again) == {"images": 8, "texts": 8}
    assert again.provenance.exclusions == first.provenance.exclusions
    assert first.provenance.exclusions["truncated_texts"] == 0


def test_the_evidence_of_cached_rows_is_that_of_the_rows_that_were_encoded(measure):
    (first, _), (again, _) = measure(), measure()
    for tower, evidence in first.evidence.items():
        for name in ("contents", "pixels", "lengths", "sketches"):
            np.testing.assert_array_equal(getattr(evidence, name), getattr(again.evidence[tower], name))


def test_truncated_texts_are_counted_alike(measure, pictures):
    items = [replace(item, captions=(*item.captions[:4], "word " * 100)) for item in pictures.items]
    dataset = replace(pictures, items=tuple(items))
    for _ in range(2):
        assert measure(dataset=dataset)[0].provenance.exclusions["truncated_texts"] == 12


def test_without_a_cache_nothing_is_written(measure, tmp_path):
    assert counts(measure(cache=None)[0]) == NOTHING
    assert not (tmp_path / "cache").exists()


def test_without_optimizations_nothing_is_taken_from_the_cache(measure):
    measure()
    result, _ = measure(no_optimizations=True)
    assert counts(result) == NOTHING
    assert result.provenance.optimizations == ()


@pytest.mark.parametrize(
    "spec",
    [replace(SPEC, pretrained="random:1"), replace(SPEC, activation="gelu"), replace(SPEC, architecture="tiny-rn")],
    ids=["weights", "activation", "architecture"],
)
def test_other_weights_or_another_activation_find_nothing(measure, spec):
    measure()
    assert counts(measure(spec)[0]) == NOTHING


def test_another_precision_finds_nothing(measure):
    measure()
    assert counts(measure(precision="bf16")[0]) == NOTHING


@pytest.fixture
def versions():
    yield clipbench.embed.cache._versions.cache_clear()
    clipbench.embed.cache._versions.cache_clear()


@pytest.mark.parametrize("library", ["torch", "torchvision", "open_clip_torch", "pillow"])
def test_another_version_of_a_library_finds_nothing(measure, monkeypatch, versions, library):
    measure()
    real = clipbench.embed.cache.version
    monkeypatch.setattr(clipbench.embed.cache, "version", lambda name: "0.0" if name == library else real(name))
    clipbench.embed.cache._versions.cache_clear()
    assert counts(measure()[0]) == NOTHING


@pytest.mark.parametrize("seam", ["device_kind", "own_code"])
def test_another_processor_or_other_code_of_ours_finds_nothing(measure, monkeypatch, seam):
    measure()
    monkeypatch.setattr(clipbench.embed.cache, seam, lambda *_: "another")
    assert counts(measure()[0]) == NOTHING


@pytest.mark.parametrize("what", ["preprocessing", "tokenizer", "architecture", "optimizations"])
def test_another_preprocessing_tokenizer_or_architecture_finds_nothing(measure, monkeypatch, what):
    measure()
    real = OpenClipEncoder.depends_on
    assert what in real.__get__(Session(Options(), Resources()).embedder(SPEC).encoder)()
    monkeypatch.setattr(OpenClipEncoder, "depends_on", lambda encoder: {**real(encoder), what: "another"})
    assert counts(measure()[0]) == NOTHING


def test_a_changed_image_is_encoded_again_and_the_others_are_not(measure, pictures):
    measure()
    Image.new("RGB", (40, 50), (7, 8, 9)).save(pictures.items[3].image.path)
    result, _ = measure(dataset=replace(pictures, items=pictures.items))
    assert counts(result) == {"images": 11, "texts": 60}
    assert checked(result)["images"] >= 1


def test_a_checkpoint_that_changed_on_disk_finds_nothing_of_the_one_before(measure, tmp_path, tiny_models):
    from clipbench.models.open_clip import load_open_clip

    path = tmp_path / "weights.pt"
    for seed in (0, 1):
        random = replace(SPEC, pretrained=f"random:{seed}")
        torch.save(load_open_clip(random, "cpu", "fp32", True).model.state_dict(), path)
        assert counts(measure(replace(SPEC, source="path", pretrained=str(path)))[0]) == NOTHING


def test_a_stale_row_is_found_out_by_the_sample_and_nothing_kept_beside_it_is_used_again(measure, tmp_path, written):
    expected, _ = measure()
    stale = {
        key: row[:8] + np.roll(np.frombuffer(row[8:], "<f4"), 1).tobytes() for key, row in rows_in(written).items()
    }
    assert len(stale) == 72
    store = RowStore(tmp_path / "cache")
    store.put(stale)
    store.close()
    result, _ = measure()
    same_outcomes(result, expected)
    assert "with cached_rows a sampled row is" in result.provenance.encoding["images"].dropped
    assert counts(result) == NOTHING
    again, _ = measure()  # nothing that was kept with it is found again
    assert counts(again) == NOTHING
    same_outcomes(again, expected)
    assert counts(measure()[0]) == ALL


@pytest.mark.fault("rows that are none")
@pytest.mark.parametrize("row", [np.full(32, np.nan), np.zeros(32), np.ones(0)], ids=["NaN", "zero", "empty"])
def test_a_stored_row_that_is_no_finite_row_is_encoded_again(measure, tmp_path, written, row):
    expected, _ = measure()
    store = RowStore(tmp_path / "cache")
    store.put(dict.fromkeys(list(rows_in(written))[:5], bytes(8) + row.astype("<f4").tobytes()))
    store.close()
    result, _ = measure()
    same_outcomes(result, expected)
    assert sum(counts(result).values()) == 67


@pytest.mark.fault("a cache that is damaged")
def test_a_damaged_file_costs_the_cache_and_no_result(measure, tmp_path):
    expected, _ = measure()
    (tmp_path / "cache" / FILE).write_bytes(b"noise" * 10_000)
    result, session = measure()
    same_outcomes(result, expected)
    assert session.cache_problems


def test_a_folder_that_cannot_be_one_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        Session(Options(cache=tmp_path / "file"), Resources())


def test_nothing_is_kept_of_an_encoder_that_is_not_ours(tmp_path, written):
    cache = cache_of(custom(ColourEncoder()), "cpu", RowStore(tmp_path / "cache"))
    cache.add({"text:x": clipbench.embed.cache.Row(np.ones(3, dtype=np.float32))})
    assert cache.get(["text:x"])[1] == {}
    assert not written


def test_an_edit_of_our_own_code_changes_the_hash_of_it(monkeypatch):
    own_code = clipbench.embed.cache.own_code.__wrapped__
    before = own_code()
    assert before == own_code()
    monkeypatch.setattr(clipbench.embed.cache, "_OWN_CODE", ("embed", "models"))
    assert own_code() != before


def test_memory_holds_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(clipbench.embed.cache, "MEMORY_BYTES", 100)
    cache = clipbench.embed.cache.EmbeddingCache()
    cache.add({str(k): clipbench.embed.cache.Row(np.ones(10, dtype=np.float32)) for k in range(9)})
    assert list(cache.get([str(k) for k in range(9)])[0]) == ["0", "1", "2"]
