"""`--no-optimizations` and `--cache` as a user meets them: asked for, named in the header, never followed by a gate that did not ask."""

import json

import pytest

from clipbench.embed.embedder import TOLERANCE
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec
from clipbench.paths import benchmarks

HEADER = "clipbench cache: *cached"


def header(result):
    return [line for line in result.outlines if line.startswith("clipbench ")]


def test_the_header_names_the_cache_that_was_asked_for(run):
    run("--cache", "cached").stdout.fnmatch_lines([HEADER])


def test_without_being_asked_for_there_is_no_cache(run):
    assert not [line for line in header(run()) if "cache" in line]


def test_the_environments_setting_is_followed_outside_of_gates(run, monkeypatch):
    monkeypatch.setenv("CLIPBENCH_CACHE", "cached")
    run().stdout.fnmatch_lines([HEADER])


@pytest.mark.parametrize("gate", ["--require-all", "--baseline", "--anchor"])
def test_a_gate_follows_the_option_and_not_the_environments_setting(run, monkeypatch, gate, pytester):
    run("--benchmark-json", "before.json")
    arguments = [gate] if gate == "--require-all" else [gate, "before.json"]
    monkeypatch.setenv("CLIPBENCH_CACHE", "cached")
    assert not [line for line in header(run(*arguments)) if "cache" in line]
    run(*arguments, "--cache", "cached").stdout.fnmatch_lines([HEADER])


@pytest.mark.parametrize("option", ["--no-optimizations", "--plain"])
def test_the_header_says_that_no_optimization_is_taken(run, monkeypatch, option):
    monkeypatch.setenv("CLIPBENCH_CACHE", "cached")
    lines = header(run(option))
    assert "clipbench rows: every one by the reference path (--no-optimizations)" in lines
    assert not [line for line in lines if "cache" in line]


def test_no_optimizations_and_a_cache_together_are_a_usage_error(run):
    result = run("--no-optimizations", "--cache", "cached")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--cache*--no-optimizations*drop one*"])


def test_a_cache_that_is_a_file_is_a_usage_error_that_names_it(run, pytester):
    (pytester.path / "taken").write_text("")
    result = run("--cache", "taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*taken*"])


@pytest.mark.parametrize("size", ["0", "-1", "nan"])
def test_a_size_that_holds_nothing_is_a_usage_error(run, size):
    assert run("--cache", "cached", "--cache-size", size).ret == pytest.ExitCode.USAGE_ERROR


def test_collecting_makes_no_cache(run, pytester):
    run("--cache", "cached", "--collect-only")
    assert not (pytester.path / "cached").exists()


def test_benchmarks_left_out_by_a_keyword_are_not_called_unfinished(run):
    result = run("-k", "own_caption or nothing_at_all")
    assert "session ended before" not in result.stdout.str()


def test_a_second_session_takes_its_rows_from_the_cache_and_checks_a_sample_of_them(run, pytester, tiny):
    first, again = (
        tiny("--cache", "cached")
        and json.loads((pytester.path / "results" / "run.json").read_text())["clipbench"]["results"][0]
        for _ in range(2)
    )
    assert first["metrics"] == again["metrics"]
    assert first["evidence"] == again["evidence"]
    encoding = again["provenance"]["encoding"]
    assert again["provenance"]["optimizations"] == ["cached_rows"]
    assert {tower: how["cached"] for tower, how in encoding.items()} == {"images": 8, "texts": 100}
    assert all(how["checked"] for how in encoding.values())


@pytest.fixture
def tiny(run, monkeypatch, tiny_models):
    """Run the labels of the natural pictures on a small real model."""

    def load(spec, *how):
        return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu"), "cpu", "fp32", True)

    monkeypatch.setattr("clipbench.session.load_encoder", load)
    files = str(benchmarks() / "test_natural_labels.py")
    return lambda *arguments: run(*arguments, "--pretrained", "random", model="ViT-B/32", files=files)


def test_an_optimization_that_was_dropped_is_a_note_and_the_session_passes(tiny, monkeypatch):
    monkeypatch.setitem(TOLERANCE, "fp32", (-1.0, -1.0))
    result = tiny()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*note: optimization dropped: * encoded again: with *"])
