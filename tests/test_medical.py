"""The medical experiments, and the contract of expected failure: what it passes, fails and leaves open."""

import re
from dataclasses import replace

import numpy as np
import pytest
from fakes import custom, matching, measure
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

import clipbench.judge.references as references
from clipbench.data.dataset import DataOptions
from clipbench.data.roco import ROCO_ROOT
from clipbench.errors import DataError, DataUnavailableError
from clipbench.experiments import all_experiments, experiment
from clipbench.experiments.matching import PROMPT
from clipbench.experiments.retrieval import whole_groups
from clipbench.judge.references import Contract, Hits, contract_decision, contract_reach, contract_verdicts, contracts
from clipbench.models.device import Resources
from clipbench.options import Options
from clipbench.session import Session
from clipbench.statistics import accuracy_difference_interval
from clipbench.storage import run_from_json, run_to_json
from clipbench.types import Key, Run

MARGIN, CHANCE = 0.25, 0.125
EIGHT = [f"item{k}" for k in range(8)]
MODEL = "ViT-B/16"
MEDICAL = next(row for row in contracts() if row.experiment == "medical")


def matrix(hits, name, model=MODEL, pretrained="openai"):
    """A matching result whose first `hits` texts pick their own image and whose others pick a neighbour's."""
    cosines = np.eye(8)
    for row in range(hits, 8):
        cosines[row, row], cosines[row, (row + 1) % 8] = 0.0, 1.0
    result = matching(cosines, EIGHT, model, pretrained)
    return replace(result, experiment=name, dataset=replace(result.dataset, name=name))


def verdict(natural, *medical, **identity):
    results = {
        name: matrix(h, name, **identity) for name, h in zip(("medical", "medical_other"), medical, strict=False)
    }
    results |= {} if natural is None else {"natural": matrix(natural, "natural", **identity)}
    return tuple(contract_verdicts(results["medical"], results))


def words(natural, medical, n, margin=MARGIN, alert=MARGIN):
    return [contract_decision(Hits(natural, 8), Hits(k, n), margin, CHANCE, alert)[1].split(" at ")[0] for k in medical]


@pytest.mark.parametrize(
    ("natural", "n", "most_that_passes", "least_that_no_longer_fails"),
    [(8, 8, 3, 9), (8, 16, 7, 16), (7, 8, 1, 9), (7, 16, 4, 15), (6, 8, 0, 8), (6, 16, 3, 14)],
)
def test_the_table_of_the_module_is_what_the_rule_gives(natural, n, most_that_passes, least_that_no_longer_fails):
    row = MEDICAL
    found = words(natural, range(n + 1), n, row.margin, row.alert_below)
    assert found.count("fails as expected") == most_that_passes + 1
    assert found[: most_that_passes + 1] == ["fails as expected"] * (most_that_passes + 1)
    assert found[least_that_no_longer_fails:] == ["no longer fails"] * max(0, n + 1 - least_that_no_longer_fails)
    assert set(found[most_that_passes + 1 : least_that_no_longer_fails]) == {"inconclusive"}


def test_a_true_difference_of_the_alert_is_alerted_on_and_one_of_the_margin_passes_at_most_one_time_in_forty():
    row = MEDICAL
    found = [words(a, range(17), 16, row.margin, row.alert_below) for a in range(9)]
    for word, difference in (("no longer fails", row.alert_below), ("fails as expected", row.margin)):
        for rate in np.linspace(difference, 1, 16):
            chance_of = stats.binom.pmf(range(9), 8, rate)[:, None] * stats.binom.pmf(range(17), 16, rate - difference)
            assert (chance_of * [[f == word for f in line] for line in found]).sum() <= 0.025, (rate, word)


def test_at_a_true_difference_of_the_margin_each_verdict_is_wrong_at_most_one_time_in_forty():
    found = [[contract_decision(Hits(a, 8), Hits(b, 8), MARGIN, CHANCE, MARGIN)[1] for b in range(9)] for a in range(9)]
    for rate in np.linspace(MARGIN, 1, 16):
        chance_of = stats.binom.pmf(range(9), 8, rate)[:, None] * stats.binom.pmf(range(9), 8, rate - MARGIN)
        for word in ("fails as expected", "no longer fails"):
            assert (chance_of * [[f == word for f in row] for row in found]).sum() <= 0.025, (rate, word)


