"""What was left out or counted is shown to a person: in the summary, and what was left out at the end of the session."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import matching

from clipbench.report.document import to_markdown
from clipbench.report.summary import exclusion_blocks, left_out, left_out_lines
from clipbench.result import Run


def counted(notes, **protocol):
    result = matching(np.eye(2), ["a", "b"])
    return replace(result, protocol={**result.protocol, "notes": notes, **protocol})


def test_counts_are_shown_and_what_was_left_out_is_named():
    result = counted(
        {"broken_images": 1, "images_absent": 2, "cmyk_images": 0, "truncated_texts": 3}, broken_images=["x.jpg"]
    )
    text = to_markdown(list(exclusion_blocks(Run({}, (result,)))))
    assert "broken_images 1, images_absent 2, truncated_texts 3 (x.jpg)" in text
    assert "cmyk" not in text
    (line,) = left_out_lines(Run({}, (result,)))
    assert "natural of ViT-B/32 on natural: 2 absent image(s), 1 broken image(s): x.jpg" in line


@pytest.mark.parametrize("notes", [{}, {"broken_images": 0, "truncated_texts": 0}, None, ["x"], {"broken_images": "1"}])
def test_where_nothing_was_handled_nothing_is_said(notes):
    run = Run({}, (counted(notes),))
    assert list(exclusion_blocks(run)) == []
    assert list(left_out_lines(run)) == []


def test_a_text_too_long_is_counted_and_is_not_left_out():
    assert left_out(counted({"truncated_texts": 3})) == ""
    assert list(exclusion_blocks(Run({}, (counted({"truncated_texts": 3}),))))
