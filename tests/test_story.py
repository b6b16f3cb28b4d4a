"""What a report says first: may it be shipped, what changed, which items; the same in every form."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom, matching
from hypothesis import given
from hypothesis import strategies as st
from paired_runs import EYE, INT8, NAMES, RIGHT, RULES, compared, crops, flipped, moved, natural, run_of, scored
from test_compare_items import labelled

from clipbench.embed.embedder import Embedder, Resources
from clipbench.experiments import result_of
from clipbench.experiments.matching import NATURAL
from clipbench.judge.compare import compare_runs
from clipbench.report.comparison import to_json, to_pull_request, to_text
from clipbench.report.document import Details, Table, to_markdown
from clipbench.report.story import Compared, answers, bounds_in_words, model_answers
from clipbench.report.summary import summary_blocks, write_report
from clipbench.report.thumbs import Gallery
from clipbench.types import Key, MetricSpec, Run, Skip, Verdict

RATE, SLOW = MetricSpec("acc1", "rate"), MetricSpec("latency", "seconds", "lower")


@pytest.mark.parametrize(
    ("spec", "interval", "words"),
    [
        (RATE, (-0.012, 0.003), "between 1.2 points worse and 0.3 points better"),
        (RATE, (-0.028, -0.008), "between 0.8 points and 2.8 points worse"),
        (RATE, (0.01, 0.02), "between 1.0 points and 2.0 points better"),
        (RATE, (0.0, 0.0), "exactly the same"),
        (SLOW, (-0.5, 0.25), "between 0.25 worse and 0.5 better"),
        (MetricSpec("c", "cosine", "neither"), (-0.5, 0.25), "between 0.5 lower and 0.25 higher"),
        (RATE, None, ""),
    ],
)
def test_bounds_are_said_in_words_by_the_metrics_own_direction(spec, interval, words):
    assert bounds_in_words(spec, interval) == words


@pytest.mark.parametrize(("lost", "word"), [(200, "Do not ship"), (40, "Inconclusive"), (1, "Ship")])
def test_each_model_gets_one_answer_with_metric_and_data_set_and_what_to_do(lost, word):
    (answer,) = model_answers(compared(*crops(lost=lost)))
    assert answer.word == word
    if lost > 1:
        assert "acc1 of coco_crops on items went from 60.0 % to" in answer.reason
        assert '--accept "quality[coco_crops/items/ViT-B/32]" --reason TEXT' in answer.then
    if lost == 40:
        assert "would decide" in answer.then or "items" in answer.then


def test_a_model_without_a_base_is_never_said_to_be_shipped():
    result = matching(np.eye(8), NAMES)
    passed = replace(result, verdicts=(Verdict(result.key, "acc1", "floor", "pass", "because"),))
    told = [answers(Run({}, (one,)), None)[0].word for one in (passed, result)]
    assert told == ["Pass, no base", "Not judged"]
    kept = replace(result, verdicts=(Verdict(result.key, "acc1", "baseline", "pass", "because"),))
    assert "that is not all of it" in answers(Run({}, (kept,)), None)[0].reason
    (absent,) = answers(Run({}, (), (Skip(Key("natural", "RN50", "natural"), "no weights"),)), None)
    assert (absent.word, absent.reason) == ("Not measured", "no weights.")
    (failed,) = answers(Run({}, (passed,)), None, ["test_x: broken"])
    assert failed.word == "Do not ship"


def test_a_floor_that_fails_beside_a_base_that_holds_is_not_shipped():
    base, head = ([scored(RIGHT)], [scored(RIGHT)])
    broken = replace(head[0], verdicts=(Verdict(head[0].key, "acc1", "floor", "fail", "below the floor"),))
    run = run_of(broken)
    (answer,) = answers(run, Compared(run_of(*base), compare_runs(run_of(*base), run, RULES)))
    assert answer.word == "Do not ship"


def test_the_story_is_the_same_in_text_in_a_comment_and_in_a_summary():
    base, head = run_of(scored(RIGHT)), run_of(scored(flipped(RIGHT, lost=200), **INT8))
    comparison = compare_runs(base, head, RULES)
    summary = to_markdown(summary_blocks(head, {}, compared=Compared(base, comparison)))
    for text in (to_text(comparison, "c"), to_pull_request(comparison, "c"), summary):
        assert "do not ship: vit-b/32" in text.casefold()
        assert "200 lost, 0 gained of 5,000" in text
        assert "between 3.5 points and 4.6 points worse" in text
        assert "10 of 200 shown" in text
    assert len(json.loads(to_json(comparison, "c"))["items"]) == 200


def test_what_changed_stands_once_worst_first():
    comparison = compared(
        [natural(), scored(RIGHT)], [natural(moved(EYE, 2, 5, 0.5), **INT8), scored(flipped(RIGHT, 200), **INT8)]
    )
    text = to_pull_request(comparison, "c")
    _, changed = text.split("What changed since the base")
    table = changed[: changed.index("<details>")].strip().splitlines()[2:]
    words = [line.split(" | ")[0].strip("| ") for line in table]
    assert words == sorted(words, key=["fail", "inconclusive", "accepted"].index)
    assert words[0] == "fail"
    assert sum("acc1 of coco_crops" in line for line in table) == 1


def test_confusions_that_grew_are_named_as_pairs_everywhere():
    comparison = compared(*labelled(lost=3))
    assert "class 0 taken for class 1: 3 | 0 of 6 | 3 of 6" in to_pull_request(comparison, "c")
    assert "class 0 taken for class 1: 0 -> 3 of 6" in to_text(comparison, "c")
    (pair,) = json.loads(to_json(comparison, "c"))["confusions"]
    assert (pair["right"], pair["picked"], pair["before"], pair["after"]) == ("class 0", "class 1", 0, 3)


@given(st.integers(200, 5000), st.integers(1, 400))
def test_markdown_keeps_within_its_length_and_says_what_it_left_out(most, rows):
    table = Table(("item", "words"), [(str(k), "x" * 40) for k in range(rows)])
    text = to_markdown([table, Details("more", [table])], most)
    assert len(text.encode()) <= most
    whole = to_markdown([table, Details("more", [table])])
    assert text == whole or " rows" in text or "left out" in text


def test_a_comment_on_thousands_of_items_fits_into_one():
    ids = [f"a rather long name of a picture, number {k}" for k in range(5000)]
    comparison = compared(*crops(lost=1500, gained=900, ids=ids))
    assert len(to_pull_request(comparison, "c").encode()) <= 60_000


# Small pictures and captions beside a run.


@pytest.fixture
def seen(tmp_path):
    """A run of coloured pictures with its data set, and a base whose captions were found by other pictures."""
    dataset, encoder = colour_dataset(tmp_path), custom(ColourEncoder())
    result = result_of(NATURAL, encoder, dataset, NATURAL.measure(Embedder(encoder, Resources()), dataset))
    return Run({}, (result,)), dataset


def test_pictures_and_captions_are_kept_by_content_and_serve_a_page_without_the_data(seen, tmp_path):
    run, dataset = seen
    write_report(run, (), tmp_path / "a", [dataset])
    kept = {path.name for path in (tmp_path / "a/thumbs").iterdir()}
    assert {f"{code:016x}.jpg" for code in run.results[0].evidence["images"].pixels.tolist()} < kept
    write_report(run, (), tmp_path / "b", [], folders=[tmp_path / "a/thumbs"])
    one, other = ((tmp_path / name / "summary.html").read_text() for name in "ab")
    assert one.count("data:image/jpeg") == other.count("data:image/jpeg") > 0
    assert dataset.items[0].captions[0] in other


def test_without_pictures_text_stands_in_their_place(seen, tmp_path):
    run, dataset = seen
    write_report(run, (), tmp_path / "a", [dataset], shows="texts")
    page = (tmp_path / "a/summary.html").read_text()
    assert "data:image" not in page
    assert dataset.items[0].captions[0] in page
    assert not list((tmp_path / "a").glob("thumbs/*.jpg"))


def test_redacted_there_is_neither_a_picture_nor_a_caption_nor_a_name_of_an_item(seen, tmp_path):
    run, dataset = seen
    secret = replace(
        run.results[0],
        verdicts=(
            Verdict(run.results[0].key, "m", "floor", "fail", f"lost: {', '.join(i.id for i in dataset.items)}"),
        ),
    )
    write_report(Run({}, (secret,)), (), tmp_path / "a", [dataset], shows="numbers")
    for name in ("summary.html", "summary.md"):
        text = (tmp_path / "a" / name).read_text()
        assert "data:image/jpeg;" not in text
        for item in dataset.items:
            assert item.captions[0] not in text
            assert f": {item.id}, " not in text
        assert "lost: item " in text
    assert not (tmp_path / "a/thumbs").exists()
    assert not list(tmp_path.glob("a/figures/*natural*"))


def test_figures_and_pictures_of_an_earlier_session_go(seen, tmp_path):
    run, dataset = seen
    write_report(run, (), tmp_path, [dataset])
    mine = tmp_path / "figures" / "by-hand.png"
    mine.write_bytes(b"kept")
    assert len(list((tmp_path / "figures").iterdir())) == 2
    write_report(run_of(scored([1.0, 0.0])), (), tmp_path, [])
    assert list((tmp_path / "figures").iterdir()) == [mine]
    assert not list((tmp_path / "thumbs").glob("*.jpg"))


def test_a_file_among_the_pictures_that_is_none_is_not_shown(seen, tmp_path):
    run, _ = seen
    code = int(run.results[0].evidence["images"].pixels[0])
    tmp_path.joinpath(f"{code:016x}.jpg").write_bytes(b"<svg onload=alert(1)>")
    gallery = Gallery([run], [tmp_path])
    assert gallery.thumb(run.results[0].key, run.results[0].evidence["images"].ids[0]).source == ""


# Several runs.


def test_of_several_runs_each_headline_metric_has_a_history(tmp_path):
    runs = [run_of(scored(flipped(RIGHT, lost=n)), time=f"2026-01-0{n + 1}T00:00") for n in range(3)]
    write_report(runs[-1], (), tmp_path, [], earlier=runs[:-1])
    text = (tmp_path / "summary.md").read_text()
    assert "History of 3 runs" in text
    assert text.count("| 2026-01-0") == 3
    page = (tmp_path / "summary.html").read_text()
    assert "acc1 of coco_crops on items" in page
    assert page.count('class="mark"') == 3


def test_the_answer_names_the_head_where_it_has_another_name_than_its_base():
    def run(name, hits):
        one = run_of(scored(hits, model=name))
        return replace(one, subjects=(replace(one.subjects[0], asked={"loader": "factory"}),))

    base, head = run("acme:release", RIGHT), run("acme:int8", flipped(RIGHT, lost=200))
    comparison = compare_runs(base, head, RULES)
    (answer,) = model_answers(comparison, head)
    assert (answer.about, answer.word) == ("acme:int8", "Do not ship")
    (again,) = answers(head, Compared(base, comparison))
    assert (again.about, again.word) == ("acme:int8 (openai)", "Do not ship")
    assert Compared(base, comparison).before(head).keys() == {head.results[0].key}
