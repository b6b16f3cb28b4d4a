"""`clipbench ab`: processes that take turns. Most are fakes that say known times; one is the real worker, on a fake model."""

import io
import json
import sys
from functools import partial

import pytest

from clipbench.ab import (
    AbError,
    Worker,
    ab_json,
    ab_text,
    check_request,
    compare_speed,
    find_python,
    measure_once,
    read_options,
    serve,
)
from clipbench.cli import main, split_passed
from clipbench.errors import UsageError

FAKE = '''
"""Speaks the worker's protocol with times made up: a tenth of a second by the slowness given, with a little noise."""
import json, os, random, sys
label, slowness, log, extra = sys.argv[1], float(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
noise = random.Random(label + str(os.path.getsize(log) if os.path.exists(log) else 0))
hello = {
    "protocol": 1, "batch": 4, "peak_memory_bytes": 1000 * slowness,
    "model": {"name": "fake", "weights_sha256": "", "precision": "fp32", "device": "cpu"},
    "environment": {"software": {"torch": "2.0"}, "machine": {"processor": "a test", "threads": 1}},
    "seconds": {m: 0.1 for m in ("images_per_second", "texts_per_second", "latency_p50")},
}
for key, value in extra.items():
    hello[key] = {**hello[key], **value} if isinstance(value, dict) else value
print("a library's greeting", file=sys.stderr)
if "silent" in extra:
    sys.exit()
if "crash" in extra:
    raise RuntimeError("the driver is gone")
print(json.dumps(hello), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open(log, "a") as file:
        file.write(label[0].upper())
    print(json.dumps({"seconds": [0.1 * slowness * noise.uniform(0.99, 1.01)] * asked["calls"]}), flush=True)
    if "quit" in extra:
        sys.exit("out of memory")
'''

MEAN = """
import numpy as np
class Mean:
    def encode_images(self, images):
        return np.stack([np.asarray(i, dtype=float).mean(axis=(0, 1)) for i in images])
    def encode_texts(self, texts):
        return np.array([[len(t), 1.0, 2.0] for t in texts])
"""


