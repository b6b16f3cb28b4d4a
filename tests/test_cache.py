"""The embedding cache: rows addressed by all they depend on, models not loaded for nothing, and no stale row in a gate."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder, custom
from PIL import Image

import clipbench.embed.cache
from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.embed.cache import EncoderCache
from clipbench.embed.store import RowStore
from clipbench.embed.store_folder import FILE
from clipbench.errors import EncoderError, UsageError
from clipbench.judge.compare import compare_runs
from clipbench.judge.rules import read_rules
from clipbench.models.zoo import ModelSpec
from clipbench.session import Session
from clipbench.settings import Settings

SPEC = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu")
RETRIEVAL = "coco_retrieval"


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
    """The rows of tiny-vit among what was written."""
    return {key: value for key, value in written.items() if len(value) == 32 * 4}


@pytest.fixture
def measure(tiny_models, pictures, tmp_path, monkeypatch):
    """Measure retrieval in a session of its own; return (result, how often a model was loaded, the session)."""
    from clipbench.models import load_encoder

    def call(spec=SPEC, cache=tmp_path / "cache", name=RETRIEVAL, dataset=pictures, **settings):
        loads = []
        monkeypatch.setattr("clipbench.session.load_encoder", lambda *a: loads.append(a) or load_encoder(*a))
        session = Session(Settings(batch_size=8, cache=cache, **settings))
        if dataset is not None:
            session.replace_dataset(name, dataset)
        result = session.measure(spec, name)
        session.close()
        return result, len(loads), session

    return call


def counts(result):
    return {kind: part.get("cached", 0) for kind, part in result.protocol["execution"].items()}


def same_outcomes(one, other):
    return one.items.outcomes == other.items.outcomes and one.metrics == other.metrics


def test_the_second_session_takes_every_row_from_the_cache_and_loads_no_model(measure):
    first, loads, _ = measure()
    again, loads_again, _ = measure()
    assert (loads, loads_again) == (1, 0)
    assert same_outcomes(first, again)
    assert counts(first) == {"images": 0, "texts": 0}
    assert counts(again) == {"images": 12, "texts": 60}
    assert again.protocol["shortcuts"] == ["cached_rows"]
    assert again.protocol["notes"] == first.protocol["notes"]
    assert first.protocol["notes"]["truncated_texts"] == 0


def test_truncated_texts_are_counted_alike_without_the_model(measure, pictures):
    items = [replace(item, captions=(*item.captions[:4], "word " * 100)) for item in pictures.items]
    dataset = replace(pictures, items=tuple(items))
    first, _, _ = measure(dataset=dataset)
    again, loads, _ = measure(dataset=dataset)
    assert loads == 0
    assert first.protocol["notes"]["truncated_texts"] == again.protocol["notes"]["truncated_texts"] == 12


def test_a_gate_makes_the_model_confirm_what_the_cache_says(measure):
    measure()
    result, loads, _ = measure(must_check=True)
    assert loads == 1
    assert counts(result) == {"images": 12, "texts": 60}
    assert all(part["checked"] == 8 for part in result.protocol["execution"].values())
    assert not any("unconfirmed" in part for part in result.protocol["execution"].values())


def test_without_a_cache_nothing_is_written(measure, tmp_path):
    result, _, _ = measure(cache=None)
    assert counts(result) == {"images": 0, "texts": 0}
    assert not (tmp_path / "cache").exists()


def test_plain_takes_nothing_from_the_cache(measure):
    measure()
    result, loads, _ = measure(plain=True)
    assert loads == 1
    assert counts(result) == {"images": 0, "texts": 0}
    assert result.protocol["shortcuts"] == []


@pytest.mark.parametrize(
    "spec",
    [replace(SPEC, pretrained="random:1"), replace(SPEC, activation="gelu"), replace(SPEC, architecture="tiny-rn")],
    ids=["weights", "activation", "architecture"],
)
def test_other_weights_or_another_activation_find_nothing(measure, spec):
    measure()
    result, loads, _ = measure(spec)
    assert loads == 1
    assert counts(result) == {"images": 0, "texts": 0}


def test_another_precision_finds_nothing(measure):
    measure()
    result, _, _ = measure(precision="bf16")
    assert counts(result) == {"images": 0, "texts": 0}


@pytest.mark.parametrize("library", ["torch", "torchvision", "open_clip_torch", "pillow"])
def test_another_version_of_a_library_finds_nothing(measure, monkeypatch, library):
    measure()
    real = clipbench.embed.cache.version
    monkeypatch.setattr(clipbench.embed.cache, "version", lambda name: "0.0" if name == library else real(name))
    result, loads, _ = measure()
    assert loads == 1
    assert counts(result) == {"images": 0, "texts": 0}


@pytest.mark.parametrize("seam", ["device_kind", "_own_code"])
def test_another_processor_or_other_code_of_ours_finds_nothing(measure, monkeypatch, seam):
    measure()
    monkeypatch.setattr(clipbench.embed.cache, seam, lambda *_: "another")
    result, loads, _ = measure()
    assert loads == 1
    assert counts(result) == {"images": 0, "texts": 0}


def test_another_preprocessing_or_tokenizer_finds_nothing(measure, monkeypatch):
    measure()
    monkeypatch.setattr(clipbench.embed.cache, "_knows_all_its_files", lambda *_: False)
    for change in ({"preprocessing": "another"}, {"tokenizer": "another"}):
        original = clipbench.embed.cache._record

        def changed(*arguments, original=original, change=change):
            return replace(original(*arguments), **change)

        with monkeypatch.context() as patched:
            patched.setattr(clipbench.embed.cache, "_record", changed)
            patched.setattr(clipbench.embed.cache.Record, "read", lambda value: None)
            result, _, _ = measure()
        assert counts(result) == {"images": 0, "texts": 0}


def test_a_changed_image_is_encoded_again_and_the_others_are_not(measure, pictures):
    measure()
    Image.new("RGB", (40, 50), (7, 8, 9)).save(pictures.items[3].image.path)
    changed = replace(pictures, items=pictures.items)
    result, loads, _ = measure(dataset=changed)
    assert loads == 1
    assert counts(result) == {"images": 11, "texts": 60}
    assert result.protocol["execution"]["images"]["checked"] >= 1


def test_a_checkpoint_that_changed_on_disk_is_loaded(measure, tmp_path, tiny_models):
    from clipbench.models.open_clip import load_open_clip

    path = tmp_path / "weights.pt"
    for seed in (0, 1):
        random = replace(SPEC, pretrained=f"random:{seed}")
        torch.save(load_open_clip(random, "cpu", "fp32", True).model.state_dict(), path)
        spec = replace(SPEC, source="path", pretrained=str(path))
        result, loads, _ = measure(spec)
        assert loads == 1
        assert counts(result) == {"images": 0, "texts": 0}
    assert measure(spec)[1] == 0


def test_a_stale_row_is_found_out_by_the_sample_removed_and_not_used(measure, tmp_path, written):
    expected, _, _ = measure()
    turned = {key: np.roll(np.frombuffer(row, "<f4"), 1).tobytes() for key, row in rows_in(written).items()}
    assert len(turned) == 72
    store = RowStore(tmp_path / "cache")
    store.put(turned)
    store.close()
    result, loads, _ = measure(must_check=True)
    assert loads == 1
    assert same_outcomes(result, expected)
    assert "away from the plain call" in result.protocol["execution"]["images"]["dropped"]
    assert counts(result) == {"images": 0, "texts": 0}
    again, loads, _ = measure()  # nothing that was kept with it is found again
    assert loads == 1
    assert counts(again) == {"images": 0, "texts": 0}
    assert same_outcomes(again, expected)
    assert counts(measure()[0]) == {"images": 12, "texts": 60}


def test_a_row_that_is_no_unit_row_is_made_again(measure, tmp_path, written):
    expected, _, _ = measure()
    store = RowStore(tmp_path / "cache")
    store.put(dict.fromkeys(list(rows_in(written))[:5], np.full(32, np.nan, "<f4").tobytes()))
    store.close()
    result, loads, _ = measure()
    assert loads == 1
    assert same_outcomes(result, expected)
    assert sum(counts(result).values()) == 67


def test_a_model_that_is_not_the_remembered_one_is_refused_every_time_and_forgotten(measure, tmp_path, monkeypatch):
    measure()
    real = clipbench.embed.cache._record
    monkeypatch.setattr(clipbench.embed.cache, "_record", lambda *a: replace(real(*a), tokenizer="another"))
    session = Session(Settings(batch_size=8, cache=tmp_path / "cache"))
    for name in ("model_card", "natural"):
        with pytest.raises(EncoderError, match="has forgotten them: run again"):
            session.measure(SPEC, name)
    session.close()
    assert counts(measure()[0]) == {"images": 0, "texts": 0}


def test_an_architecture_of_another_configuration_finds_nothing(measure, monkeypatch):
    measure()
    monkeypatch.setattr(clipbench.embed.cache, "_configuration", lambda spec: "another")
    result, loads, _ = measure()
    assert loads == 1
    assert counts(result) == {"images": 0, "texts": 0}


def test_the_configuration_is_that_of_open_clip_and_of_the_checkpoints_folder(tmp_path):
    spec = ModelSpec("RN50", "path", str(tmp_path / "w.pt"), "RN50", "quickgelu")
    bare = clipbench.embed.cache._configuration(spec)
    assert bare != clipbench.embed.cache._configuration(replace(spec, architecture="RN101"))
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert bare != clipbench.embed.cache._configuration(spec)


def test_a_damaged_file_costs_the_cache_and_no_result(measure, tmp_path):
    expected, _, _ = measure()
    (tmp_path / "cache" / FILE).write_bytes(b"noise" * 10_000)
    result, _, session = measure()
    assert same_outcomes(result, expected)
    assert session.cache_problems


def test_a_folder_that_cannot_be_one_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        Session(Settings(cache=tmp_path / "file"))


def test_the_model_card_is_read_off_the_live_model(measure):
    measure()
    assert measure(name="model_card", dataset=None)[1] == 1


def test_the_natural_matrix_and_the_probe_are_made_by_the_model_every_time(measure):
    pytest.importorskip("skimage")
    for _ in range(2):
        result, loads, session = measure(name="natural", dataset=None)
        assert loads == 1
        assert result.protocol["shortcuts"] == []
        assert session.probes[SPEC.label]["stages"]["image_rows"]


def test_nothing_is_kept_of_an_encoder_that_is_not_ours(tmp_path, written):
    cache = EncoderCache(RowStore(tmp_path / "cache"))
    theirs = custom(ColourEncoder())
    found = cache.encoder(ModelSpec("theirs", "factory", "factory"), Settings(), lambda: theirs)
    assert found is theirs
    assert not written


def test_an_edit_of_our_own_code_changes_the_hash_of_it(tmp_path, monkeypatch):
    before = clipbench.embed.cache._own_code()
    assert before == clipbench.embed.cache._own_code()
    monkeypatch.setattr(clipbench.embed.cache, "_OWN_CODE", ("embed", "models"))
    assert clipbench.embed.cache._own_code() != before


def test_rows_that_no_model_confirmed_are_never_a_pass(measure):
    _, _, session = measure()
    base = session.run()
    _, _, session = measure()
    unchecked = session.run()
    _, _, session = measure(must_check=True)
    checked = session.run()
    assert compare_runs(base, checked, read_rules()).verdict == "pass"
    for one, other in ((base, unchecked), (unchecked, base)):
        found = compare_runs(one, other, read_rules())
        assert found.verdict == "inconclusive"
        assert "came from a cache and its model was not run" in json.dumps([f.reason for f in found.findings])