@pytest.mark.parametrize("natural", range(5))
def test_a_collapse_of_natural_never_reads_as_medical_no_longer_failing(natural):
    ordinary = words(natural, range(11), 16)
    assert not any(word.startswith("no longer") for word in ordinary)
    alerts = [word.startswith("natural itself fails") for word in ordinary]
    assert alerts == sorted(alerts)  # from some number of hits on; at 0 of 8 whatever medical does
    assert natural or all(alerts)


def test_medical_that_is_shown_above_one_minus_the_margin_no_longer_fails_whatever_natural_does():
    assert words(0, (16,), 16) == words(4, (16,), 16) == ["no longer fails"]


def test_both_sets_are_pooled_and_the_reason_says_what_each_gave_and_what_would_have_decided():
    (passed,) = verdict(8, 1, 2)
    assert (passed.outcome, passed.kind, passed.metric) == ("pass", "contract", "text_to_image_top1")
    assert "fails as expected: natural 8 of 8, medical 3 of 16 (medical 1 of 8, medical_other 2 of 8)" in passed.reason
    assert verdict(8, 8, 8)[0].outcome == "fail"
    (open_,) = verdict(8, 4, 4)
    assert open_.outcome == "inconclusive"
    assert open_.reason.startswith("inconclusive at n=16: ")
    assert "against 8 of 8, of n=16 7 or fewer would pass and 16 would fail" in open_.reason


def test_one_set_of_eight_is_inconclusive_on_whether_a_model_no_longer_fails():
    (alone,) = verdict(8, 8)
    assert alone.outcome == "inconclusive"
    assert alone.reason.startswith("inconclusive at n=8: natural 8 of 8, medical 8 of 8; ")
    assert "3 or fewer would pass and none would fail" in alone.reason


def test_a_large_collection_decides_both_ways():
    natural = Hits(8, 8)
    assert contract_decision(natural, Hits(300, 1000), MARGIN, CHANCE, MARGIN)[1] == "fails as expected"
    assert contract_decision(natural, Hits(850, 1000), MARGIN, CHANCE, MARGIN)[1] == "no longer fails"
    assert contract_reach(natural, 1000, MARGIN, MARGIN).endswith(
        "of n=1000 379 or fewer would pass and 778 or more would fail"
    )
    around = [contract_decision(natural, Hits(hits, 1000), MARGIN, CHANCE, MARGIN)[0] for hits in (379, 380, 777, 778)]
    assert around == ["pass", "inconclusive", "inconclusive", "fail"]


def test_without_natural_nothing_can_be_told():
    (missing,) = verdict(None, 0, 0)
    assert missing.outcome == "inconclusive"
    assert "text_to_image_top1 of natural was not measured" in missing.reason


def test_random_weights_and_exempt_models_have_no_contract_and_a_row_by_name_comes_first(monkeypatch):
    assert verdict(8, 8, 8, pretrained="random:0") == ()
    general = replace(MEDICAL, models=["*"])
    rows = (
        general,
        replace(general, models=["doctor"], exempt="made for medicine"),
        replace(general, models=["strict"], margin=0.6),
    )
    monkeypatch.setattr(references, "contracts", lambda: rows)
    assert verdict(8, 8, 8, model="doctor") == ()
    assert verdict(8, 1, 2, model="strict")[0].outcome == "inconclusive"
    assert verdict(8, 1, 2, model="other")[0].outcome == "pass"


@pytest.mark.parametrize(
    ("model", "pretrained"), [("ViT-B/16", "a.pt"), ("ViT-B-32", "laion2b_s34b_b79k"), ("lite", "lite")]
)
def test_the_medical_contract_is_claimed_of_openais_models_alone(model, pretrained):
    assert verdict(8, 8, 8, model=model, pretrained=pretrained) == ()


def test_every_contract_speaks_of_experiments_that_exist_and_gives_its_source():
    for row in contracts():
        for name in (row.experiment, *filter(None, [row.against]), *row.pooled_with):
            assert experiment(name).name == name
        assert isinstance(row, Contract)
        assert 0 < row.chance < 1
        assert not row.against or 0 < row.margin <= row.alert_below < 1
        assert len(row.source) > 40


