"""The rules of a comparison: read from data, refused by name when they are wrong, changed by options."""

import pytest

from clipbench.errors import DataError, DataUnavailableError, UsageError
from clipbench.judge.tolerances import read_rules, with_options
from clipbench.paths import fixtures
from clipbench.statistics import fewest
from clipbench.types import MetricSpec

BUDGET = '[[budget]]\nprecision = "fp32"\ncosine = 0.0001\nceiling = 0.001\nsource = "s"\n'
METRIC = '[[metric]]\nexperiment = "e"\nmetrics = ["m"]\ntolerance = 0.01\nrelative = 0.2\nsource = "s"\n'
REST = """
[statistics]
alpha = 0.05
alpha_fail = 0.01
source = "s"
[rows]
repeat = 0.001
median = 0.001
item = 0.01
noise = 0.05
plausible = 0.15
far = 0.3
source = "s"
[outcomes]
churn = 0.1
gain = 0.1
class_items = 10
class_share = 0.2
source = "s"
"""
MINE = MetricSpec("mine", "cosine")


def written(tmp_path, text):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def test_the_packaged_rules_can_be_read_and_every_row_has_a_source():
    rules = read_rules()
    rows = (*rules.metrics, *rules.speed, *rules.budgets, *rules.must_pass)
    assert all(row.source for row in rows)
    assert rules.moves.source
    assert rules.limits.source
    assert 0 < rules.alpha_fail < rules.alpha < 0.5


@pytest.mark.parametrize("name", ["acc1", "image_retrieval_recall@1", "a rate that nobody has heard of"])
def test_every_rate_is_declared_by_its_kind(name):
    assert read_rules().declared("any", MetricSpec(name, "rate")).tolerance == 0.01


@pytest.mark.parametrize("kind", ["cosine", "probability", "count"])
def test_what_depends_on_a_models_scale_is_declared_by_no_row(kind):
    assert read_rules().declared("any", MetricSpec("acc1", kind)) is None


def test_a_description_is_never_asked_whether_it_is_worse():
    assert read_rules().declared("any", MetricSpec("share_of_black_pixels", "rate", "neither")) is None


def test_a_row_that_names_a_metric_stands_before_its_kind():
    rules = read_rules()
    assert rules.declared("zero_shot", MetricSpec("mean_per_class_recall", "mean")).tolerance == 0.02
    assert rules.declared("zero_shot", MetricSpec("mean_average_precision", "mean")).tolerance == 0.01


def test_a_row_covers_its_experiment_and_no_other(tmp_path):
    rules = read_rules(written(tmp_path, REST + BUDGET + METRIC))
    assert rules.declared("e", MetricSpec("m", "cosine")).tolerance == 0.01
    assert rules.declared("f", MetricSpec("m", "cosine")) is None


def test_a_fifth_of_base_is_the_tolerance_where_hits_are_rare():
    rate = read_rules().declared("any", MetricSpec("acc1", "rate"))
    assert [rate.allowed(base) for base in (0.6, 0.05, 0.015, 0.0)] == pytest.approx([0.01, 0.01, 0.003, 0.0])


@pytest.mark.parametrize("kind", ["per_second", "seconds", "bytes"])
def test_speed_is_declared_by_its_kind(kind):
    rules = read_rules()
    assert rules.speed_rule(MetricSpec("x", kind)).source
    assert rules.speed_rule(MetricSpec("x", "rate")) is None


def test_a_tolerance_asked_for_by_name_is_taken_as_it_is_in_every_experiment():
    rules = with_options(read_rules(), ["mine=0.03", "acc1=0.03"], None, ["mine", "acc1"])
    assert rules.declared("e", MINE).allowed(0.01) == 0.03
    assert rules.declared("e", MetricSpec("acc1", "rate")).allowed(0.01) == 0.03


def test_the_fewest_items_that_exclude_a_drop_by_hand():
    assert [fewest(drop, 0.05) for drop in (0.03, 0.31, 0.01, 0.0)] == [99, 9, 299, 1]


def test_rows_of_a_coarser_precision_may_depend_more_on_their_batch_and_an_unknown_one_most():
    ceilings = [read_rules().ceiling(p) for p in ("fp32", "fp16", "bf16", "int8", "int4")]
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] == ceilings[-2]


