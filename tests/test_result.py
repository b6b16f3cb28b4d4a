"""The run's JSON: whole, finite, as its schema says, and read back equal."""

import json
import os

import jsonschema
import numpy as np
import pytest
from fakes import card, matching
from hypothesis import given
from hypothesis import strategies as st

from clipbench.result import (
    DatasetIdentity,
    Items,
    Metric,
    ModelIdentity,
    Result,
    Run,
    Skip,
    dump_json,
    run_from_json,
    write_whole,
)
from clipbench.run_file import RunFormatError, read_run, run_schema

ENVIRONMENT = {"machine": {"processor": "test"}, "software": {"torch": "0"}}
NAMES = tuple("abcdefgh")


def a_run():
    return Run(
        ENVIRONMENT,
        (card("RN50", params=3), matching(np.eye(8), NAMES)),
        (Skip("natural", "RN101", "no weights"),),
    )


def write(path, run):
    path.write_text(dump_json({"benchmarks": [], "clipbench": run.to_json()}))
    return path


def test_a_run_read_back_is_the_run_that_was_written(tmp_path):
    assert read_run(write(tmp_path / "run.json", a_run())).to_json() == a_run().to_json()


def test_the_json_validates_against_the_published_schema():
    jsonschema.validate({"clipbench": a_run().to_json()}, run_schema())


@pytest.mark.parametrize("key", ["schema", "environment", "results", "probes", "skipped"])
def test_the_schema_refuses_a_run_without_a_key_of_the_contract(key):
    entry = a_run().to_json()
    del entry[key]
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate({"clipbench": entry}, run_schema())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_never_reach_the_json(value):
    result = matching(np.eye(8), NAMES)
    for broken in (
        Result(result.experiment, result.model, result.dataset, result.protocol, {"x": Metric(value, 1)}),
        Result(result.experiment, result.model, result.dataset, result.protocol, {}, arrays={"a": np.array([[value]])}),
        Result(result.experiment, result.model, result.dataset, result.protocol, {}, Items(("a",), {"x": [value]})),
    ):
        with pytest.raises(ValueError, match=r"natural of ViT-B/32: .*finite"):
            broken.to_json()


def test_outcomes_that_do_not_align_with_their_ids_are_refused():
    with pytest.raises(ValueError, match="2 outcomes for 3 ids"):
        Items(("a", "b", "c"), {"hits": [1, 0]}).to_json()


def test_a_metric_may_align_with_another_id_list(tmp_path):
    items = Items(("i1",), {"hits": [1, 0]}, {"text_ids": ("t1", "t2")}, {"hits": "text_ids"})
    result = Result("r", ModelIdentity("m", "x"), DatasetIdentity("d", "f", 1), a_run().results[0].protocol, {}, items)
    again = read_run(write(tmp_path / "run.json", Run(ENVIRONMENT, (result,)))).results[0]
    assert list(again.items.ids_of("hits")) == ["t1", "t2"]


def test_large_arrays_are_not_stored():
    result = matching(np.eye(8), NAMES)
    big = Result(
        result.experiment, result.model, result.dataset, result.protocol, {}, arrays={"a": np.zeros((257, 256))}
    )
    assert big.to_json()["arrays"] == {}


def test_unknown_keys_are_ignored():
    entry = a_run().to_json()
    entry["later"] = entry["results"][0]["model"]["later"] = 1
    assert run_from_json(entry).to_json() == a_run().to_json()


def broken_texts():
    whole = dump_json({"clipbench": a_run().to_json()})
    other = json.loads(whole)
    other["clipbench"]["schema"] = 2
    twice = json.loads(whole)
    twice["clipbench"]["results"][1]["items"]["ids"][1] = "a"
    short = json.loads(whole)
    short["clipbench"]["results"][1]["items"]["text_to_image_top1"].pop()
    wrong = json.loads(whole)
    wrong["clipbench"]["results"][0]["metrics"]["params"]["value"] = "three"
    return {
        "not JSON": "hello",
        "cut short": whole[: len(whole) // 2],
        "no run": "[]",
        "without the key": '{"benchmarks": []}',
        "run schema 2": json.dumps(other),
        "more than once": json.dumps(twice),
        "7 outcomes for 8 ids": json.dumps(short),
        "metrics.params.value": json.dumps(wrong),
        "finite numbers only": whole.replace('"value": 3', '"value": NaN'),
    }


@pytest.mark.parametrize("words", list(broken_texts()))
def test_a_broken_run_file_gets_one_line_that_names_it(tmp_path, words):
    path = tmp_path / "broken.json"
    path.write_text(broken_texts()[words])
    with pytest.raises(RunFormatError) as error:
        read_run(path)
    assert words in str(error.value)
    assert "broken.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_run_file_is_named(tmp_path):
    with pytest.raises(RunFormatError, match=r"gone\.json is not there"):
        read_run(tmp_path / "gone.json")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "run.json"
    write_whole(path, "first")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


@given(st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_every_finite_metric_survives_the_json(values):
    result = Result(
        "e", ModelIdentity("m", "p"), DatasetIdentity("d", "f", 1), {}, {k: Metric(v, 1) for k, v in values.items()}
    )
    entry = json.loads(dump_json(Run({}, (result,)).to_json()))
    assert {k: m.value for k, m in run_from_json(entry).results[0].metrics.items()} == values
