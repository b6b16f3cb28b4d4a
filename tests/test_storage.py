"""The run's JSON: whole, finite, as its schema says, and read back equal; what is damaged is refused in one line."""

import copy
import json
import os
from dataclasses import asdict, fields, is_dataclass, replace
from itertools import cycle

import jsonschema
import numpy as np
import pytest
from fakes import card, matching
from hypothesis import given
from hypothesis import strategies as st

from clipbench.storage import (
    RunFormatError,
    dump_json,
    read_run,
    result_from_json,
    result_to_json,
    run_from_json,
    run_schema,
    run_to_json,
    write_atomically,
)
from clipbench.types import (
    Answers,
    DatasetIdentity,
    Encoding,
    Evidence,
    Key,
    Matrix,
    MetricSpec,
    ModelIdentity,
    Outcomes,
    Protocol,
    Provenance,
    Result,
    Run,
    Score,
    Skip,
    SubjectRecord,
    Verdict,
)

ENVIRONMENT = {"machine": {"processor": "test"}, "software": {"torch": "0"}}
NAMES = tuple("abcdefgh")
IMAGES, TEXTS, FILES = ("i1", "i2"), ("i1#0", "i1#1", "i2#0"), ("i1", "i1", "i2")
KEY = Key("coco_retrieval", "ViT-B/16", "coco")
TRACE = {
    "version": 2,
    "model": asdict(ModelIdentity("RN50", "openai")),
    "dataset": {"name": "natural", "fingerprint": "f", "n": 1},
    "images": ["i1"],
    "texts": ["a cat"],
    "stages": {"image_rows": [{"dtype": "float32", "shape": [1], "sha256": "a" * 64, "values": "AACAPw=="}]},
}


def evidence(ids, seed, pixels=True):
    drawn = np.random.default_rng(seed)
    contents, seen = (drawn.integers(0, 2**64, len(ids), dtype=np.uint64) for _ in range(2))
    lengths = (drawn.integers(1, 100, len(ids)) / 8).astype(np.float32)  # half precision holds these
    sketches = drawn.integers(-(2**15), 2**15, (len(ids), 16)).astype(np.int16)
    return Evidence(ids, contents, seen if pixels else seen[:0], lengths, sketches, 512)


def answers(ids, candidates, labels=None, groups=None):
    top = np.array([[k % len(candidates), (k + 1) % len(candidates)] for k in range(len(ids))], dtype=np.int32)
    margins = np.array([0.25, np.nan, -0.5][: len(ids)], dtype=np.float32)
    own = None if labels is None else np.array(labels, dtype=np.int32)
    return Answers(ids, candidates, top, np.full(top.shape, 0.3125, dtype=np.float32), margins, own, groups, groups)


def score(name, values, ids, interval=(0.1, 0.9), **more):
    spec = MetricSpec(name, "rate", cluster="clusters" in more, ranked=True, headline=True, answers="text_to_image")
    values = np.array(values, dtype=np.float64)
    return Score(spec, float(values.mean()), len(values), interval, Outcomes(ids, values, **more))


def full_result():
    """A result with something in every field."""
    return Result(
        "coco_retrieval",
        ModelIdentity("ViT-B/16", "openai", "a" * 64, "b" * 64, "quickgelu", "bf16", "cuda:1", "resize 224", "RN50"),
        DatasetIdentity("coco", "c" * 64, 2),
        Protocol(("a {}", "{}"), 3, ("cat", "dog"), {"split": "val", "groups": {"size": 8}}),
        {
            "by_text": score("by_text", [1, 0, 1], TEXTS, clusters=FILES, axis="text_ids"),
            "by_image": score("by_image", [0.25, 1], IMAGES, axis="image_ids"),
            "rate": Score(
                MetricSpec("rate", "per_second", unit="images/s"), 12.5, 7, spread=0.125, processes=(1.0, 2.0, 3.0)
            ),
        },
        {"similarity": Matrix("probability", np.array([[0.5, 0.25], [0.125, 1], [0, 1]]), TEXTS, IMAGES, 100.0)},
        {
            "text_to_image": answers(TEXTS, IMAGES, [0, 0, 1], ("x", "y", "x")),
            "image_to_text": answers(IMAGES, TEXTS),
        },
        {"images": evidence(IMAGES, 0), "texts": evidence(TEXTS, 1, pixels=False)},
        Provenance(
            ("text_truncation",),
            {"images": Encoding(2, 1, 1, 4, 1e-6, "a row is away"), "texts": Encoding(3)},
            {"broken_images": 1},
            ("x.jpg",),
            {"clock_mhz": 1755.0},
            ("a",),
            "2026-01-01T00:00:00+00:00",
        ),
        (
            Verdict(KEY, "by_text", "floor", "fail", "too low", "a source", 0.7),
            Verdict(KEY, "", "in general", "pass", "r", "base", "the same", 0.5, 0.6, 9, 1, 2, (-0.1, 0.2)),
        ),
    )