def test_the_verdict_of_a_session_does_not_depend_on_the_order_of_measuring(recorded):
    hits = {"natural": 8, "medical": 1, "medical_other": 2}
    for order in (("natural", "medical", "medical_other"), ("medical_other", "medical", "natural")):
        session = recorded(*(matrix(hits[name], name) for name in order))
        (found,) = session.verdicts(Key("medical", MODEL, "medical"))
        assert found.reason.startswith("fails as expected: natural 8 of 8, medical 3 of 16")


def test_models_are_not_mixed_up(recorded):
    session = recorded(matrix(8, "natural", "other"), matrix(1, "medical"))
    (found,) = session.verdicts(Key("medical", MODEL, "medical"))
    assert "was not measured for this model" in found.reason


@pytest.fixture
def recorded():
    """A session in which these results were measured."""

    def call(*results):
        session = Session(Options(), Resources())
        session.results.update({result.key: result for result in results})
        return session

    return call


def test_with_few_items_on_one_side_only_the_interval_still_covers():
    n_a, n_b = 8, 60
    ends = np.array([[accuracy_difference_interval(a, n_a, b, n_b) for b in range(n_b + 1)] for a in range(n_a + 1)])
    for rate_a in np.linspace(0.02, 0.98, 25):
        for rate_b in np.linspace(0.02, 0.98, 25):
            covers = (ends[..., 0] <= rate_a - rate_b) & (rate_a - rate_b <= ends[..., 1])
            share = stats.binom.pmf(range(n_a + 1), n_a, rate_a) @ covers @ stats.binom.pmf(range(n_b + 1), n_b, rate_b)
            assert share >= 0.95, (rate_a, rate_b)


# The experiments.


