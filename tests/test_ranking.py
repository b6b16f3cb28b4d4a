"""The models confronted: wins, ties, what cannot be compared, and how it is shown."""

import io
from dataclasses import replace

import numpy as np
import pytest
from fakes import matching
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from clipbench.experiments import score
from clipbench.judge.ranking import (
    imagenet_of,
    rankings,
    sign_flip_p,
)
from clipbench.judge.references import published_matrices
from clipbench.paths import file_name
from clipbench.report.document import to_markdown
from clipbench.report.page import to_html
from clipbench.report.ranking import ranking_blocks, ranking_figure, ranking_lines, rankings_by_experiment
from clipbench.report.summary import write_report
from clipbench.types import DatasetIdentity, MetricSpec, ModelIdentity, Outcomes, Protocol, Provenance, Result, Run

STUDY = ("ViT-B/16", "RN50", "ViT-L/14")
ACC1 = MetricSpec("acc1", "rate", ranked=True)
PRECISION = MetricSpec("mean_average_precision", "mean", ranked=True)


def scored(model, outcomes, spec=ACC1, pretrained="openai", clusters=None):
    """A result with these outcomes, one per item, by a model with a preprocessing of its own."""
    ids = tuple(f"i{k}" for k in range(len(outcomes)))
    found = score(spec, Outcomes(ids, np.array(outcomes, dtype=float), clusters))
    return Result(
        "zero_shot",
        ModelIdentity(model, pretrained, preprocessing=f"the resize of {model}"),
        DatasetIdentity("tests", "f" * 64, len(ids)),
        Protocol(("a {}",)),
        {spec.name: found},
    )


def run(*results):
    return Run({"machine": {}, "software": {}}, results)


def right(n, first_wrong=0, total=100):
    """`n` of `total` right, the wrong ones from `first_wrong` on."""
    row = np.ones(total, dtype=int)
    row[(first_wrong + np.arange(total - n)) % total] = 0
    return row.tolist()


def only(*results):
    (found,) = rankings(run(*results))
    return found


def test_a_clear_difference_is_a_win_and_a_loss_and_places_follow():
    found = only(scored("b", right(60)), scored("a", right(90)), scored("c", right(60)))
    assert [(s.model.name, s.place, s.wins, s.ties, s.losses) for s in found.standings] == [
        ("a", 1, 2, 0, 0),
        ("b", 2, 0, 1, 1),
        ("c", 2, 0, 1, 1),
    ]
    first = found.pairs[0]
    assert (first.a.name, first.b.name, first.a_only, first.b_only) == ("a", "b", 30, 0)
    assert first.difference == pytest.approx(0.3)
    assert 0 < first.low < 0.3 < first.high
    assert first.p < 1e-6


def test_one_or_two_of_eight_is_a_tie():
    found = only(*(scored(m, right(n, total=8)) for m, n in (("a", 8), ("b", 7), ("c", 6))))
    assert all(p.winner is None for p in found.pairs)
    assert {s.place for s in found.standings} == {1}


def test_the_published_matrices_of_three_models_tie_though_their_cosines_differ():
    results = []
    for matrix in published_matrices():
        if matrix.model in ("RN50", "ViT-B/32", "ViT-L/14@336px") and matrix.decoded and not matrix.differing_columns:
            cells = np.array([[matrix.cell(r, c)[0] for c in range(8)] for r in range(8)])
            results.append(matching(cells, matrix.names, matrix.model))
    assert len(results) == 3
    cosines = [r.scores["diagonal_mean"].value for r in results]
    assert max(cosines) - min(cosines) > 0.04
    found = rankings(run(*results))
    assert {r.metric for r in found} == {"text_to_image_top1", "image_to_text_top1"}
    assert all(p.winner is None and p.difference == 0 for r in found for p in r.pairs)


@given(st.floats(0.1, 10), st.floats(-1, 1))
def test_no_scale_or_offset_of_a_models_cosines_moves_a_ranking(scale, offset):
    ids = [f"i{k}" for k in range(6)]
    cosines = np.random.default_rng(3).normal(size=(6, 6)) + np.eye(6)

    def ranked(of_a):
        found = rankings(run(matching(of_a, ids, "a"), matching(np.eye(6), ids, "b")))
        return [(r.metric, r.pairs, [(s.model, s.place, s.score.value) for s in r.standings]) for r in found]

    assert ranked(cosines) == ranked(scale * cosines + offset)