def a_run():
    return Run(
        ENVIRONMENT,
        (card("RN50", params=3), matching(np.eye(8), NAMES), full_result()),
        (Skip(Key("natural", "RN101", "natural"), "no weights"),),
        (SubjectRecord("RN50", {"precision": "fp32"}, {"dim": 1024, "tensors": {"a": "f" * 64}}),),
        (TRACE,),
        (Key("natural", "RN50", "natural"), KEY),
        "0123456789abcdef",
        "2026-01-02T03:04:05+00:00",
        ({"cell": "complete", "reason": "r", "author": "a", "date": "d"},),
    )


def plain(value):
    """The value as nested tuples that can be compared: arrays with their type, shape and numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, tuple(repr(number) for number in value.ravel().tolist())
    if is_dataclass(value):
        return type(value).__name__, tuple(plain(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, dict):
        return tuple(sorted((k, plain(v)) for k, v in value.items()))
    return tuple(plain(v) for v in value) if isinstance(value, tuple | list) else value


def write(path, run):
    path.write_text(dump_json({"benchmarks": [], "clipbench": run_to_json(run)}))
    return path


def test_every_field_of_a_run_is_read_back_as_it_was_written(tmp_path):
    assert plain(read_run(write(tmp_path / "run.json", a_run()))) == plain(a_run())


def test_cosines_and_lengths_are_read_back_to_a_step_and_what_no_step_holds_as_it_was():
    result = full_result()
    kept, lengths = result.answers["text_to_image"], np.float32([0.1, 1e6])
    for scores, step in ((kept.scores + np.float32(0.00007), 2**-14), (kept.scores * 1e4, 0)):
        odd = replace(result, answers={"text_to_image": replace(kept, scores=scores)})
        found = result_from_json(result_to_json(odd)).answers["text_to_image"].scores
        np.testing.assert_allclose(found, scores, atol=step / 2)
    odd = replace(result, answers={"text_to_image": replace(kept, scores=kept.scores * np.nan)})
    with pytest.raises(ValueError, match="do not fit"):  # and no step is a number that it never was
        result_from_json(result_to_json(odd))
    for factor in (1, 1e-6):
        odd = replace(
            result, evidence={"images": replace(result.evidence["images"], lengths=lengths * np.float32(factor))}
        )
        found = result_from_json(result_to_json(odd)).evidence["images"].lengths
        np.testing.assert_allclose(found, lengths * np.float32(factor), rtol=1e-3)


@pytest.mark.fault("a run file that lies")
def test_columns_that_repeat_are_stored_deflated_and_never_swell_beyond_their_shape(tmp_path):
    entry = column([7] * 1000)
    assert entry["deflated"]
    assert len(entry["base64"]) < 100
    path = tmp_path / "run.json"
    path.write_text(changed(put(*TEXT_TO_IMAGE, "top", value=entry | {"shape": [3, 2]})))
    with pytest.raises(RunFormatError, match=r"a column has 25 bytes of <i4 for shape \(3, 2\)"):
        read_run(path)


def test_the_full_result_has_no_field_at_its_default():
    for part in (full_result(), full_result().model, full_result().protocol, full_result().provenance):
        for f in fields(part):
            assert f.default is not getattr(part, f.name), f.name


def test_the_json_validates_against_the_published_schema():
    jsonschema.validate({"clipbench": run_to_json(a_run())}, run_schema())


@pytest.mark.parametrize("key", ["schema", "environment", "results", "traces", "skipped", "plan", "subjects", "id"])
def test_the_schema_refuses_a_run_without_a_key_of_the_contract(key):
    entry = run_to_json(a_run())
    del entry[key]
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate({"clipbench": entry}, run_schema())


def test_lists_of_ids_stand_once_whatever_uses_them():
    entry = result_to_json(full_result())
    text = json.dumps(entry["items"]) + json.dumps(entry["lists"])
    assert text.count('["i1#0", "i1#1", "i2#0"]') == text.count('["i1", "i2"]') == 1
    assert (entry["items"]["axes"], entry["answers"]["text_to_image"]["candidates"]) == (
        {"by_text": "text_ids", "by_image": "image_ids"},
        "image_ids",
    )


def test_metrics_of_one_list_keep_their_own_clusters_and_no_name_hides_another(tmp_path):
    whole = full_result()
    scores = {
        "by_file": score("by_file", [1, 0, 1], TEXTS, clusters=FILES),
        "by_pair": score("by_pair", [0, 0, 1], TEXTS, clusters=("p", "q", "q")),
        "candidates": score("candidates", [0, 1, 1], TEXTS),
        "images": score("images", [0.25, 1], IMAGES, axis="image_ids"),
    }
    run = replace(a_run(), results=(replace(whole, scores=scores),))
    assert plain(read_run(write(tmp_path / "run.json", run))) == plain(run)


@pytest.mark.parametrize("name", ["ids", "axes", "clusters"])
def test_a_metric_with_the_name_of_a_place_in_the_file_is_refused(name):
    with pytest.raises(ValueError, match="cannot be called"):
        result_to_json(replace(full_result(), scores={name: score(name, [1, 0], IMAGES)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_never_reach_the_json(value):
    result, spec = matching(np.eye(8), NAMES), MetricSpec("x", "rate")
    table = np.array([[value]])
    for broken in (
        replace(result, scores={"x": Score(spec, value, 1)}),
        replace(result, matrices={"x": Matrix("cosine", table, ("a",), ("a",))}),
        replace(result, scores={"x": Score(spec, 1.0, 1, outcomes=Outcomes(("a",), table[0]))}),
    ):
        with pytest.raises(ValueError, match=r"natural of ViT-B/32: .*finite"):
            result_to_json(broken)


def test_outcomes_that_do_not_align_with_their_ids_are_refused():
    with pytest.raises(ValueError, match="2 outcomes for 3 ids"):
        Outcomes(("a", "b", "c"), np.array([1.0, 0.0]))


def test_large_matrices_are_not_stored():
    names = tuple(map(str, range(257)))
    big = Matrix("cosine", np.zeros((257, 256)), names, names[:256])
    assert result_to_json(replace(full_result(), matrices={"big": big}))["matrices"] == {}


def test_unknown_keys_are_ignored():
    entry = run_to_json(a_run())
    entry["later"] = entry["results"][0]["model"]["later"] = entry["subjects"][0]["later"] = 1
    assert plain(run_from_json(entry)) == plain(a_run())


def test_a_run_of_the_first_schema_is_refused_with_the_reason_and_the_next_step(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"clipbench": {"schema": 1, "environment": {}, "results": []}}))
    with pytest.raises(RunFormatError) as error:
        read_run(path)
    assert str(error.value) == (
        f"{path} has run schema 1, this clipbench reads 2: it stores evidence that an older run does not have; "
        "measure again with this version (a baseline: remove the file first)"
    )


WHOLE = dump_json({"clipbench": run_to_json(a_run())})
FULL = 2  # the place of the full result


def changed(change):
    entry = json.loads(WHOLE)
    change(entry["clipbench"]["results"][FULL])
    return json.dumps(entry)


def put(*place, value):
    """A change of one value of the full result."""

    def change(result):
        for key in place[:-1]:
            result = result[key]
        result[place[-1]] = value

    return change


def column(array, dtype="<i4"):
    from clipbench.storage import _pack

    return _pack(np.array(array), dtype)


TEXT_TO_IMAGE = ("answers", "text_to_image")
IMAGE_EVIDENCE = ("evidence", "images")
DAMAGES = {
    "no base64": (put(*TEXT_TO_IMAGE, "top", "base64", value="@@@@"), "a column is damaged: Only base64"),
    "cut base64": (put(*TEXT_TO_IMAGE, "top", "base64", value="AAAA"), "a column has 3 bytes of <u2 for shape (3, 2)"),
    "another shape": (put(*TEXT_TO_IMAGE, "top", "shape", value=[4, 2]), "bytes of <u2 for shape (4, 2)"),
    "not deflated": (put(*TEXT_TO_IMAGE, "top", "deflated", value=True), "a column is damaged: Error -3"),
    "a huge shape": (put(*TEXT_TO_IMAGE, "top", "shape", value=[1 << 30, 2]), "more than 268,435,456 bytes"),
    "a shape below zero": (put(*TEXT_TO_IMAGE, "top", "shape", value=[-3, -2]), "shape"),
    "another dtype": (put(*TEXT_TO_IMAGE, "top", "dtype", value="O"), "dtype"),
    "fewer scores": (put(*TEXT_TO_IMAGE, "scores", value=column([[1.0, 1.0]], "<f4")), "do not fit their queries"),
    "fewer margins": (put(*TEXT_TO_IMAGE, "margins", value=column([1.0], "<f4")), "do not fit their queries"),
    "a label too high": (put(*TEXT_TO_IMAGE, "labels", value=column([0, 0, 2])), "do not fit their queries"),
    "a label below zero": (put(*TEXT_TO_IMAGE, "labels", value=column([0, 0, -1])), "do not fit their queries"),
    "a pick too high": (put(*TEXT_TO_IMAGE, "top", value=column([[0, 1], [1, 0], [2, 0]])), "do not fit their queries"),
    "fewer groups": (put(*TEXT_TO_IMAGE, "groups", value=["x"]), "do not fit their queries"),
    "fewer languages": (put(*TEXT_TO_IMAGE, "languages", value=["x"]), "do not fit their queries"),
    "an unknown list": (put(*TEXT_TO_IMAGE, "ids", value="nobody"), "KeyError: 'nobody'"),
    "fewer hashes": (put(*IMAGE_EVIDENCE, "contents", value=column([1], "<u8")), "evidence does not fit its items"),
    "fewer sketches": (put(*IMAGE_EVIDENCE, "sketches", value=column([[1]], "<i2")), "evidence does not fit its items"),
    "fewer pixels": (put(*IMAGE_EVIDENCE, "pixels", value=column([1], "<u8")), "evidence does not fit its items"),
    "a ragged matrix": (put("matrices", "similarity", "values", value=[[1], [1, 2], [1, 2]]), "the file is damaged"),
    "a smaller matrix": (put("matrices", "similarity", "values", value=[[1, 2]]), "a matrix is (1, 2) for 3 rows"),
    "fewer outcomes": (put("items", "by_text", value=[1, 0]), "2 outcomes for 3 ids"),
    "fewer clusters": (put("items", "clusters", "text_ids", value=["i1"]), "3 outcomes for 3 ids"),
    "an id twice": (put("items", "text_ids", value=["a", "a", "b"]), "has the id 'a' more than once"),
    "another value": (put("metrics", "by_image", "value", value=0.5), "its 2 outcomes average to 0.625"),
    "another n": (put("metrics", "by_image", "n", value=3), "by_image is 0.625 at n=3, and its 2 outcomes average to"),
    "infinity": (put("metrics", "by_image", "low", value=10**400), "by_image is no finite number"),
    "a value that is a word": (put("metrics", "by_image", "value", value="three"), "metrics.by_image.value"),
    "a verdict that is none": (put("verdicts", 0, "verdict", value="maybe"), "verdicts.0.verdict"),
}


@pytest.mark.fault("a run file that lies")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_column_or_value_is_refused_in_one_line(tmp_path, name):
    change, words = DAMAGES[name]
    path = tmp_path / "broken.json"
    path.write_text(changed(change))
    with pytest.raises(RunFormatError) as error:
        read_run(path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


BROKEN = {
    "not JSON": "hello",
    "cut short": WHOLE[: len(WHOLE) // 2],
    "is no run": "[]",
    "without the key": '{"benchmarks": []}',
    "run schema 3": WHOLE.replace('"schema": 2', '"schema": 3'),
    "finite numbers only": WHOLE.replace('"value": 3', '"value": NaN'),
}


@pytest.mark.fault("a run file that lies")
@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_run_file_gets_one_line_that_names_it(tmp_path, words):
    path = tmp_path / "broken.json"
    path.write_text(BROKEN[words])
    with pytest.raises(RunFormatError) as error:
        read_run(path)
    assert words in str(error.value)
    assert "broken.json" in str(error.value)
    assert "\n" not in str(error.value)


def nodes(entry, place=()):
    """Every place of a JSON value."""
    yield place
    for key, value in entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ():
        yield from nodes(value, (*place, key))


@pytest.mark.fault("a run file that lies")
def test_a_value_of_another_type_is_refused_or_read_wherever_it_stands(tmp_path, record_property):
    whole, path = (
        json.loads(dump_json({"clipbench": run_to_json(replace(a_run(), results=(full_result(),)))})),
        tmp_path / "broken.json",
    )
    places, refused = list(nodes(whole["clipbench"])), 0
    record_property("tries", len(places))
    for place, value in zip(places, cycle([None, 3, "x", [], {}, -1.5, [[]]]), strict=False):
        entry = copy.deepcopy(whole)
        target = entry
        for key in ("clipbench", *place)[:-1]:
            target = target[key]
        target[("clipbench", *place)[-1]] = value
        path.write_text(json.dumps(entry))
        try:
            read_run(path)
        except RunFormatError:
            refused += 1
    assert refused > 100


def test_a_missing_run_file_is_named(tmp_path):
    with pytest.raises(RunFormatError, match=r"gone\.json is not there"):
        read_run(tmp_path / "gone.json")


@pytest.mark.fault("files that cannot be written")
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "run.json"
    write_atomically(path, "first")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


@given(
    st.dictionaries(st.text(min_size=1).map("m".__add__), st.floats(allow_nan=False, allow_infinity=False), max_size=5)
)
def test_every_finite_value_survives_the_json(values):
    scores = {k: Score(MetricSpec(k, "mean"), v, 1) for k, v in values.items()}
    result = Result("e", ModelIdentity("m", "p"), DatasetIdentity("d", "f", 1), Protocol(), scores)
    entry = json.loads(dump_json(run_to_json(Run({}, (result,)))))
    assert {k: s.value for k, s in run_from_json(entry).results[0].scores.items()} == values