def test_two_precisions_are_held_to_the_finer_one_and_an_unknown_one_to_the_finest():
    rules = read_rules()
    assert rules.budget("bf16", "fp32").precision == "fp32"
    assert rules.budget("bf16", "bf16").precision == "bf16"
    assert rules.budget("tf32", "fp32").precision == "fp32"
    assert rules.budget("tf32", "tf32").precision == "tf32"
    assert rules.budget("int4", "bf16").precision == "fp32"


def test_an_option_changes_a_copy_and_the_last_one_holds():
    rules = read_rules()
    changed = with_options(rules, ["acc1=0.2", "acc1=0.3", "0.1"], 0.01, ["acc1"])
    acc1, acc5 = (MetricSpec(name, "rate") for name in ("acc1", "acc5"))
    assert (changed.declared("coco_crops", acc1).tolerance, changed.alpha) == (0.3, 0.01)
    assert changed.declared("coco_crops", acc5).tolerance == 0.1
    assert rules.declared("coco_crops", acc1).tolerance == 0.01


@pytest.mark.parametrize("text", ["x", "acc1=x", "=0.1", "acc1=", "1.5", "-0.1", "nan", "acc1=inf"])
def test_a_tolerance_that_is_no_fraction_is_refused(text):
    with pytest.raises(UsageError, match="expected METRIC=VALUE or VALUE"):
        with_options(read_rules(), [text], None, ["acc1"])


def test_a_tolerance_of_an_unknown_metric_names_the_closest():
    with pytest.raises(UsageError, match="did you mean acc1"):
        with_options(read_rules(), ["acc_1=0.1"], None, ["acc1"])


@pytest.mark.parametrize("alpha", [0, 0.5, 1, -1])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match="--alpha"):
        with_options(read_rules(), [], alpha, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[", "is not valid TOML"),
        (REST + METRIC, "no \\[\\[budget\\]\\]"),
        (BUDGET + METRIC, "the key 'alpha' is missing"),
        (REST + BUDGET + "[[metrics]]\n", "unknown key 'metrics'; did you mean metric"),
        (REST + BUDGET + METRIC.replace("relative", "relativ"), "unknown key 'relativ'; did you mean relative"),
        (REST + BUDGET + METRIC.replace('source = "s"\n', ""), "number 1: the key 'source' is missing"),
        (
            REST + BUDGET + METRIC.replace('source = "s"', 'source = ""'),
            "source = ''; expected a text that is not empty",
        ),
        (REST + BUDGET + METRIC.replace("0.01", "1.5"), "tolerance of m is 1.5"),
        (REST + BUDGET.replace("0.0001", '"x"'), "cosine = 'x'; expected a finite number"),
        (REST.replace("0.05", "0.7", 1) + BUDGET, "alpha is 0.7"),
        (REST.replace("0.05", "'x'", 1) + BUDGET, "alpha = 'x'; expected a finite number"),
        (REST.replace("alpha ", "alhpa ", 1) + BUDGET, "unknown key 'alhpa'; did you mean alpha"),
        (REST.replace("far = 0.3", "far = 3") + BUDGET, r"far of \[rows\] is 3"),
        (REST.replace("churn = 0.1", "churn = 2") + BUDGET, r"churn of \[outcomes\] is 2"),
        (REST.replace("10", '"10"') + BUDGET, "class_items = '10'; expected a whole number"),
        (REST + BUDGET + METRIC.replace('metrics = ["m"]', ""), r"kind = '' and metrics = \[\]; expected one of them"),
        (REST + BUDGET + METRIC + 'kind = "rate"', r"kind = 'rate' and metrics = \['m'\]; expected one of them"),
        (REST + BUDGET + METRIC.replace('["m"]', '"m"'), "metrics = 'm'; expected a list of texts"),
        (REST + BUDGET + METRIC.replace('"e"', "3"), "experiment = 3; expected a text"),
    ],
)
def test_rules_that_are_wrong_are_refused_by_name(tmp_path, text, words):
    with pytest.raises((DataError, UsageError), match=words):
        read_rules(written(tmp_path, text))


def test_rules_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataUnavailableError, match=r"gone\.toml is not there"):
        read_rules(tmp_path / "gone.toml")


def test_the_items_that_must_pass_are_items_of_the_packaged_set():
    natural = (fixtures() / "natural.toml").read_text()
    (row,) = read_rules().must_pass
    assert all(f'id = "{item}"' in natural for item in row.items)
