"""How rows were made stands in the summary; what was dropped or never confirmed stands at the end of the session."""

from dataclasses import replace

import numpy as np
from fakes import matching

from clipbench.report.document import to_markdown
from clipbench.report.summary import execution_blocks, execution_lines
from clipbench.result import Run


def run_with(shortcuts=(), **execution):
    result = matching(np.eye(2), ["a", "b"])
    protocol = {**result.protocol, "shortcuts": list(shortcuts), "execution": execution}
    return Run({}, (replace(result, protocol=protocol),))


def test_a_result_by_the_plain_call_is_not_mentioned():
    run = run_with(images={"n": 2, "checked": 0}, texts={"n": 2, "checked": 0})
    assert list(execution_blocks(run)) == []
    assert list(execution_lines(run)) == []


def test_a_shortcut_is_named_with_its_check():
    run = run_with(["cut_texts"], texts={"n": 2500, "checked": 8, "largest_distance": 1.5e-7, "shared": 3})
    text = to_markdown(list(execution_blocks(run)))
    assert "cut_texts" in text
    assert "2,500 rows; 3 shared; 8 checked, at most 1.5e-07 away" in text
    assert list(execution_lines(run)) == []


def test_a_dropped_shortcut_is_said_at_the_end_of_the_session():
    run = run_with(images={"n": 2, "checked": 0, "dropped": "a sampled row differs"})
    (line,) = execution_lines(run)
    assert "note: shortcut dropped: natural of ViT-B/32, 2 images made again: a sampled row differs" in line
    assert "a sampled row differs" in to_markdown(list(execution_blocks(run)))


def test_rows_that_no_model_confirmed_are_said_at_the_end_of_the_session():
    (line,) = execution_lines(run_with(["cached_rows"], images={"n": 2, "cached": 2, "unconfirmed": 2, "checked": 0}))
    assert "natural of ViT-B/32: from the cache alone" in line
    assert not list(execution_lines(run_with(["cached_rows"], images={"n": 2, "cached": 2, "checked": 1})))


def test_a_run_that_does_not_say_is_no_error():
    result = matching(np.eye(2), ["a", "b"])
    assert list(execution_blocks(Run({}, (result,)))) == []