def test_many_pairs_raise_the_bar():
    sixth = right(94, first_wrong=0)  # six items lost, none gained: p = .031 alone
    assert only(scored("a", right(100)), scored("b", sixth)).pairs[0].winner is not None
    four = only(scored("a", right(100)), scored("b", sixth), *(scored(m, right(100)) for m in "cd"))
    assert all(p.winner is None for p in four.pairs)


def test_noise_alone_is_called_a_difference_at_most_one_time_in_twenty():
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        hard = generator.random(60)
        rows = [(generator.random(60) < hard).astype(int).tolist() for _ in range(4)]
        wrong += any(p.winner for p in only(*(scored(str(k), row) for k, row in enumerate(rows))).pairs)
    assert wrong / 300 <= 0.05


def test_scores_between_0_and_1_are_compared_by_signs_and_a_paired_bootstrap():
    easy = np.random.default_rng(1).random(40) * 0.8
    low, high = scored("low", easy, PRECISION), easy + np.linspace(0, 0.1, 40)
    found = only(low, scored("high", high, PRECISION))
    (pair,) = found.pairs
    assert pair.winner is not None
    assert pair.winner.name == "high"
    assert 0 < pair.low < 0.05 < pair.high
    assert pair.a_only is None
    few = only(*(scored(m, [0.5 + d] * 5, PRECISION) for m, d in (("a", 0.0), ("b", 0.1))))
    assert few.pairs[0].winner is None  # five items cannot show anything, however much they agree


