"""The fault table itself: every row has a test and stands in SECURITY.md, and a row that was not tried never reads as held."""

import ast
import re
from pathlib import Path

import pytest
import robustness

SUITE = """
import pytest

@pytest.mark.fault("rows that are none", "a mutated file")
@pytest.mark.parametrize("number", range(3))
def test_holds(number): pass

@pytest.mark.fault("a mutated file")
def test_holds_often(record_property): record_property("tries", 40)

@pytest.mark.fault("no network")
@pytest.mark.parametrize("number", range(2))
def test_holds_once(number): assert number

@pytest.mark.fault("what is no file")
@pytest.mark.skip(reason="not here")
def test_is_skipped(): pass

@pytest.mark.fault("deep pictures")
@pytest.mark.parametrize("number", range(2))
def test_is_skipped_in_part(number): number or pytest.skip("not this one")

@pytest.fixture
def broken(): raise OSError

@pytest.mark.fault("a broken picture")
def test_cannot_be_set_up(broken): pass

def test_of_something_else(): pass
"""
HELD = {
    "a broken picture": ("1", "**no**: 0 of 1"),
    "deep pictures": ("1", "1 of 1, 1 skipped"),
    "what is no file": ("0", "not run, 1 skipped"),
    "rows that are none": ("3", "3 of 3"),
    "a mutated file": ("43", "43 of 43"),
    "no network": ("2", "**no**: 1 of 2"),
}


def rows_in(lines):
    """The rows of a table in Markdown: of each its cells."""
    cells = [line.strip("| \n").split(" | ") for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells if name != "fault"}


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run the suite above with these arguments; return the result."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(SUITE)
    pytester.makeini("[pytest]\nmarkers = fault\n")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "robustness", "-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_row_says_how_many_of_its_tries_held_and_what_was_skipped(suite, workers):
    found = rows_in(suite("-m", "fault", *workers).outlines)
    assert {row: (tries, held) for row, (_, tries, _, held) in found.items()} == HELD
    assert list(found) == [row for row in robustness.ROWS if row in HELD]
    assert found["no network"][::2] == list(robustness.ROWS["no network"])


@pytest.mark.parametrize("arguments", [[], ["-m", "fault or not fault"], ["-m", "fault", "-k", "nothing"]])
def test_other_sessions_print_no_table(suite, arguments):
    suite(*arguments).stdout.no_fnmatch_line("*fault table*")


def test_a_row_that_there_is_not_is_refused(suite, pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.fault('a row too many')\ndef test_it(): pass")
    result = suite("--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it: the fault table has no row 'a row too many'*"])


def test_every_row_has_a_test():
    marked = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                marked |= {row.value for row in node.args}
    assert marked == robustness.ROWS.keys()


def test_security_shows_every_row_as_it_held():
    page = rows_in((Path(__file__).parents[1] / ".github/SECURITY.md").read_text(encoding="utf-8").splitlines())
    assert {row: (given, holds) for row, (given, _, holds, _) in page.items()} == robustness.ROWS
    assert all(re.match(f"{tries} of {tries}(,|$)", held) and tries != "0" for _, tries, _, held in page.values())
