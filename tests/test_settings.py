"""A project's settings: found, checked by name, laid over what ships, and under the command line."""

import json
from pathlib import Path

import pytest
from paired_runs import RIGHT, flipped, run_of, scored
from planted import paint

import clipbench
from clipbench.cli import main
from clipbench.errors import ClipbenchError, UsageError
from clipbench.judge.tolerances import read_rules
from clipbench.options import settings_of
from clipbench.paths import benchmarks
from clipbench.storage import dump_json, run_to_json
from clipbench.types import MetricSpec

ZERO_SHOT = str(benchmarks() / "test_zero_shot.py")
ACC1 = MetricSpec("acc1", "rate")


def settings(folder, text, name="clipbench.toml"):
    (folder / name).write_text(text)
    return settings_of([], folder)


def test_they_are_found_above_up_to_the_root_of_the_repository_and_a_command_line_may_name_or_refuse_them(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert settings(tmp_path, 'device = "cpu"').options == {"device": "cpu"}
    assert settings_of([], inner).path == tmp_path / "clipbench.toml"
    assert settings_of(["--settings", "none"], inner).path is None
    (tmp_path / "other.toml").write_text('device = "cuda"')
    for words in (["--settings", "../../other.toml"], ["--settings=../../other.toml"]):
        assert settings_of(words, inner).options == {"device": "cuda"}
    (tmp_path / "a" / ".git").mkdir()
    assert settings_of([], inner).path is None


def test_a_table_of_pyproject_is_as_good_and_a_pyproject_without_one_is_nobodys(tmp_path):
    assert settings(tmp_path, '[project]\nname = "host"\n', "pyproject.toml").path is None
    found = settings(
        tmp_path, "[tool.clipbench]\nbatch-size = 2\n[tool.clipbench.tolerance]\nacc1 = 0.02\n", "pyproject.toml"
    )
    assert found.options == {"batch_size": 2}
    assert found.judged_by().declared("zero_shot", ACC1).tolerance == 0.02


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'lite'", "modle: unknown key; did you mean model"),
        ("tolerence = 0.1", "did you mean tolerance"),
        ("accept = ['rows']", "--accept is meant for one session"),
        ("update-baseline = true", "--update-baseline is meant for one session"),
        ("require-all = 'yes'", "expected true or false"),
        ("batch-size = 1.5", "expected a whole number"),
        ("batch-size = true", "expected a whole number"),
        ("precision = 'int8'", "expected one of fp32, tf32"),
        ("model = [1]", "expected a list of texts"),
        ("zero-shot = 3", "expected a table NAME = PATH"),
        ("results = ''", "expected a text"),
        ("tolerance = 2", "expected a fraction"),
        ("[tolerance]\nacc_1 = 0.1", "there is no metric 'acc_1'; did you mean acc1"),
        (
            "[[floor]]\nexperiment = 'zeroshot'\ndataset = 'a'\nmetrics = ['acc1']\nat_least = 0.5",
            "unknown experiment 'zeroshot'; closest: zero_shot",
        ),
        ("[[floor]]\nexperiment = 'zero_shot'\ndataset = 'a'\nmetrics = ['acc2']\nat_least = 0.5", "did you mean acc"),
        ("[[floor]]\nexperiment = 'zero_shot'\ndataset = 'a'\nmetrics = ['acc1']\nat_least = 85", "acc1 is a fraction"),
        ("[[floor]]\nexperiment = 'zero_shot'\nmetrics = ['acc1']\nat_least = 0.5", "the key 'dataset' is missing"),
        ("[floor]\nexperiment = 'zero_shot'", r"expected rows of \[\[floor\]\]"),
        ("[prompts]\nshop = ['a photo']", 'one "{}" in each'),
        ("[rows]\nfarr = 1", "unknown key 'farr'; did you mean far"),
        ("[rows]\nfar = 7", "expected a fraction"),
        ("rows = 3", r"expected \[rows\]"),
        ("[[metric]]\nkind = 'rate'", "tolerance of rate is nan"),
        ("must_pass = ['coffee']", r"expected rows of \[\[must_pass\]\]"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ClipbenchError, match=words) as raised:
        settings(tmp_path, text)
    assert str(tmp_path / "clipbench.toml") in str(raised.value)


def test_relative_paths_begin_at_the_file_and_a_data_set_is_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    found = settings(tmp_path, 'baseline = "ci/{device}.json"\n[zero-shot]\nshop = "data"\nmore = "gone"\n').options
    assert found["baseline"] == tmp_path / "ci/{device}.json"
    assert found["zero_shot"] == [f"shop={tmp_path / 'data'}", "more=gone"]


def test_rules_are_laid_over_those_that_ship(tmp_path):
    rules = settings(
        tmp_path,
        "[rows]\nfar = 0.2\n[outcomes]\nchurn = 0.05\n[statistics]\nalpha = 0.01\n"
        "[[metric]]\nkind = 'rate'\nexperiment = 'zero_shot'\ntolerance = 0.03\n"
        "[[budget]]\nprecision = 'fp32'\ncosine = 0.001\nceiling = 0.002\n"
        "[[must_pass]]\nexperiment = 'zero_shot'\ndataset = 'shop'\nmetric = 'acc1'\nitems = ['dress/1.png']\n",
    ).judged_by()
    shipped = read_rules()
    assert (rules.moves.far, rules.moves.noise) == (0.2, shipped.moves.noise)
    assert (rules.limits.churn, rules.alpha, rules.alpha_fail) == (0.05, 0.01, shipped.alpha_fail)
    assert rules.declared("zero_shot", ACC1).allowed(0.5) == 0.03
    assert rules.declared("coco_crops", ACC1) == shipped.declared("coco_crops", ACC1)
    assert (rules.budget("fp32").cosine, rules.budget("bf16")) == (0.001, shipped.budget("bf16"))
    assert rules.must_pass[0].items == ("dress/1.png",)
    assert rules.must_pass[1:] == shipped.must_pass


def test_compare_follows_them_the_command_line_wins_and_the_command_to_reproduce_names_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, outcomes in (("base", RIGHT), ("head", flipped(RIGHT, lost=20))):
        document = {
            "benchmarks": [],
            "clipbench": run_to_json(run_of(scored(outcomes, **({} if name == "base" else {"precision": "int8"})))),
        }
        Path(f"{name}.json").write_text(dump_json(document))
    command = ["compare", "base.json", "head.json", "--only", "quality[coco*"]
    assert main(command) == 0
    Path("clipbench.toml").write_text("tolerance = 0.001\nspeed = 'off'\n")
    assert main(command) == 1
    assert f"--speed off --settings {tmp_path / 'clipbench.toml'}" in capsys.readouterr().out
    assert main([*command, "--tolerance", "0.02"]) == 0
    assert main([*command, "--settings", "none"]) == 0


@pytest.fixture
def run(pytester):
    """A repository with an encoder and a data set of nine pictures, of which its encoder knows all."""
    for number in range(9):
        paint(pytester.path / "data" / "shop" / f"class_{number % 3}" / f"{number}.png", [number])
    pytester.makepyfile(planted_model="from planted import PlantedEncoder as Model")
    pytester.syspathinsert()

    def call(text, *arguments):
        pytester.path.joinpath("clipbench.toml").write_text(text)
        return pytester.runpytest_inprocess(ZERO_SHOT, "--device", "cpu", "-p", "no:cacheprovider", *arguments)

    return call


SHOP = 'model = "planted_model:Model"\n[zero-shot]\nshop = "data/shop"\n'
FLOOR = '[[floor]]\nexperiment = "zero_shot"\ndataset = "shop"\nmetrics = ["acc1"]\nat_least = {}\nsource = "what the shop needs"\n'


def test_an_encoder_a_data_set_a_floor_and_prompts_make_a_gate(run, pytester):
    done = run(SHOP + '[prompts]\nshop = ["a drawing of a {}."]\n' + FLOOR.format(0.1), "--require-all")
    assert done.ret == 0
    done.stdout.fnmatch_lines(["clipbench settings: *clipbench.toml", "PASS: 1 pass*"])
    document = json.loads((pytester.path / "results" / "run.json").read_text())
    assert document["clipbench"]["results"][0]["protocol"]["prompts"] == ["a drawing of a {}."]


def test_a_floor_that_is_missed_fails_with_its_source(run):
    done = run(SHOP + FLOOR.format("1.0"))
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*acc1 is*the floor is 1*", "*floor reference: what the shop needs*"])


def test_what_settings_say_of_gates_means_nothing_in_a_session_that_is_none(run):
    assert run('max-cosine-distance = 0.1\nspeed = "gate"\n' + SHOP).ret == 0
    done = run(SHOP, "--max-cosine-distance", "0.1")
    assert done.ret == pytest.ExitCode.USAGE_ERROR


def test_the_command_line_wins(run):
    done = run(
        'pretrained = "random"\n' + SHOP.replace("planted_model:Model", "RN50"),
        "--model",
        "lite",
        "--collect-only",
        "-q",
    )
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*lite-shop*"])
    assert run("batch-size = 2\n" + SHOP, "--batch-size", "0").ret == pytest.ExitCode.USAGE_ERROR


def test_a_baseline_is_chosen_by_device_and_precision_and_one_that_nobody_made_is_no_red_by_rows(run, pytester):
    text = 'baseline = "ci/{device}-{precision}.json"\n' + SHOP
    done = run(text)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(
        ["*no baseline for cpu in fp32: *ci/cpu-fp32.json is not there; make one with --update-baseline*"]
    )
    run(text, "--update-baseline", "--reason", "first")
    assert (pytester.path / "ci" / "cpu-fp32.json").exists()
    assert run(text, "--allow-inconclusive").ret == 0
    done = run(text.replace("{device}", "{machine}"))
    done.stderr.fnmatch_lines(["*expected {device} and {precision}, and no other field*"])


def test_a_misspelt_file_of_settings_is_a_usage_error_of_the_session(run):
    done = run("modle = 'lite'")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*modle: unknown key; did you mean model*"])


@pytest.mark.parametrize(
    ("given", "words"), [({"batch_size": "8"}, "whole number"), ({"precision": 16}, "expected one of fp32")]
)
def test_a_notebooks_settings_are_checked_alike(given, words):
    with pytest.raises(UsageError, match=words):
        clipbench.evaluate("lite", ["natural"], **given)