class Shades:
    """Sees how bright a picture is and reads the number in its caption: right, except where it was told to be wrong."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def encode_images(self, images):
        return self._rows([round(np.asarray(image, dtype=np.float64).mean() / 5) for image in images])

    def encode_texts(self, texts):
        numbers = [int(re.search(r"shade (\d+)", text)[1]) for text in texts]
        return self._rows([(n + 1) % 30 if n in self.wrong else n for n in numbers])

    def _rows(self, numbers):
        angle = 2 * np.pi * np.array(numbers)[:, None] / 31 + np.array([0, np.pi / 2])
        return np.cos(angle)


@pytest.fixture
def roco(tmp_path):
    """Twenty grey pictures in ROCO's layout."""
    folder = tmp_path / "roco/train/radiology/images"
    folder.mkdir(parents=True)
    for k in range(20):
        Image.new("L", (16, 16), 5 * k).save(folder / f"ROCO_{k:05}.jpg", quality=100)
    lines = [f"ROCO_{k:05}\tA radiograph in shade {k}" for k in range(20)]
    (folder.parent / "captions.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "roco"


def load(name, roco=None):
    """The one data set of an experiment, where ROCO was given or not."""
    options = DataOptions() if roco is None else DataOptions({ROCO_ROOT.option: (("", roco),)})
    (source,) = experiment(name).sources(options)
    return source.load()


def retrieved(roco, encoder):
    return measure("medical_retrieval", custom(encoder), load("medical_retrieval", roco))


def test_the_whole_split_is_retrieved_both_ways_and_in_groups_of_eight(roco):
    result = retrieved(roco, Shades())
    recalls = {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}
    assert {name: s.value for name, s in result.scores.items()} == dict.fromkeys([*recalls, "text_to_image_top1"], 1.0)
    assert result.scores["text_to_image_top1"].n == 16
    assert result.provenance.exclusions["texts_in_no_group"] == 4
    assert result.protocol.prompts == (PROMPT,)
    run_from_json(run_to_json(Run({}, (result,))))


def test_recall_and_groups_are_what_counting_by_hand_gives(roco):
    result = retrieved(roco, Shades(wrong=(3, 9)))
    assert result.scores["image_retrieval_recall@1"].value == 18 / 20
    assert result.scores["image_retrieval_recall@5"].value == 1
    found = result.scores["text_to_image_top1"].outcomes
    outcomes = dict(zip(found.ids, found.values, strict=True))
    groups = np.array(list(outcomes)).reshape(-1, 8)
    for wrong, neighbour in ((3, 4), (9, 10)):  # a wrong text misses where the picture it means is in its group
        own = next((g for g in groups if f"ROCO_{wrong:05}#0" in g), ())
        assert outcomes.get(f"ROCO_{wrong:05}#0", 1) == (f"ROCO_{neighbour:05}#0" not in own)


def test_a_broken_image_is_named_and_counted_and_leaves_the_other_groups_as_they_were(roco):
    whole = retrieved(roco, Shades(wrong=(5,))).scores["text_to_image_top1"].outcomes
    broken = whole.ids[2].partition("#")[0]
    (roco / f"train/radiology/images/{broken}.jpg").write_bytes(b"\xff\xd8\xff")
    result = retrieved(roco, Shades(wrong=(5,)))
    assert result.dataset.n == 19
    assert result.provenance.exclusions["broken_images"] == 1
    assert result.provenance.broken == (f"{broken}.jpg",)
    found = result.scores["text_to_image_top1"].outcomes
    assert (found.ids, found.values.tolist()) == (whole.ids[8:], whole.values[8:].tolist())


def test_under_eight_images_there_is_no_group_and_the_contract_is_inconclusive(roco):
    (roco / "train/radiology/captions.txt").write_text("ROCO_00001\tshade 1\nROCO_00002\tshade 2\n")
    result = retrieved(roco, Shades())
    assert "text_to_image_top1" not in result.scores
    result = replace(result, model=matrix(8, "natural").model)
    found = contract_verdicts(result, {"medical_retrieval": result, "natural": matrix(8, "natural")})
    assert [v.outcome for v in found] == ["inconclusive"]
    (roco / "train/radiology/captions.txt").write_text("ROCO_00001\tshade 1\n")
    with pytest.raises(DataError, match="1 image can be decoded"):
        retrieved(roco, Shades())


@given(st.integers(0, 60), st.integers(0, 3), st.sets(st.integers(0, 59), max_size=5))
def test_groups_are_eights_of_different_images_and_lose_only_what_a_broken_one_is_in(n, seed, broken):
    ids = [f"i{k}" for k in range(n)]
    kept = [item for k, item in enumerate(ids) if k not in broken]
    every = {frozenset(ids[row] for row in group) for group in whole_groups(ids, ids, seed)}
    found = {frozenset(kept[row] for row in group) for group in whole_groups(ids, kept, seed)}
    assert len(every) == n // 8
    assert all(len(group) == 8 for group in every)
    assert len(frozenset().union(*every)) == 8 * len(every)
    assert found == {group for group in every if group <= set(kept)}


def test_roco_takes_the_place_of_the_packaged_eight_only(roco):
    with pytest.raises(DataUnavailableError, match=r"lacks 6 of the study's 8 images.*ROCO_00028"):
        load("medical", roco)
    lines = [f"ROCO_{k:05}\tshade {i}" for i, k in enumerate((2, 17, 28, 33, 50, 56, 60, 135))]
    (roco / "train/radiology/captions.txt").write_text("\n".join(lines))
    for k in (2, 17, 28, 33, 50, 56, 60, 135):
        Image.new("L", (16, 16), k).save(roco / f"train/radiology/images/ROCO_{k:05}.jpg")
    study = load("medical", roco)
    assert study.items[0].id == "ROCO_00002"
    assert study.prompts == load("natural").prompts
    assert load("medical_other", roco).name == "medical_other"


def test_retrieval_exists_only_with_roco(roco):
    retrieval = all_experiments()["medical_retrieval"]
    assert retrieval.sources(DataOptions()) == ()
    assert load("medical_retrieval", roco).name == "roco_radiology"


def test_a_folder_that_is_not_roco_says_which_file_is_missing(tmp_path):
    for name in ("medical", "medical_retrieval"):
        with pytest.raises(DataUnavailableError, match=r"lacks train/radiology/captions.txt; expected ROCO's layout"):
            load(name, tmp_path)
