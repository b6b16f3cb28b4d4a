"""An alias is what runs are paired by: the same subject under another loader, in a session and in `compare`."""

import json

from clipbench.cli import main

ORACLE, SWAPPED = "known_encoders:Oracle", "known_encoders:Swapped"


def test_an_alias_pairs_two_loaders_and_says_which_they_were(run, pytester, capsys):
    run("--benchmark-json", "base.json", model=f"prod={ORACLE}").assert_outcomes(passed=4)
    result = run("--baseline", "base.json", "--benchmark-json", "head.json", model=f"prod={SWAPPED}")
    document = json.loads((pytester.path / "head.json").read_text())["clipbench"]
    assert {entry["model"]["name"] for entry in document["results"]} == {"prod"}
    assert document["subjects"][0]["asked"]["loader"] == f"factory {SWAPPED}"
    assert not any("vanished" in line for line in result.outlines)
    capsys.readouterr()
    main(["compare", str(pytester.path / "base.json"), str(pytester.path / "head.json"), "--format", "json"])
    said = capsys.readouterr().out
    assert f"what was asked for: loader changed (factory {ORACLE} -> factory {SWAPPED})" in said


def test_without_an_alias_another_factory_still_pairs_where_each_run_has_one(run, pytester):
    run("--benchmark-json", "base.json", model=f"prod={ORACLE}")
    result = run("--baseline", "base.json", model=ORACLE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline *base.json: PASS: *"])


def test_aliases_of_a_run_are_listed_in_its_header(run):
    run("--collect-only", model=[f"prod={ORACLE}", "small=lite"]).stdout.fnmatch_lines(
        [f"clipbench model: prod, your own encoder {ORACLE}", "clipbench model: small, embedded smoke model"]
    )
