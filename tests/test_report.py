"""The summary and the figures: complete, readable, and safe with text that somebody else wrote."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fakes import ColourEncoder, card, colour_dataset, custom, matching
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipbench.embed.embedder import Embedder, Resources
from clipbench.experiments import result_of
from clipbench.experiments.matching import NATURAL
from clipbench.judge.references import judge
from clipbench.paths import file_name
from clipbench.report.document import Heading, Paragraph, Picture, Table, to_markdown, value_text
from clipbench.report.figures import figure_of, matrix_figure
from clipbench.report.page import to_html
from clipbench.report.ranking import rankings_by_experiment
from clipbench.report.summary import (
    encoding_blocks,
    exclusion_blocks,
    most_confused,
    summary_blocks,
    terminal_lines,
    verdict_line,
    write_report,
)
from clipbench.storage import dump_json, read_run, run_to_json
from clipbench.types import Answers, Encoding, Key, MetricSpec, Protocol, Provenance, Run, Score, Skip, Verdict


def figure(*words):
    return file_name(words, ".png")


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


KEY = Key("natural", "ViT-B/32", "natural")


def verdict(outcome, reason="because"):
    return Verdict(KEY, "text_to_image_top1", "floor", outcome, reason, "a source", 1.0)


def a_run(*outcomes, skipped=()):
    result = replace(matching(np.eye(8), NAMES), verdicts=tuple(verdict(o, f"reason of {o}") for o in outcomes))
    return Run({"machine": {"processor": "P"}, "software": {"torch": "2"}}, (result,), tuple(skipped))


@pytest.mark.fault("text that steers")
@given(st.text())
def test_no_text_becomes_a_tag_in_html(text):
    page = to_html([Heading(text), Paragraph(text), Table(("h",), [(text,)]), Picture("figures/x.png", text)], text)
    ours = "html head meta title style body main div h2 p table thead tbody tr th td script"
    assert set(Tags(page).tags) <= set(ours.split())


@pytest.mark.fault("text that steers")
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
        (["pass", "inconclusive"], "INCONCLUSIVE: 1 pass, 0 fail, 1 inconclusive"),
        ([], "MEASURED, NOT JUDGED: natural of ViT-B/32 (openai); 0 pass"),
        (["note"], "MEASURED, NOT JUDGED: natural of ViT-B/32 (openai); 0 pass"),
    ],
)
def test_the_first_line_is_the_verdict_and_nothing_judged_is_no_pass(words, line):
    assert verdict_line(a_run(*words)).startswith(line)


PART = "PASS IN PART: 1 pass, 0 fail, 0 inconclusive"


def judged_like(model, *kinds):
    result = matching(np.eye(8), NAMES, model)
    return replace(result, verdicts=tuple(Verdict(result.key, "acc1", kind, "pass", "because") for kind in kinds))


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (Run({}, ()), "NOTHING WAS MEASURED: nothing was asked for"),
        (Run({}, (), (Skip(KEY, "no weights"),)), "NOTHING WAS MEASURED: natural of ViT-B/32"),
        (
            Run({}, (judged_like("RN50", "floor"), judged_like("RN101"))),
            f"{PART}; measured, not judged: natural of RN101 (openai)",
        ),
        (Run({}, (judged_like("RN50", "contract"),)), f"{PART}; held to a contract alone: RN50 (openai)"),
        (
            Run({}, (judged_like("RN50", "floor"),), (Skip(KEY, "no weights"),)),
            f"{PART}; not measured: natural of ViT-B/32",
        ),
    ],
)
def test_the_first_line_says_what_was_held_to_nothing_and_what_was_not_measured(run, line):
    assert verdict_line(run) == line


def test_a_card_that_is_right_is_a_pass_only_where_nothing_else_was_measured():
    right = replace(card("RN50", "openai", params=1), verdicts=(verdict("pass"),))
    assert verdict_line(Run({}, (right,))).startswith("PASS: 1 pass")
    beside = verdict_line(Run({}, (right, matching(np.eye(8), NAMES, "RN50"))))
    assert beside == "MEASURED, NOT JUDGED: natural of RN50 (openai); 1 pass, 0 fail, 0 inconclusive"


def test_every_line_names_data_set_and_metric_and_what_it_was_held_to():
    changed = Verdict(KEY, "margin_mean", "baseline", "fail", "fell", base=0.25, head=0.125)
    result = replace(matching(np.eye(8), NAMES), verdicts=(verdict("inconclusive"), changed))
    _, failed, unclear, values = terminal_lines(Run({}, (result,)), ())
    about = "natural of ViT-B/32 (openai) on natural: "
    assert unclear == f"  inconclusive: {about}text_to_image_top1: because"
    assert failed == f"  fail: {about}margin_mean 0.25 -> 0.125: fell"
    assert values.startswith(f"  {about}")
    assert "text_to_image_top1 1.000 [0.676, 1.000] (floor 1.0000)" in values
    assert "(baseline 0.2500)" in values


def test_a_failed_test_is_never_summed_up_as_a_pass():
    assert verdict_line(a_run("pass"), ["test_x: broken"]).startswith("FAIL")


def test_failures_come_first_then_what_is_inconclusive_each_with_its_reason():
    lines = list(terminal_lines(a_run("pass", "inconclusive", "fail"), ()))
    assert "reason of fail" in lines[1]
    assert "reason of inconclusive" in lines[2]
    text = to_markdown(summary_blocks(a_run("pass", "inconclusive", "fail"), {}))
    text = text[text.index("## What does not pass") :]
    assert text.index("reason of fail") < text.index("reason of inconclusive") < text.index("## Results")


def test_the_summary_holds_values_intervals_verdicts_reasons_skips_and_environment():
    run = a_run("fail", skipped=[Skip(Key("natural", "RN101", "natural"), "no weights here")])
    text = to_markdown(summary_blocks(run, {}))
    for words in (
        "| text_to_image_top1 | 1.000 \\[0.676, 1.000\\] |",
        "reason of fail",
        "no weights here",
        "processor",
        "torch",
    ):
        assert words in text


def test_models_side_by_side_come_with_the_warning_about_raw_cosines():
    two = Run({}, (matching(np.eye(8), NAMES), matching(np.eye(8), NAMES, "RN50")))
    assert "Raw cosines cannot be compared" in to_markdown(summary_blocks(two, {}))
    assert "Raw cosines" not in to_markdown(summary_blocks(a_run(), {}))


@pytest.mark.parametrize(
    ("spec", "value", "interval", "text"),
    [
        (MetricSpec("a", "count"), 149_620_737, None, "149,620,737"),
        (MetricSpec("a", "count"), 1, None, "1"),
        (MetricSpec("a", "rate"), 0.75, (0.41, 0.93), "0.750 [0.410, 0.930]"),
        (MetricSpec("a", "rate"), 1.0, None, "1.0000"),
        (MetricSpec("a", "cosine"), -0.01234, None, "-0.0123"),
        (MetricSpec("a", "mean", unit="px"), 2.5, (2.0, 3.0), "2.500 [2.000, 3.000] px"),
        (MetricSpec("a", "bytes", unit="bytes"), 2**30, None, "1,024 MiB"),
        (MetricSpec("a", "seconds", unit="s"), 0.0123, None, "12.30 ms"),
        (MetricSpec("a", "per_second", unit="images/s"), 1234.5, None, "1,234.5 images/s"),
    ],
)
def test_values_are_written_by_what_the_metric_is(spec, value, interval, text):
    assert value_text(Score(spec, value, 8, interval)) == text


def test_a_summary_leads_with_the_headline_metrics_and_lists_all():
    text = to_markdown(summary_blocks(a_run("pass"), {}))
    text = text[text.index("## Results") :]
    results, every = text[: text.index("<details>")], text[text.index("<summary>All metrics") :]
    assert results.index("text_to_image_top1") < results.index("image_to_text_top1") < results.index("margin_mean")
    assert "diagonal_mean" not in results
    assert "| diagonal_mean |" in every
    (line,) = [line for line in terminal_lines(a_run("pass"), ()) if "margin_mean" in line]
    assert "diagonal_mean" not in line


def test_a_run_read_from_its_file_shows_its_metrics_in_the_same_order(tmp_path):
    (tmp_path / "run.json").write_text(dump_json({"clipbench": run_to_json(a_run("pass"))}))
    assert to_markdown(summary_blocks(read_run(tmp_path / "run.json"), {})) == to_markdown(
        summary_blocks(a_run("pass"), {})
    )


def measured(folder):
    """A natural result of coloured pictures, and their data set."""
    dataset, encoder = colour_dataset(folder), custom(ColourEncoder())
    return result_of(NATURAL, encoder, dataset, NATURAL.measure(Embedder(encoder, Resources()), dataset)), dataset


def test_a_report_has_a_page_a_text_and_a_figure_that_opens(tmp_path):
    result, dataset = measured(tmp_path)
    write_report(Run({}, (replace(result, verdicts=judge(result)),)), (), tmp_path / "out", [dataset])
    drawn = Image.open(tmp_path / "out/figures" / figure("natural", "fake"))
    assert drawn.width > 600
    page = Tags((tmp_path / "out/summary.html").read_text())
    sources = {value for name, value in page.attributes if name in ("src", "href")}
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert figure("natural", "fake") in (tmp_path / "out/summary.md").read_text()


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


def test_file_names_hold_no_separator_and_differ_where_their_words_do():
    assert re.fullmatch(r"natural-..-..-etc-ViT-B-16-a-b-\w{16}\.png", figure("natural", "../../etc/ViT-B/16 (a b)"))
    words = ["enc:a_b", "enc_a:b", "enc a b", "x" * 300, "x" * 301, "caf\udce9", ""]
    assert len({figure("natural", word).casefold() for word in words}) == len(words)
    assert figure("a-b", "c") != figure("a", "b-c")


def test_a_matrix_with_other_pictures_shows_ids_in_their_place(tmp_path):
    result, dataset = measured(tmp_path)
    (tmp_path / "red.png").write_bytes((tmp_path / "blue.png").read_bytes())
    changed = replace(dataset, source="again")
    write_report(Run({}, (result,)), (), tmp_path / "out", [changed])
    assert (tmp_path / "out/figures" / figure("natural", "fake")).exists()


def test_a_card_has_no_figure(tmp_path):
    write_report(Run({}, (card("RN50", params=1),)), (), tmp_path, [])
    assert not (tmp_path / "figures").exists()


def answered(classes, labels, top):
    """What items were taken for, of these classes."""
    ids, picked = tuple(f"i{k}" for k in range(len(labels))), np.array(top, dtype=np.int32)
    scores, margins = np.zeros(picked.shape, np.float32), np.zeros(len(ids), np.float32)
    return Answers(ids, tuple(classes), picked, scores, margins, np.array(labels, dtype=np.int32))


def classified(dataset="shapes", experiment="zero_shot", model="ViT-B/32"):
    """A result of two classes, one item of each right and one wrong."""
    result = matching(np.eye(4), NAMES[:4], model)
    return replace(
        result,
        experiment=experiment,
        dataset=replace(result.dataset, name=dataset),
        protocol=Protocol(classes=("dog", "cat")),
        matrices={},
        answers={"images": answered(("dog", "cat"), [0, 0, 1, 1], [[0, 1], [1, 0], [1, 0], [0, 1]])},
    )


def test_the_most_confused_classes_come_first_ties_by_their_share_and_no_more_than_twelve():
    labels = [0] * 4 + [1] * 2 + [2]
    picked = [[1], [1], [0], [0], [0], [1], [1]]
    assert most_confused(answered("abc", labels, picked)) == [(0, 1, 2, 4), (2, 1, 1, 1), (1, 0, 1, 2)]
    assert most_confused(answered("ab", [0, 1], [[0], [1]])) == []
    n = 20
    assert (
        len(most_confused(answered([str(k) for k in range(n)], list(range(n)), [[(k + 1) % n] for k in range(n)])))
        == 12
    )


def test_confused_classes_are_named_and_drawn_where_items_have_one_class(tmp_path):
    write_report(Run({}, (classified(),)), (), tmp_path, [])
    text = (tmp_path / "summary.md").read_text()
    assert "| zero_shot | dog | cat | 1 of 2 (50%) |" in text
    assert [file.name for file in (tmp_path / "figures").iterdir()] == [figure("zero_shot-shapes", "ViT-B/32 (openai)")]


def test_results_of_one_experiment_on_several_data_sets_have_figures_of_their_own(tmp_path):
    two = (classified("one", "mine"), classified("two", "mine"), classified("one", "yours"))
    write_report(Run({}, two), (), tmp_path, [])
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert names == sorted(figure(name, "ViT-B/32 (openai)") for name in ("mine-one", "mine-two", "yours"))


def test_what_was_skipped_is_named_by_its_data_set_where_an_experiment_has_several():
    names = [Key("zero_shot", "RN50", "pets"), Key("natural", "RN50", "natural"), Key("natural", "ViT-B/32", "natural")]
    run = a_run("pass", skipped=[Skip(key, "no weights here") for key in names])
    lines = list(terminal_lines(run, ()))
    assert "  skipped: zero_shot:pets, natural of RN50: no weights here" in lines
    assert "  skipped: natural of ViT-B/32 (openai): no weights here" in lines


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
        return figure_of(result, dataset)

    monkeypatch.setattr("clipbench.report.summary.figure_of", draw)
    undrawn, unwritten = write_report(two_models(), (), tmp_path, [])
    assert unwritten == []
    assert [line.startswith(f"natural of RN50 (openai) on natural: {words}") for line in undrawn] == [True]
    assert [file.name for file in (tmp_path / "figures").iterdir()] == [figure("natural", "RN101 (openai)")]
    text = (tmp_path / "summary.md").read_text()
    assert words in text[text.index("## Missing figures") :]
    assert figure("natural", "RN50 (openai)") not in text
    assert words in (tmp_path / "summary.html").read_text()


def test_a_ranking_that_cannot_be_drawn_is_in_the_summary_without_its_figure(tmp_path, monkeypatch):
    def draw(title, found):
        raise ValueError("a bad setting of matplotlib")

    monkeypatch.setattr("clipbench.report.summary.ranking_figure", draw)
    undrawn, unwritten = write_report(two_models(), rankings_by_experiment(two_models()), tmp_path, [])
    assert undrawn == ["ranking of natural: ValueError: a bad setting of matplotlib"]
    assert unwritten == []
    text = (tmp_path / "summary.md").read_text()
    assert "The models confronted" in text
    assert "figures/ranking" not in text


def test_a_figure_or_a_page_that_cannot_be_written_costs_no_other_file(tmp_path):
    (tmp_path / "figures").write_text("a file in the folder's place")
    (tmp_path / "summary.md").mkdir()
    undrawn, unwritten = write_report(a_run("pass"), (), tmp_path, [])
    assert undrawn == []
    assert [line.split(":")[0] for line in unwritten] == [figure("natural", "ViT-B/32 (openai)"), "summary.md"]
    assert figure("natural", "ViT-B/32 (openai)") in (tmp_path / "summary.html").read_text()


def test_a_run_that_no_summary_can_be_made_of_keeps_its_figures_and_says_so(tmp_path):
    result = matching(np.eye(8), NAMES)
    damaged = replace(result, protocol=Protocol(classes=("a", "b")), answers={"images": answered("ab", [0], [[9]])})
    undrawn, unwritten = write_report(Run({}, (damaged,)), (), tmp_path, [])
    assert undrawn == []
    assert [line.startswith("summary.md, summary.html: IndexError") for line in unwritten] == [True]
    assert (tmp_path / "figures" / figure("natural", "ViT-B/32 (openai)")).exists()


# How it went: what was left out or counted, and how rows were made.


def run_with(optimizations=(), encoding=None, exclusions=None, broken=()):
    result = matching(np.eye(2), ["a", "b"])
    return Run({}, (replace(result, provenance=Provenance(optimizations, encoding or {}, exclusions or {}, broken)),))


def test_counts_are_shown_and_what_was_left_out_is_named():
    exclusions = {"broken_images": 1, "images_absent": 2, "cmyk_images": 0, "truncated_texts": 3}
    run = run_with(exclusions=exclusions, broken=("x.jpg",))
    text = to_markdown(list(exclusion_blocks(run)))
    assert "broken_images 1, images_absent 2, truncated_texts 3 (x.jpg)" in text
    assert "cmyk" not in text
    left_out = "left out: natural of ViT-B/32 on natural: 2 absent image(s), 1 broken image(s): x.jpg"
    assert f"  {left_out}" in list(terminal_lines(run, ()))


@pytest.mark.parametrize("exclusions", [{}, {"broken_images": 0, "truncated_texts": 0}])
def test_where_nothing_was_left_out_nothing_is_said(exclusions):
    run = run_with(exclusions=exclusions)
    assert list(exclusion_blocks(run)) == []
    assert not any("left out" in line for line in terminal_lines(run, ()))


def test_a_text_too_long_is_counted_and_is_not_left_out():
    run = run_with(exclusions={"truncated_texts": 3})
    assert "truncated_texts 3" in to_markdown(list(exclusion_blocks(run)))
    assert not any("left out" in line for line in terminal_lines(run, ()))


def test_a_result_by_the_reference_path_is_not_mentioned():
    run = run_with(encoding={"images": Encoding(2), "texts": Encoding(2)})
    assert list(encoding_blocks(run)) == []
    assert not any("note:" in line for line in terminal_lines(run, ()))


def test_an_optimization_is_named_with_its_check():
    encoding = {"texts": Encoding(2500, checked=8, largest_distance=1.5e-7, shared=3)}
    run = run_with(("cut_texts",), encoding)
    text = to_markdown(list(encoding_blocks(run)))
    assert "| texts | cut_texts | 2,500 rows; 3 shared; 8 checked, at most 1.5e-07 away |" in text
    assert "--no-optimizations takes none" in text
    assert not any("note:" in line for line in terminal_lines(run, ()))


def test_a_dropped_optimization_is_said_at_the_end_of_the_session():
    run = run_with(encoding={"images": Encoding(2, dropped="a sampled row differs")})
    said = "  note: optimization dropped: natural of ViT-B/32, 2 images encoded again: a sampled row differs"
    assert said in list(terminal_lines(run, ()))
    assert "| images | - | 2 rows; dropped: a sampled row differs |" in to_markdown(list(encoding_blocks(run)))