@pytest.fixture
def ab(tmp_path):
    """Compare two fakes; return the report. `order` of the file they wrote is in tmp_path/log."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def call(base=1.0, head=1.0, rounds=3, turns=4, base_extra=None, head_extra=None):
        def start(label, slowness, extra):
            options = (label, str(slowness), str(tmp_path / "log"), json.dumps(extra or {}))
            return partial(Worker, label, sys.executable, options, (str(script),))

        sides = {"base": start("base", base, base_extra), "head": start("head", head, head_extra)}
        return compare_speed(sides, rounds, 0.05, lambda line: None, turns)

    return call


def by_metric(report):
    return {ratio.metric: ratio for ratio in report.metrics}


def test_a_known_slowdown_is_shown_and_fails_beyond_the_tolerance(ab):
    report = ab(head=1.10)
    found = by_metric(report)
    assert found["images_per_second"].ratio == pytest.approx(1 / 1.10, rel=0.02)
    assert found["latency_p50"].ratio == pytest.approx(1.10, rel=0.02)
    assert found["peak_memory_bytes"].ratio == pytest.approx(1.10)
    assert {r.direction for r in report.metrics} == {"worse"}
    assert (report.verdict, report.exit_code) == ("fail", 1)


def test_equal_sides_pass(ab):
    report = ab()
    assert (report.verdict, report.exit_code) == ("pass", 0)
    assert by_metric(report)["texts_per_second"].base == pytest.approx(40, rel=0.02)


def test_a_faster_head_passes_and_says_so(ab):
    report = ab(head=0.8)
    assert report.verdict == "pass"
    assert ab_text(report).count("% faster") == 3
    assert "20.0% less" in ab_text(report)


def test_a_loss_on_the_tolerance_is_undecided_and_names_the_way_out(ab):
    report = ab(head=1.051, head_extra={"peak_memory_bytes": 1000})
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "--rounds" in ab_text(report)


def test_the_processes_take_turns_and_each_round_starts_with_the_other_side(ab, tmp_path):
    ab(rounds=2, turns=4)
    assert (tmp_path / "log").read_text() == "BHHBBHHB" * 3 + "HBBHHBBH" * 3


def test_memory_that_cannot_be_counted_is_absent(ab):
    assert "peak_memory_bytes" not in by_metric(ab(base_extra={"peak_memory_bytes": None}))


def test_what_differs_between_the_sides_is_said(ab):
    report = ab(head_extra={"environment": {"software": {"torch": "2.1", "timm": "1.0"}, "machine": {"threads": 1}}})
    assert report.differences()["torch"] == ("2.0", "2.1")
    assert report.differences()["timm"] == ("absent", "1.0")
    assert "torch 2.0 -> 2.1" in ab_text(report)


def test_the_json_holds_the_verdict_each_round_and_both_sides(ab):
    entry = json.loads(ab_json(ab(rounds=3)))
    assert (entry["verdict"], entry["exit_code"], len(entry["metrics"][0]["rounds"])) == ("pass", 0, 3)
    assert entry["base"]["environment"]["software"]["torch"] == "2.0"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"crash": True}, r"head \(.*\) ended with code 1: RuntimeError: the driver is gone"),
        ({"quit": True}, r"head \(.*\) ended with code 1: out of memory"),
        ({"error": "no weights for ViT-B/16"}, r"head \(.*\): no weights for ViT-B/16"),
        ({"protocol": 2}, "clipbench of another version"),
        ({"silent": True}, "clipbench of another version"),
        ({"batch": 8}, "base runs with batch 4, head with 8"),
        ({"model": {"device": "cuda"}}, "base runs with device cpu, head with cuda"),
    ],
)
def test_a_side_that_fails_or_does_other_work_ends_it_with_one_line(ab, extra, words):
    with pytest.raises(AbError, match=words) as error:
        ab(head_extra=extra)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coco", "x"], "unrecognized arguments: --coco x"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--batch-size", "many"], "invalid int value"),
    ],
)
def test_an_option_that_is_not_the_worker_s_is_refused_before_anything_starts(options, words):
    with pytest.raises(UsageError, match=words):
        check_request(options, 3, 0.05)


def test_arguments_after_the_dashes_go_to_the_processes():
    assert split_passed(["ab", "--base", "a", "--", "--model", "lite"]) == (["ab", "--base", "a"], ["--model", "lite"])
    assert split_passed(["compare", "a", "--", "b"]) == (["compare", "a", "--", "b"], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--head", "no-such-python"], "--head no-such-python: no such program"),
        (["--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--tolerance", "2"], "--tolerance 2.0: expected a fraction"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2_and_one_line(capsys, arguments, words):
    assert main(["ab", "--base", sys.executable, "--head", sys.executable, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_environment_without_clipbench_is_exit_code_2_and_says_what_is_missing(tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    assert main(["ab", "--base", str(bare), "--head", str(bare)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"clipbench: error: base ({bare}) ended with code 1")
    assert "No module named 'clipbench'" in last


def test_a_relative_path_and_a_name_on_the_path_find_the_interpreter_without_following_links(tmp_path, monkeypatch):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert find_python("base", "./python") == str(link)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python("base", "python") == str(link)


def test_the_real_worker_says_what_it_is_and_times_as_many_calls_as_asked(tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    (tmp_path / "ab_encoder.py").write_text(MEAN)
    monkeypatch.syspath_prepend(tmp_path)
    asked = [
        {"do": "images_per_second", "calls": 2},
        {"do": "texts_per_second", "calls": 1},
        {"do": "latency_p50", "calls": 3},
    ]
    answers = io.StringIO()
    source = io.StringIO("".join(json.dumps(entry) + "\n" for entry in asked))
    assert serve(["--model", "ab_encoder:Mean", "--device", "cpu", "--batch-size", "3"], source, answers) == 0
    hello, *timed = (json.loads(line) for line in answers.getvalue().splitlines())
    assert (hello["protocol"], hello["batch"], hello["model"]["name"]) == (1, 3, "ab_encoder:Mean")
    assert "torch" in hello["environment"]["software"]
    assert [len(t["seconds"]) for t in timed] == [2, 1, 3]


def test_a_process_that_measures_once_gives_each_metric_as_seconds_or_bytes(tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    (tmp_path / "ab_other.py").write_text(MEAN)
    monkeypatch.syspath_prepend(tmp_path)
    answers = io.StringIO()
    assert measure_once(["--model", "ab_other:Mean", "--device", "cpu"], answers) == 0
    found = json.loads(answers.getvalue())
    assert {"images_per_second", "texts_per_second", "latency_p50", "memory_growth_bytes"} <= found.keys()
    assert all(value >= 0 for value in found.values())
    answers = io.StringIO()
    assert measure_once(["--model", "ViT-B/61"], answers) == 1
    assert "closest" in json.loads(answers.getvalue())["error"]


def test_the_real_worker_answers_a_model_that_it_does_not_know_in_one_line():
    answers = io.StringIO()
    assert serve(["--model", "ViT-B/61", "--device", "cpu"], io.StringIO(), answers) == 1
    assert "closest: ViT-B/16" in json.loads(answers.getvalue())["error"]


def test_the_worker_s_options_are_those_of_pytest_benchmarks():
    options = read_options(["--model", "RN50", "--precision", "bf16", "--batch-size", "2"])
    assert (options.model, options.precision, options.batch_size, options.device) == ("RN50", "bf16", 2, "auto")
