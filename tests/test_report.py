"""The summary and the figures: complete, readable, and safe with text that somebody else wrote."""

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fakes import ColourEncoder, card, colour_dataset, custom, matching
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipbench.experiments.matching import matching_result
from clipbench.judge.references import judged
from clipbench.report.document import Heading, Paragraph, Picture, Table, to_html, to_markdown, value_text
from clipbench.report.figures import figure_name, figures_of, matrix_figure
from clipbench.report.ranking import rankings_by_experiment
from clipbench.report.summary import summary_blocks, terminal_lines, verdict_line, write_report
from clipbench.result import Metric, Run, Skip, Verdict
from clipbench.settings import Settings

EVIL = "<script>alert(1)</script> | `x` ![i](http://h/i.png) [l](javascript:1)\n# h"
NAMES = tuple("abcdefgh")


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def verdict(word, reason="because"):
    return Verdict("text_to_image_top1", "a source", "floor", 1.0, word, reason)


def a_run(*words, skipped=()):
    result = replace(matching(np.eye(8), NAMES), verdicts=tuple(verdict(w, f"reason of {w}") for w in words))
    return Run({"machine": {"processor": "P"}, "software": {"torch": "2"}}, (result,), tuple(skipped))


@given(st.text())
def test_no_text_becomes_a_tag_in_html(text):
    page = to_html([Heading(text), Paragraph(text), Table(("h",), [(text,)]), Picture("figures/x.png", text)], text)
    ours = "html head meta title style body h2 p table thead tbody tr th td figure img figcaption"
    assert set(Tags(page).tags) <= set(ours.split())


def test_untrusted_text_makes_no_tag_link_image_heading_or_column_in_markdown():
    text = to_markdown([Paragraph(EVIL), Table(("a", "b"), [(EVIL, "x")])])
    assert "<script>" not in text.replace("\\<", "")
    assert "](http" not in text.replace("\\]", "")
    assert "\n# h" not in text
    row = text.strip().splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pass", "pass"], "PASS: 2 pass"),
        (["pass", "fail"], "FAIL: 1 pass, 1 fail"),
        (["pass", "inconclusive"], "CANNOT TELL IN PART: 1 pass, 0 fail, 1 inconclusive"),
        ([], "CANNOT TELL: nothing was held"),
    ],
)
def test_the_first_line_is_the_verdict_and_nothing_judged_is_no_pass(words, line):
    assert verdict_line(a_run(*words)).startswith(line)


def test_a_failed_test_is_never_summed_up_as_a_pass():
    assert verdict_line(a_run("pass"), ["test_x: broken"]).startswith("FAIL")


def test_inconclusive_comes_first_then_failures_each_with_its_reason():
    lines = list(terminal_lines(a_run("pass", "fail", "inconclusive"), (), {}, []))
    assert "reason of inconclusive" in lines[1]
    assert "reason of fail" in lines[2]
    text = to_markdown(summary_blocks(a_run("pass", "fail", "inconclusive"), {}, {}))
    assert text.index("## Cannot tell") < text.index("## Failed") < text.index("## Results")


def test_the_summary_holds_values_intervals_verdicts_reasons_skips_and_environment():
    run = a_run("fail", skipped=[Skip("natural", "RN101 (openai)", "no weights here")])
    text = to_markdown(summary_blocks(run, {}, {"natural": ("text_to_image_top1",)}))
    for words in (
        "text_to_image_top1 1.000 \\[0.676, 1.000\\]",
        "reason of fail",
        "no weights here",
        "processor",
        "torch",
    ):
        assert words in text


def test_models_side_by_side_come_with_the_warning_about_raw_cosines():
    two = Run({}, (matching(np.eye(8), NAMES), matching(np.eye(8), NAMES, "RN50")))
    assert "Raw cosines cannot be compared" in to_markdown(summary_blocks(two, {}, {}))
    assert "Raw cosines" not in to_markdown(summary_blocks(a_run(), {}, {}))


@pytest.mark.parametrize(
    ("name", "metric", "text"),
    [
        ("params", Metric(149_620_737, 1), "149,620,737"),
        ("text_to_image_top1", Metric(0.75, 8, 0.41, 0.93), "0.750 [0.410, 0.930]"),
        ("margin_min", Metric(-0.01234, 8), "-0.0123"),
        ("peak_memory_bytes", Metric(2**30, 1), "1,024 MiB"),
        ("latency_p50", Metric(0.0123, 20), "12.30 ms"),
        ("images_per_second", Metric(1234.5, 3), "1,234.5 images/s"),
    ],
)
def test_values_are_written_as_people_read_them(name, metric, text):
    assert value_text(name, metric) == text


def test_a_report_has_a_page_a_text_and_a_figure_that_opens(tmp_path):
    dataset = colour_dataset(tmp_path)
    result = matching_result("natural", custom(ColourEncoder()), dataset, Settings())
    write_report(
        Run({}, (replace(result, verdicts=judged(result)),)), (), tmp_path / "out", {dataset.name: dataset}, {}
    )
    figure = Image.open(tmp_path / "out/figures/natural-fake.png")
    assert figure.width > 600
    page = Tags((tmp_path / "out/summary.html").read_text())
    assert ("src", "figures/natural-fake.png") in page.attributes
    assert "natural-fake.png" in (tmp_path / "out/summary.md").read_text()


