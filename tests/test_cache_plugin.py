"""`--no-optimizations` and `--cache` as a user meets them: asked for, named in the header, never followed by a gate that did not ask."""

import json
import subprocess
import sys

import pytest

from clipbench.embed.rows import TOLERANCE
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
def test_the_header_says_that_no_shortcut_is_taken(run, monkeypatch, option):
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


def test_a_second_session_runs_without_torch_and_says_so_of_every_row(tmp_path):
    pytest.importorskip("skimage", reason="the packaged pictures are scikit-image's")
    program = (
        "import sys, pytest; code = pytest.main(sys.argv[1:]); "
        "print('HEAVY', [m for m in ('torch', 'open_clip', 'transformers') if m in sys.modules]); sys.exit(code)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(benchmarks() / "test_natural_labels.py"),
        "--model",
        "lite",
        "--device",
        "cpu",
    ]
    heavy, results = [], []
    for _ in range(2):
        done = subprocess.run(
            [*command, "--cache", "cached", "-p", "no:cacheprovider"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        heavy.append(next(line for line in done.stdout.splitlines() if line.startswith("HEAVY")))
        results += json.loads((tmp_path / "results" / "run.json").read_text())["clipbench"]["results"]
    assert "torch" in heavy[0]
    assert heavy[1] == "HEAVY []"
    first, again = results
    assert first["metrics"] == again["metrics"]
    assert again["protocol"]["shortcuts"] == ["cached_rows"]
    assert again["protocol"]["execution"] == {
        "images": {"n": 8, "cached": 8, "unconfirmed": 8, "checked": 0},
        "texts": {"n": 100, "cached": 100, "unconfirmed": 100, "checked": 0},
    }


def test_a_shortcut_that_was_dropped_is_a_note_and_the_session_passes(run, monkeypatch, tiny_models):
    tiny = load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "quickgelu"), "cpu", "fp32", True)
    monkeypatch.setattr("clipbench.session.load_encoder", lambda spec, settings: tiny)
    monkeypatch.setitem(TOLERANCE, "fp32", -1.0)
    result = run("--pretrained", "random", model="ViT-B/32", files=str(benchmarks() / "test_natural_labels.py"))
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*note: shortcut dropped: * made again: with *all made plainly, which is slower*"])


def test_rows_of_a_shortcut_that_was_found_wrong_beside_them_fail_the_session(run, monkeypatch):
    monkeypatch.setattr("clipbench.judge.references.doubtful", lambda run: iter(["coco_crops of x took shortcuts"]))
    result = run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*coco_crops of x took shortcuts*"])
