"""The plugin, run through pytest on the real benchmark files with encoders whose answers are known."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from running import ENCODERS, NATURAL

from clipbench.errors import DataError
from clipbench.judge.references import Floor
from clipbench.models import load_encoder
from clipbench.paths import benchmarks, file_name
from clipbench.pytest_plugin import BenchmarkSession
from clipbench.storage import read_run, run_schema


@pytest.fixture
def floor(monkeypatch):
    """Hold every encoder of the tests to a perfect diagonal."""
    names = [f"known_encoders:{n}" for n in ("Oracle", "Swapped", "Nan")]
    metrics = ["text_to_image_top1", "image_to_text_top1"]
    row = Floor("natural", "natural", names, "factory", metrics, 1.0, "the tests' own claim")
    monkeypatch.setattr("clipbench.judge.references.floors", lambda: (row,))


def run_json(pytester, path="results/run.json"):
    return json.loads((pytester.path / path).read_text())


def test_a_model_that_meets_its_floor_passes_and_leaves_a_run(run, floor, pytester):
    result = run()
    result.assert_outcomes(passed=4)
    entry = run_json(pytester)
    jsonschema.validate(entry, run_schema())
    (natural,) = entry["clipbench"]["results"]
    assert natural["metrics"]["text_to_image_top1"]["value"] == 1
    assert [(v["kind"], v["verdict"]) for v in natural["verdicts"]] == [("floor", "pass")] * 2 + [
        ("contract", "pass")
    ] * 2
    assert "benchmarks" in entry
    assert "machine_info" in entry
    for name in ("summary.md", "summary.html", f"figures/{file_name(('natural', 'known_encoders:Oracle'), '.png')}"):
        assert (pytester.path / "results" / name).stat().st_size > 500


def test_a_model_below_its_floor_fails_with_the_items_it_missed_and_still_leaves_a_run(run, floor, pytester):
    result = run(model="known_encoders:Swapped")
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(["*text_to_image_top1 is 0.75 at n=8, the floor is 1; missed: page, chelsea*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.fnmatch_lines(["FAIL: 2 pass, 2 fail*"])
    assert run_json(pytester)["clipbench"]["results"]


def test_a_session_uses_nothing_that_pytest_deprecates(run):
    run("-W", "error::pytest.PytestDeprecationWarning").assert_outcomes(passed=4)


def test_each_model_loads_once(run, monkeypatch):
    loads = []
    monkeypatch.setattr(
        "clipbench.session.load_encoder", lambda spec, *how: loads.append(spec.name) or load_encoder(spec, *how)
    )
    run(model=["known_encoders:Oracle,known_encoders:Swapped", "known_encoders:Oracle"])
    assert loads == ["known_encoders:Oracle", "known_encoders:Swapped"]


def test_a_failing_model_keeps_the_others_results(run, floor, pytester):
    result = run(model=["known_encoders:Oracle,known_encoders:Nan", "known_encoders:Swapped"])
    result.assert_outcomes(passed=6, failed=6)
    names = [r["model"]["name"] for r in run_json(pytester)["clipbench"]["results"]]
    assert names == ["known_encoders:Oracle", "known_encoders:Swapped"]
    result.stdout.fnmatch_lines(["*known_encoders:Nan: encode_texts returned NaN for input 0*"])


def test_a_model_that_cannot_load_fails_once_and_its_other_tests_skip_naming_that(run):
    result = run(model=["known_encoders:broken", "known_encoders:Oracle"])
    result.assert_outcomes(failed=1, skipped=3, passed=4)
    result.stdout.fnmatch_lines(["*the factory failed: RuntimeError: this factory cannot build its encoder*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.fault("an encoder or plugin that leaves")
def test_a_model_that_cannot_load_fails_the_session_even_where_its_failing_test_is_forgotten(run, pytester):
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.failed:  # what a plugin that reruns failing tests does with the first attempt
                report.outcome = "skipped"
                report.longrepr = (__file__, 1, "rerun")
            return report
        """
    )
    pytester.makepyfile(test_own="def test_own(): pass")
    result = run(model="known_encoders:broken", files=NATURAL)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_encoder_that_raises_is_measured_once_and_noted_in_the_run(run, pytester):
    result = run(model=["known_encoders:Raising", "known_encoders:Oracle"])
    result.assert_outcomes(failed=1, skipped=3, passed=4)
    result.stdout.fnmatch_lines(["*ArithmeticError: no row today*"])
    skipped = run_json(pytester)["clipbench"]["skipped"]
    assert any("natural of known_encoders:Raising did not finish" in s["reason"] for s in skipped)


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only"])
def test_a_plan_measures_nothing_and_leaves_the_last_run_alone(run, pytester, option):
    run(option)
    assert not (pytester.path / "results").exists()


