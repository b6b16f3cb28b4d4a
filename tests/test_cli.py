"""The command line: cheap, and one line for whatever is wrong."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import matching
from paired_runs import INT8, RIGHT, flipped, run_of, scored

import clipbench.cli
from clipbench.cli import _parser, main
from clipbench.experiments import METRIC_VERSION
from clipbench.judge.references import judge
from clipbench.models.zoo import profiles, zoo
from clipbench.paths import file_name
from clipbench.storage import SCHEMA_VERSION, dump_json, run_to_json
from clipbench.types import Run


def test_help_and_models_import_neither_torch_nor_scipy():
    code = (
        "import sys; from clipbench.cli import _parser, main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "main(['models'])\n"
        "print([m for m in ('torch', 'open_clip', 'scipy', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_models_lists_the_nine_the_embedded_one_and_their_downloads(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("lite", "598 MB", *zoo()))


def test_models_all_lists_every_other_architecture(capsys):
    main(["models", "--all"])
    assert "ViT-B-16-SigLIP" in capsys.readouterr().out


def test_report_writes_the_summary_of_a_run_file_again(tmp_path, capsys):
    result = matching(np.eye(8), "abcdefgh", "RN50")
    path = tmp_path / "run.json"
    run = Run({"machine": {}, "software": {}}, (replace(result, verdicts=judge(result)),))
    path.write_text(dump_json({"clipbench": run_to_json(run)}))
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "natural" in text
    assert (tmp_path / "out" / "figures" / file_name(("natural", "RN50 (openai)"), ".png")).exists()


@pytest.mark.fault("a figure that cannot be drawn")
def test_report_names_a_figure_that_cannot_be_drawn_and_files_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def draw(result, dataset):
        raise RuntimeError("latex could not be found")

    path = tmp_path / "run.json"
    run = Run({"machine": {}, "software": {}}, (matching(np.eye(8), "abcdefgh", "RN50"),))
    path.write_text(dump_json({"clipbench": run_to_json(run)}))
    monkeypatch.setattr("clipbench.report.summary.figure_of", draw)
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 0
    assert "no figure: natural of RN50 (openai) on natural: RuntimeError: latex" in capsys.readouterr().err
    assert main(["report", str(path), "-o", str(path)]) == 2
    assert f"error: {path} is not complete: summary.md: " in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"benchmarks": []}'])
def test_report_of_no_run_is_exit_code_2_and_one_line(tmp_path, capsys, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("clipbench: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_command_is_exit_code_2():
    with pytest.raises(SystemExit) as error:
        main(["no-such-command"])
    assert error.value.code == 2


def test_models_say_what_they_cost_what_is_published_and_whether_weights_are_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache/clip").mkdir(parents=True)
    (tmp_path / ".cache/clip/RN50.pt").write_bytes(b"weights")
    assert main(["models", "--format", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    one = rows["RN50"]
    assert (one["tag"], one["params"], one["input"], one["gflops"]) == ("openai", 102_007_137, 224, 18.18)
    assert (one["imagenet"], one["cached"], rows["RN101"]["cached"]) == (0.5982, True, False)
    main(["models"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["name", "tag", "params", "input", "GFLOPs", "dim"]
    (line,) = [line for line in lines if line.startswith("RN50 ")]
    assert line.split()[:7] == ["RN50", "openai", "102,007,137", "224", "18.2", "1024", "0.598"]


@pytest.mark.parametrize(
    "command", [["models"], ["models", "--all"], ["power"], ["power", "--drop", "0.02"], ["cache", "x"]]
)
def test_every_table_is_json_too(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_profile_and_the_card_agree_on_the_parameters():
    for row in zoo().values():
        assert profiles()[row.open_clip].params_millions == pytest.approx(row.params / 1e6, abs=0.01)
        assert profiles()[row.open_clip].image_size == row.image_size


def test_a_shell_completes_commands_and_options():
    argcomplete = pytest.importorskip("argcomplete")
    finder = argcomplete.CompletionFinder(_parser())
    assert finder._get_completions(["clipbench"], "mo", "", None) == ["models "]
    assert "--redact " in finder._get_completions(["clipbench", "report"], "--re", "", None)


def test_report_of_two_runs_says_what_changed_and_of_a_folder_its_history(tmp_path):
    pair = [run_of(scored(hits, **more)) for hits, more in ((RIGHT, {}), (flipped(RIGHT, lost=200), INT8))]
    for k, run in enumerate(pair):
        text = dump_json({"clipbench": run_to_json(replace(run, time=f"2026-01-0{k + 1}"))})
        (tmp_path / f"{k}.json").write_text(text)
    (tmp_path / "notes.json").write_text("[]")
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "0.json"), str(tmp_path / "1.json"), "-o", str(out)]) == 0
    assert "What changed since 0.json" in (out / "summary.md").read_text()
    (tmp_path / "2.json").write_text((tmp_path / "1.json").read_text())
    assert main(["report", str(tmp_path), "-o", str(out)]) == 0
    assert "History of 3 runs" in (out / "summary.md").read_text()
    (tmp_path / "none").mkdir()
    assert main(["report", str(tmp_path / "none"), "-o", str(out)]) == 2


def test_the_version_says_what_its_files_and_metrics_are(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert re.fullmatch(r"clipbench \S.* \(run schema \d+, metrics \d+\)\n", capsys.readouterr().out)


def test_the_policy_of_versions_states_the_current_ones():
    guide = (Path(clipbench.cli.__file__).parent / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"schema **{SCHEMA_VERSION}**" in guide
    assert f"metrics **{METRIC_VERSION}**" in guide