def test_a_figure_shows_the_thumbnails_and_survives_hostile_captions():
    captions = dict.fromkeys(NAMES, "$\\frac{broken" + EVIL)
    red = {name: Image.new("RGB", (50, 30), (255, 0, 0)) for name in NAMES}
    with_pictures, without = (
        np.asarray(Image.open(io.BytesIO(matrix_figure(np.eye(8), NAMES, captions, pictures, EVIL))).convert("RGB"))
        for pictures in (red, {})
    )
    assert (with_pictures == (255, 0, 0)).all(axis=2).sum() > 5000
    assert (without == (255, 0, 0)).all(axis=2).sum() == 0


def test_no_caption_runs_off_the_edge_of_a_figure():
    captions = dict.fromkeys(NAMES, "Widest words: MMMMMMMM MMMMMMMM MMMMMMMMMMMMMMMMMMMMMMMMMMMMMM")
    pixels = np.asarray(Image.open(io.BytesIO(matrix_figure(np.eye(8), NAMES, captions, {}, "title"))).convert("L"))
    edges = [pixels[:, 0], pixels[:, -1], pixels[0], pixels[-1]]
    assert all((edge == 255).all() for edge in edges)
    assert (pixels[:, :200] < 255).any()


def test_figure_names_hold_no_separator():
    assert figure_name("natural", "../../etc/ViT-B/16 (a b)") == "natural-..-..-etc-ViT-B-16-a-b.png"


def test_a_matrix_with_other_pictures_shows_ids_in_their_place(tmp_path):
    dataset = colour_dataset(tmp_path)
    result = matching_result("natural", custom(ColourEncoder()), dataset, Settings())
    (tmp_path / "red.png").write_bytes((tmp_path / "blue.png").read_bytes())
    changed = replace(dataset, source="again")
    write_report(Run({}, (result,)), (), tmp_path / "out", {dataset.name: changed}, {})
    assert (tmp_path / "out/figures/natural-fake.png").exists()


def test_a_card_has_no_figure(tmp_path):
    write_report(Run({}, (card("RN50", params=1),)), (), tmp_path, {}, {})
    assert not (tmp_path / "figures").exists()


def two_models():
    return Run({}, tuple(replace(matching(np.eye(8), NAMES, model), verdicts=()) for model in ("RN50", "RN101")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("latex could not be found\nusetex"), "RuntimeError: latex could not be found usetex"),
        (OSError("no such font"), "OSError: no such font"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_of_a_figure_costs_that_figure_alone_and_is_named(tmp_path, monkeypatch, error, words):
    def draw(result, dataset):
        if result.model.name == "RN50":
            raise error
        return figures_of(result, dataset)

    monkeypatch.setattr("clipbench.report.summary.figures_of", draw)
    undrawn, unwritten = write_report(two_models(), (), tmp_path, {}, {})
    assert unwritten == []
    assert [line.startswith(f"natural of RN50 (openai) on natural: {words}") for line in undrawn] == [True]
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["natural-RN101-openai.png"]
    text = (tmp_path / "summary.md").read_text()
    assert words in text[text.index("## Missing figures") :]
    assert "natural-RN50-openai.png" not in text
    assert words in (tmp_path / "summary.html").read_text()


def test_a_ranking_that_cannot_be_drawn_is_in_the_summary_without_its_figure(tmp_path, monkeypatch):
    def draw(title, found):
        raise ValueError("a bad setting of matplotlib")

    monkeypatch.setattr("clipbench.report.summary.ranking_figure", draw)
    undrawn, unwritten = write_report(two_models(), rankings_by_experiment(two_models()), tmp_path, {}, {})
    assert undrawn == ["ranking of natural: ValueError: a bad setting of matplotlib"]
    assert unwritten == []
    text = (tmp_path / "summary.md").read_text()
    assert "The models confronted" in text
    assert "figures/ranking" not in text


def test_a_figure_or_a_page_that_cannot_be_written_costs_no_other_file(tmp_path):
    (tmp_path / "figures").write_text("a file in the folder's place")
    (tmp_path / "summary.md").mkdir()
    undrawn, unwritten = write_report(a_run("pass"), (), tmp_path, {}, {})
    assert undrawn == []
    assert [line.split(":")[0] for line in unwritten] == ["natural-ViT-B-32-openai.png", "summary.md"]
    assert "natural-ViT-B-32-openai.png" in (tmp_path / "summary.html").read_text()


def test_a_run_that_no_summary_can_be_made_of_keeps_its_figures_and_says_so(tmp_path):
    result = matching(np.eye(8), NAMES)
    damaged = replace(result, arrays={**result.arrays, "most_confused": np.array([[9.0, 9, 1, 1]])})
    undrawn, unwritten = write_report(Run({}, (damaged,)), (), tmp_path, {}, {})
    assert undrawn == []
    assert [line.startswith("summary.md, summary.html: IndexError") for line in unwritten] == [True]
    assert (tmp_path / "figures/natural-ViT-B-32-openai.png").exists()