@pytest.mark.fault("a session that is ended")
def test_an_interrupt_keeps_what_was_measured(run, pytester):
    result = run(model=["known_encoders:Oracle", "known_encoders:Interrupted"], no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    names = [r["model"]["name"] for r in run_json(pytester)["clipbench"]["results"]]
    assert names == ["known_encoders:Oracle"]
    assert "ended before" in (pytester.path / "results" / "summary.md").read_text()
    skipped = run_json(pytester)["clipbench"]["skipped"]
    assert {s["experiment"] for s in skipped if s["model"] == "known_encoders:Interrupted"} == {"natural"}
    assert any("did not finish: the session was interrupted" in s["reason"] for s in skipped)
    result.stdout.no_fnmatch_line("PASS:*")


def test_benchmark_json_is_written_with_its_parents_though_nothing_was_timed(run, pytester):
    run("--benchmark-json", "deep/er/run.json")
    assert read_run(pytester.path / "deep/er/run.json").results
    assert run_json(pytester, "deep/er/run.json")["benchmarks"] == []


def test_timed_tests_land_in_pytest_benchmarks_part_and_in_the_speed_result(run, pytester):
    result = run("--benchmark-json", "run.json", files=str(benchmarks() / "test_speed.py"))
    result.assert_outcomes(passed=3)
    entry = run_json(pytester, "run.json")
    assert [b["params"]["subject"] for b in entry["benchmarks"]] == ["known_encoders:Oracle"] * 2
    (speed,) = entry["clipbench"]["results"]
    assert {"images_per_second", "texts_per_second", "latency_p50"} <= speed["metrics"].keys()


def test_pytest_benchmark_compare_reads_a_run(run, pytester):
    run("--benchmark-json", "run.json", files=str(benchmarks() / "test_speed.py"))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "run.json"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "test_images_per_second" in done.stdout


def test_what_pytest_benchmark_saves_and_compares_carries_the_run(run, pytester):
    speed, storage = str(benchmarks() / "test_speed.py"), f"--benchmark-storage=file://{pytester.path}/store"
    run("--benchmark-save=first", storage, files=speed).assert_outcomes(passed=3)
    (saved,) = (pytester.path / "store").rglob("*_first.json")
    assert read_run(saved).results
    again = run("--benchmark-compare=0001", storage, files=speed)
    for row in ("(0001_first)", "(NOW)"):  # the faster one first, whichever that is
        again.stdout.fnmatch_lines([f"*test_images_per_second*{row}*"])


def test_disabled_timing_is_a_skip_and_under_require_all_a_failure(run):
    speed = str(benchmarks() / "test_speed.py")
    run("--benchmark-disable", files=speed).assert_outcomes(passed=1, skipped=2)
    run("--benchmark-disable", "--require-all", files=speed).assert_outcomes(passed=1, failed=2)


def test_collecting_leaves_no_files_and_loads_nothing(run, pytester):
    result = run("--collect-only", "-q", model="known_encoders:broken")
    assert result.ret == 0
    assert not (pytester.path / "results").exists()


def test_sessions_without_benchmarks_leave_no_files(pytester):
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest_inprocess("-p", "clipbench.pytest_plugin").assert_outcomes(passed=1)
    assert not (pytester.path / "results").exists()


@pytest.mark.fault("options that cannot be meant")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "ViT-B/61"], "closest: ViT-B/16"),
        (["--model", "ViT-B/16", "--pretrained", "missing.pt"], "missing.pt is not there"),
        (["--model", "ViT-B/16,RN50", "--pretrained", "known_encoders.py"], "one checkpoint, but 2 models"),
        (["--pretrained", "random"], "brings its own weights"),
        (["--device", "gpu"], "expected auto, cpu, cuda"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--precision", "int8"], "invalid choice"),
        (["--batch-size", "0"], "expected 1 or more"),
        (["--workers", "-1"], "expected 0 or more"),
        (["--results", "known_encoders.py"], "is a file; give a folder"),
        (["--model", "no_such_module:make"], "cannot import 'no_such_module'"),
        (["-n", "2"], "cannot run under xdist"),
        (["--dist", "load"], "cannot run under xdist"),
        (["--model", "broken_module:make"], "cannot import 'broken_module': ZeroDivisionError"),
        (["--model", "RN50", "--pretrained", "~nosuchuser/x.pt"], "cannot be a path"),
        (["--model", "RN50", "--pretrained", "./" + "b" * 300], "cannot be a path"),
        (["--model", "RN50", "--pretrained", ""], "empty value"),
        (["--results", "~nosuchuser/r"], "cannot be a path"),
        (["--zero-shot", "own=~nosuchuser/r"], "cannot be a path"),
        (["--results", "known_encoders.py/sub"], "is no folder that can be written to"),
        (["--benchmark-json", "."], "is a folder; give a file"),
        (["-p", "no:benchmark"], "need pytest-benchmark"),
        (["--require-all", "--benchmark-skip"], "does not go with --benchmark-skip"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_a_usage_error_before_anything_runs(pytester, arguments, words):
    pytester.makepyfile(known_encoders=ENCODERS, broken_module="1 / 0")
    result = pytester.runpytest_inprocess(NATURAL, "-p", "no:cacheprovider", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str() + result.stdout.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert not (pytester.path / "results").exists()


@pytest.fixture
def tiny_vit(tiny_models, pytester, monkeypatch):
    """Run the natural benchmarks on the tiny ViT with weights that these options name; return the result."""
    known = dict.fromkeys(("tiny-vit", "tiny-vit-quickgelu"), Path("unused"))
    monkeypatch.setattr("clipbench.models.zoo.open_clip_configs", lambda: known)

    def call(*arguments):
        command = (NATURAL, "--model", "tiny-vit", *arguments, "--device", "cpu", "-p", "no:cacheprovider")
        return pytester.runpytest_inprocess(*command)

    return call


def test_random_weights_are_measured_but_not_judged_and_under_require_all_that_fails(tiny_vit, pytester):
    result = tiny_vit("--pretrained", "random")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["MEASURED, NOT JUDGED: natural of tiny-vit (random*); 0 pass, 0 fail, 0 inconclusive"])
    entry = run_json(pytester)["clipbench"]
    assert "similarity" in entry["results"][0]["matrices"]
    assert entry["skipped"] == []
    required = tiny_vit("--pretrained", "random", "--require-all")
    required.assert_outcomes(passed=4)
    assert required.ret == pytest.ExitCode.TESTS_FAILED
    required.stdout.fnmatch_lines(["FAIL: *", "FAIL: tiny-vit (random*) was measured and held to no reference*"])


def test_a_checkpoint_of_random_values_is_not_better_than_chance_and_no_pass(tiny_vit, pytester):
    import open_clip
    import torch

    torch.manual_seed(3)
    torch.save(open_clip.create_model("tiny-vit").state_dict(), pytester.path / "base.pt")
    arguments = ("--pretrained", "base.pt", "--activation", "gelu")
    result = tiny_vit(*arguments)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "INCONCLUSIVE: 1 pass, 0 fail, 2 inconclusive*",
            "  inconclusive: natural of tiny-vit (*base.pt) on natural: text_to_image_top1 is 0* at n=8, not shown to be better "
            "than chance, which is 0.125 (*4 of 8 would be)*",
        ]
    )
    assert tiny_vit(*arguments, "--require-all").ret == pytest.ExitCode.TESTS_FAILED


