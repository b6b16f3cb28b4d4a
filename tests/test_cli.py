"""The command line: cheap, and one line for whatever is wrong."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import matching

import clipbench.cli
from clipbench.cli import main
from clipbench.experiments import METRIC_VERSION
from clipbench.judge.references import judge
from clipbench.models.zoo import zoo
from clipbench.paths import file_name
from clipbench.storage import SCHEMA_VERSION, dump_json, run_to_json
from clipbench.types import Run


def test_help_and_models_import_neither_torch_nor_scipy():
    code = (
        "import sys; from clipbench.cli import main\n"
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


def test_the_version_says_what_its_files_and_metrics_are(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert re.fullmatch(r"clipbench \S.* \(run schema \d+, metrics \d+\)\n", capsys.readouterr().out)


def test_the_policy_of_versions_states_the_current_ones():
    guide = (Path(clipbench.cli.__file__).parent / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"schema **{SCHEMA_VERSION}**" in guide
    assert f"metrics **{METRIC_VERSION}**" in guide