@pytest.mark.parametrize("n", [3, 8, 12])
def test_the_sign_flip_p_value_is_scipys_exact_one(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == pytest.approx(exact.pvalue)


def test_many_items_draw_signs_and_never_give_zero():
    assert sign_flip_p(np.ones(80)) == pytest.approx(1 / 20001)
    assert sign_flip_p(np.zeros(80)) == 1


def test_other_items_or_another_prompt_are_not_compared_and_say_so():
    a, b, c = (scored(m, right(90)) for m in "abc")
    prompt = replace(c, protocol=Protocol(("b {}",)))
    found = only(a, prompt, b)
    assert [s.model.name for s in found.standings] == ["a", "b"]
    assert [(m.name, why) for m, why in found.not_comparable] == [("c", 'prompts ["a {}"] -> ["b {}"]')]
    items = replace(c, dataset=replace(c.dataset, fingerprint="e" * 64))
    assert "other items" in only(a, b, items).not_comparable[0][1]
    fewer = only(a, b, scored("c", right(9, total=10)))
    assert fewer.not_comparable[0][1] == "n 100 -> 10"
    assert only(a, prompt).pairs == ()


def test_outcomes_of_other_items_of_one_set_are_not_compared():
    a, b = scored("a", right(90)), scored("b", right(90))
    outcomes = b.scores["acc1"].outcomes
    other = replace(outcomes, ids=("another", *outcomes.ids[1:]))
    b = replace(b, scores={"acc1": replace(b.scores["acc1"], outcomes=other)})
    assert only(a, b).not_comparable == ((b.model, "100 outcomes where the others have 100, 99 of the same items"),)


def test_preprocessing_and_counts_belong_to_a_model_and_hinder_no_comparison():
    a, b = scored("a", right(90)), scored("b", right(90))
    found = only(a, replace(b, provenance=Provenance(("text_truncation",), exclusions={"truncated_texts": 1})))
    assert a.model.preprocessing != b.model.preprocessing
    assert len(found.standings) == 2


def test_captions_of_one_image_are_one_witness():
    images = tuple(f"{k}" for k in range(12) for _ in range(5))
    lost = [0] * 10 + [1] * 50  # two images lost with all their captions
    alone = only(scored("a", [1] * 60), scored("b", lost))
    clustered = replace(ACC1, cluster=True)
    together = only(*(scored(name, hits, clustered, clusters=images) for name, hits in (("a", [1] * 60), ("b", lost))))
    assert together.pairs[0].winner is None
    assert alone.pairs[0].winner is not None


def test_what_is_better_when_lower_is_ranked_the_other_way():
    spec = MetricSpec("errors", "rate", "lower", ranked=True)
    found = only(scored("high", right(90), spec), scored("low", right(60), spec))
    assert [(s.model.name, s.place) for s in found.standings] == [("low", 1), ("high", 2)]
    assert found.pairs[0].winner == found.standings[0].model
    assert found.pairs[0].difference == pytest.approx(-0.3)


def test_only_what_its_spec_ranks_is_ranked_in_the_order_of_the_scores():
    cosines = np.random.default_rng(3).normal(size=(6, 6))
    found = rankings(run(*(matching(cosines, [f"i{k}" for k in range(6)], m) for m in "ab")))
    assert [r.metric for r in found] == ["text_to_image_top1", "image_to_text_top1"]


def test_the_published_accuracy_on_imagenet_is_that_of_openais_weights():
    assert imagenet_of(ModelIdentity("ViT-B/16", "openai")) == 0.6834
    assert imagenet_of(ModelIdentity("RN50", "openai")) == 0.5982
    assert imagenet_of(ModelIdentity("RN50", "random:0")) is None


# How it is shown.


def shown():
    return run(*(scored(m, right(n)) for m, n in zip(STUDY, (90, 60, 89), strict=True)))


def test_a_run_of_one_model_confronts_nothing():
    assert ranking_blocks(rankings_by_experiment(run(scored("a", right(90))))) == []
    assert list(ranking_lines(rankings_by_experiment(run(scored("a", right(90)))))) == []


def test_the_section_has_places_pairs_and_why_no_cosine_ranks(tmp_path):
    write_report(shown(), rankings_by_experiment(shown()), tmp_path, {}, [])
    text = (tmp_path / "summary.md").read_text().replace("\\", "")
    section = text[text.index("## The models confronted") :]
    for words in (
        "never by raw cosine",
        "| acc1 | 1 | ViT-B/16 (openai) | 0.900",
        "| 100 | 1 | 1 | 0 | 0.683 |",
        "ViT-B/16 (openai) is better |",
        "| tie |",
    ):
        assert words in section, words
    assert "## Environment" not in section
    assert (tmp_path / "figures" / file_name(("ranking", "zero_shot on tests"), ".png")).stat().st_size > 5000


def test_the_terminal_has_a_line_a_ranking():
    lines = list(ranking_lines(rankings_by_experiment(shown())))
    assert any("acc1, n=100: ViT-B/16 (openai) 0.900 (1-1-0)" in line for line in lines)
    tied = list(ranking_lines(rankings_by_experiment(run(*(scored(m, right(90)) for m in "ab")))))
    assert "all tie" in tied[1]


def test_random_weights_are_ranked_and_named():
    text = to_markdown(
        ranking_blocks(
            rankings_by_experiment(run(scored("a", right(90)), scored("b", right(10), pretrained="random:0")))
        )
    )
    assert "b (random:0)" in text
    assert "Models with random weights are ranked too" in text


def test_many_ties_are_counted_and_not_listed():
    text = to_markdown(ranking_blocks(rankings_by_experiment(run(*(scored(str(k), right(90)) for k in range(6))))))
    assert "15 of 15 pairs are ties." in text


@pytest.mark.fault("text that steers")
def test_names_of_models_make_no_markup():
    evil = run(scored("<b>x</b>|$y$", right(90)), scored("z", right(10)))
    assert "<b>" not in to_html(ranking_blocks(rankings_by_experiment(evil)), "t")


@pytest.mark.parametrize("models", [2, 9])
def test_the_figure_is_a_picture_that_grows_with_the_models(models):
    (found,) = rankings(run(*(scored(f"m$odel {k}", right(90 - 5 * k)) for k in range(models))))
    image = Image.open(io.BytesIO(ranking_figure("tests", [found])))
    assert image.format == "PNG"
    assert image.width > 700 + 90 * models
