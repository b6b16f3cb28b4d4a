"""Baselines and anchors through the plugin: judged, updated on purpose, never by accident."""

import json
import os
from xml.etree import ElementTree

import pytest

OTHER = "known_encoders:Swapped"


@pytest.fixture
def renamed(pytester):
    """Turn a run of one encoder into a run of another: the same model, before and after a change."""

    def write(source, target, old="known_encoders:Oracle", new=OTHER):
        path = pytester.path / target
        path.write_text((pytester.path / source).read_text().replace(old, new))
        return str(path)

    return write


def test_the_same_run_again_passes_against_its_baseline(run, pytester):
    run("--benchmark-json", "base.json")
    result = run("--baseline", "base.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline *base.json: PASS: * pass"])
    entry = json.loads((pytester.path / "results/run.json").read_text())["clipbench"]
    verdicts = [v for r in entry["results"] for v in r["verdicts"] if v["kind"] == "baseline"]
    assert verdicts
    assert {v["verdict"] for v in verdicts} == {"pass"}


def test_a_model_that_got_worse_on_most_items_fails_the_session_and_is_named(run, renamed, pytester):
    run("--benchmark-json", "base.json")
    worse = renamed("base.json", "worse.json", new="known_encoders:Nothing")
    result = run("--baseline", worse, "--junitxml", "j.xml", model="known_encoders:Nothing")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FAIL: *", "baseline *worse.json: FAIL: *"])
    tree = ElementTree.parse(pytester.path / "j.xml")  # noqa: S314  # written by this session
    failed = {case.get("name") for case in tree.iter("testcase") if case.find("failure") is not None}
    assert "quality[natural/natural/known_encoders:Nothing]" in failed


@pytest.mark.parametrize("option", ["--baseline", "--anchor"])
def test_a_session_is_held_to_what_the_base_says_of_the_models_asked_for(run, option):
    run("--benchmark-json", "base.json", model=["known_encoders:Oracle", OTHER])
    result = run(option, "base.json", "--require-all")
    assert result.ret == 0
    assert not any(OTHER in line for line in result.outlines)


def test_the_first_baseline_says_that_nothing_was_judged_and_the_next_says_what_changed(run, pytester):
    arguments = ("--baseline", "kept/base.json", "--update-baseline", "--reason", "first release")
    result = run(*arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline *base.json written (first release); there was no baseline before*"])
    run("--baseline", "kept/base.json", "--update-baseline", "--reason", "again").stdout.fnmatch_lines(
        ["*written (again); changed:*"]
    )
    history = json.loads((pytester.path / "kept/base.json").read_text())["clipbench_baseline"]["history"]
    assert [h["reason"] for h in history] == ["first release", "again"]
    assert all(h["author"] and h["date"] for h in history)


@pytest.mark.fault("files that cannot be written")
def test_a_session_that_fails_never_becomes_the_baseline(run, pytester):
    result = run("--baseline", "base.json", "--update-baseline", "--reason", "hm", model="known_encoders:Nan")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*is not written: the session did not pass"])
    assert not (pytester.path / "base.json").exists()


@pytest.mark.fault("files that cannot be written")
def test_a_session_whose_files_cannot_be_written_never_becomes_the_baseline(run, pytester):
    arguments = ("--baseline", "base.json", "--update-baseline", "--reason", "again")
    assert run(*arguments).ret == pytest.ExitCode.OK
    before = (pytester.path / "base.json").read_bytes()
    (pytester.path / "results/summary.md").unlink()
    (pytester.path / "results/summary.md").mkdir()
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*stays as it is: the session did not pass", "ERROR: *could not be written: summary.md*"]
    )
    assert (pytester.path / "base.json").read_bytes() == before


@pytest.mark.fault("an error while judging")
@pytest.mark.parametrize("what", ["clipbench.session.judge", "clipbench.judge.baseline.compare_with"])
def test_an_error_while_judging_costs_the_verdict_and_never_the_run(run, pytester, monkeypatch, what):
    def fail(*arguments, **more):
        raise ValueError("could not convert string to float: 'a'")

    run("--benchmark-json", "base.json", "--results", "first")
    monkeypatch.setattr(what, fail)
    result = run("--baseline", "base.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*base.json could not be compared with: ValueError: could not convert string*", "FAIL: *"]
    )
    assert json.loads((pytester.path / "results/run.json").read_text())["clipbench"]["results"]
    assert (pytester.path / "results/summary.md").read_text().startswith("# clipbench summary\n\n**Do not ship")


@pytest.mark.fault("a user without name or home")
def test_a_user_without_a_name_updates_the_baseline(run, pytester, homeless):
    assert run("--baseline", "base.json", "--update-baseline", "--reason", "first").ret == pytest.ExitCode.OK
    kept = json.loads((pytester.path / "base.json").read_text())["clipbench_baseline"]["history"]
    assert [entry["author"] for entry in kept] == [f"user {os.getuid()}"]


def test_an_anchor_is_never_written(run, pytester):
    run("--benchmark-json", "anchor.json")
    before = (pytester.path / "anchor.json").read_bytes()
    result = run("--baseline", "anchor.json", "--anchor", "anchor.json", "--update-baseline", "--reason", "no")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (pytester.path / "anchor.json").read_bytes() == before


@pytest.mark.fault("options that cannot be meant")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--baseline", "gone.json"], "make the first one with --update-baseline"),
        (["--anchor", "gone.json"], "gone.json is not there"),
        (["--baseline", "known_encoders.py"], "is not JSON"),
        (["--update-baseline", "--reason", "x"], "needs --baseline PATH"),
        (["--baseline", "x.json", "--update-baseline"], "--reason TEXT"),
        (["--reason", "x"], "give --accept CELL or --update-baseline"),
    ],
)
def test_options_that_cannot_be_meant_are_usage_errors(run, arguments, words):
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str() + result.stdout.str()


def test_verdicts_are_properties_of_their_tests_in_junit_xml(run, pytester, monkeypatch):
    from clipbench.judge.references import Floor

    row = Floor("natural", "natural", [OTHER], "factory", ["text_to_image_top1"], 1.0, "the tests' own claim")
    monkeypatch.setattr("clipbench.judge.references.floors", lambda: (row,))
    run("--junitxml", "junit.xml", model=OTHER)
    tree = ElementTree.parse(pytester.path / "junit.xml")  # noqa: S314  # written by this test
    found = {p.get("name"): p.get("value") for p in tree.iter("property")}
    assert found["clipbench:natural:text_to_image_top1:floor"].startswith("fail: text_to_image_top1 is 0.75")
