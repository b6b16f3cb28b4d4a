"""Any labelled folder: read with its class names and templates, scored, and run through the plugin."""

import json

import pytest
from fakes import custom, load, measure
from planted import PlantedEncoder, paint

from clipbench.errors import UsageError
from clipbench.experiments import experiment
from clipbench.options import Options
from clipbench.paths import benchmarks, file_name
from clipbench.session import planned, source_of
from clipbench.types import Key

FILES = str(benchmarks() / "test_zero_shot.py")


@pytest.fixture
def folder(tmp_path):
    for number in range(9):
        paint(tmp_path / "pets" / f"class_{number % 3}" / f"{number}.png", [number])
    return tmp_path / "pets"


def test_each_folder_is_a_data_set_of_the_experiment_with_its_own_templates(folder):
    (folder / "classes.toml").write_text('templates = ["one {}", "two\\n{}"]\n')
    options = Options.from_kwargs(zero_shot={"pets": folder, "more": folder})
    expected = tuple(Key("zero_shot", "lite", name) for name in ("pets", "more"))
    assert planned(["lite"], ["zero_shot"], options) == expected
    result = measure("zero_shot", custom(PlantedEncoder()), load("zero_shot", zero_shot=f"pets={folder}"))
    assert result.key == Key("zero_shot", "fake", "pets")
    assert result.protocol.prompts == ("one {}", "two\n{}")
    assert result.protocol.classes == ("class 0", "class 1", "class 2")
    assert set(result.scores) == {"acc1", "mean_per_class_recall"}


def test_shipped_names_bring_their_names_and_templates(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / name / "0.png", [1])
    result = measure("zero_shot", custom(PlantedEncoder()), load("zero_shot", zero_shot={"cifar10": tmp_path}))
    assert len(result.protocol.prompts) == 18
    assert len(result.protocol.classes) == 10
    assert result.provenance.exclusions["classes_without_items"] == 8


def test_without_a_folder_there_is_nothing_to_measure():
    assert planned(["lite"], ["zero_shot"], Options()) == ()
    with pytest.raises(UsageError, match=r"zero_shot has no data set 'pets' \(it has none\); .*--zero-shot NAME=ROOT"):
        source_of(experiment("zero_shot"), "pets", Options())


@pytest.fixture
def run(pytester):
    pytester.makepyfile(planted_model="from planted import PlantedEncoder as Model")
    pytester.syspathinsert()

    def call(*arguments):
        command = (FILES, "--model", "planted_model:Model", "--device", "cpu", "-p", "no:cacheprovider", "-rs")
        return pytester.runpytest_inprocess(*command, *arguments)

    return call


def test_the_plugin_runs_each_folder_and_shows_its_accuracy(run, folder, pytester):
    result = run("--zero-shot", f"pets={folder}", "--zero-shot", f"more={folder}")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["MEASURED, NOT JUDGED: zero_shot:pets, zero_shot:more of planted_model:Model; 0 pass*"]
        + [f"  zero_shot of planted_model:Model on {name}: *acc1*" for name in ("pets", "more")]
    )
    names = {p.name for p in (pytester.path / "results/figures").iterdir()}
    assert names == {file_name((f"zero_shot-{name}", "planted_model:Model"), ".png") for name in ("pets", "more")}
    assert "Most confused classes" in (pytester.path / "results/summary.md").read_text()


def test_a_benchmark_that_did_not_run_is_named_by_its_whole_data_set(run, folder, pytester, tmp_path):
    for name in ("a", "b"):
        paint(tmp_path / "broken" / name / "0.png", [0])
        (tmp_path / "broken" / name / "0.png").write_bytes(b"no picture")
    folders = ("--zero-shot", f"broken={tmp_path / 'broken'}", "--zero-shot", f"my-set={folder}")
    run(*folders, "--require-all", "-x").assert_outcomes(failed=1)
    skipped = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]["skipped"]
    ended = [(s["experiment"], s["dataset"]) for s in skipped if s["reason"].startswith("the session ended before")]
    assert ("zero_shot", "my-set") in ended
    assert "zero_shot:set" not in ended


def test_without_a_folder_its_benchmarks_do_not_exist(run):
    run().assert_outcomes(deselected=1)


def test_one_name_for_two_folders_is_a_usage_error(run, folder):
    result = run("--zero-shot", f"pets={folder}", "--zero-shot", f"pets={folder}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "is given twice" in result.stderr.str()


@pytest.mark.fault("a broken picture")
def test_a_truncated_image_is_counted_and_fails_under_require_all_naming_it(run, folder, pytester):
    picture = folder / "class_1" / "4.png"
    picture.write_bytes(picture.read_bytes()[:50])
    run("--zero-shot", f"pets={folder}").assert_outcomes(passed=1)
    result = run("--zero-shot", f"pets={folder}", "--require-all")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 broken image(s): 4.png*"])


def test_a_folder_without_class_folders_is_a_usage_error_with_what_is_missing(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("--zero-shot", f"empty={tmp_path / 'empty'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "holds no class folder; expected one folder for each class" in result.stderr.str()