def test_an_encoder_that_only_a_contract_speaks_of_passes_in_part_and_satisfies_require_all(run):
    result = run("--require-all")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["PASS IN PART: 2 pass, 0 fail, 0 inconclusive; held to a contract alone: known_encoders:Oracle"]
    )


def test_what_no_reference_speaks_of_passes_as_measured_and_fails_under_require_all(run):
    labels = str(benchmarks() / "test_speed.py")
    result = run("-k", "latency", files=labels)
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["MEASURED, NOT JUDGED: speed of known_encoders:Oracle; 0 pass*"])
    assert run("-k", "latency", "--require-all", files=labels).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.fault("no network")
def test_weights_that_cannot_be_had_skip_with_the_ways_out_and_under_require_all_fail(pytester, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = (NATURAL, "--model", "ViT-B/16", "--offline", "--device", "cpu", "-p", "no:cacheprovider")
    result = pytester.runpytest_inprocess(*arguments, "-rs")
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(
        ["*no weights for ViT-B/16 with the tag 'openai' (offline)*--pretrained PATH*--model lite*"]
    )
    result.stdout.fnmatch_lines(
        ["NOTHING WAS MEASURED: natural of ViT-B/16", "  skipped: natural of ViT-B/16: no weights*"]
    )
    assert run_json(pytester)["clipbench"]["skipped"]
    pytester.runpytest_inprocess(*arguments, "--require-all").assert_outcomes(failed=4)


@pytest.mark.fault("what is no checkpoint")
def test_a_corrupt_checkpoint_fails_once_by_name_without_a_traceback(pytester):
    (pytester.path / "weights.pt").write_bytes(b"<html>not a checkpoint</html>")
    arguments = (
        "--model",
        "ViT-B/16",
        "--pretrained",
        "weights.pt",
        "--device",
        "cpu",
        "-p",
        "no:cacheprovider",
        "-rs",
    )
    result = pytester.runpytest_inprocess(NATURAL, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["*weights.pt*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.fault("files that cannot be written")
def test_results_that_cannot_be_written_fail_the_session(run, floor, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipbench.storage.write_atomically", full)
    result = run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: the run's files could not be written*No space left on device*"])


@pytest.mark.fault("a figure that cannot be drawn")
def test_a_figure_that_cannot_be_drawn_costs_neither_the_summary_nor_the_session(run, floor, monkeypatch, pytester):
    def draw(result, dataset):
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("clipbench.report.summary.figure_of", draw)
    result = run()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["NOTE: no figure: natural of *: RuntimeError: latex could not be found"])
    assert "latex could not be found" in (pytester.path / "results/summary.md").read_text()


def test_the_header_says_what_will_run(run):
    result = run("--precision", "bf16", "--batch-size", "3", "--workers", "2")
    result.stdout.fnmatch_lines(
        [
            "clipbench model: known_encoders:Oracle, your own encoder",
            "clipbench device: cpu, precision bf16, batch size 3, workers 2",
        ]
    )


def test_collecting_the_benchmarks_imports_no_torch(pytester):
    pytester.makepyfile(
        probe="""
        import sys
        import pytest
        code = pytest.main(["--collect-only", "-q", sys.argv[1], "-p", "no:cacheprovider"])
        heavy = [m for m in ("torch", "open_clip", "transformers", "scipy.stats", "matplotlib") if m in sys.modules]
        print("EXIT", int(code), "HEAVY", heavy)
        """
    )
    done = subprocess.run(
        [sys.executable, "probe.py", str(benchmarks())], cwd=pytester.path, capture_output=True, text=True, timeout=120
    )
    assert "EXIT 0 HEAVY []" in done.stdout, done.stdout + done.stderr


@pytest.mark.fault("an error while judging")
def test_every_error_at_the_end_of_a_session_is_named():
    session = object.__new__(BenchmarkSession)
    session._errors = []
    with session._surviving("ranking the models"):
        raise ZeroDivisionError("by zero")
    with session._surviving("judging natural"):
        raise DataError("no such table")
    assert session._errors == ["ranking the models: ZeroDivisionError: by zero", "judging natural: no such table"]


def test_codspeed_is_answered_in_one_line(run, pytester):
    pytester.makepyfile(codspeed="def pytest_addoption(parser): parser.addoption('--codspeed', action='store_true')")
    done = run("-p", "codspeed", "--codspeed")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: CodSpeed takes the place of pytest-benchmark*run them without --codspeed*"])


@pytest.mark.fault("files that cannot be written")
def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(run):
    done = run("--results", "/proc/nowhere")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(
        ["*/proc/nowhere cannot be written: /proc is no folder that can be written to*choose another*"]
    )
