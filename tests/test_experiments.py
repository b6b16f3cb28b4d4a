"""The experiments on encoders whose answers are known, and `evaluate`, the notebook's door."""

import numpy as np
import pytest
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom
from PIL import Image

import clipbench
from clipbench.embed.images import embed_images
from clipbench.embed.texts import embed_texts
from clipbench.errors import DataError, DataUnavailableError, EncoderError, UsageError
from clipbench.experiments import all_experiments, speed
from clipbench.experiments.matching import matching_result
from clipbench.experiments.model_card import model_card, no_items
from clipbench.models.zoo import CARD_METRICS
from clipbench.settings import Settings

SETTINGS = Settings()


@pytest.fixture
def colours(tmp_path):
    return colour_dataset(tmp_path)


def test_an_encoder_that_sees_colours_matches_all_of_them(colours):
    result = matching_result("natural", custom(ColourEncoder()), colours, SETTINGS)
    assert {m: result.metrics[m].value for m in ("text_to_image_top1", "image_to_text_top1")} == {
        "text_to_image_top1": 1.0,
        "image_to_text_top1": 1.0,
    }
    assert result.metrics["margin_min"].value > 0
    assert result.metrics["text_to_image_top1"].low < 1


def test_a_colour_blind_encoder_ties_everywhere_and_every_tie_counts_against_it(colours):
    class Blind(ColourEncoder):
        def encode_images(self, images):
            return np.ones((len(images), 3))

    result = matching_result("natural", custom(Blind()), colours, SETTINGS)
    assert result.metrics["text_to_image_top1"].value == 0
    assert result.metrics["margin_mean"].value <= 0


def test_cells_belong_to_ids_whatever_the_order_of_the_items(tmp_path):
    straight = matching_result("natural", custom(ColourEncoder()), colour_dataset(tmp_path), SETTINGS)
    back = matching_result(
        "natural", custom(ColourEncoder()), colour_dataset(tmp_path, ColourEncoder.names[::-1]), SETTINGS
    )
    np.testing.assert_allclose(straight.arrays["similarity"], back.arrays["similarity"][::-1, ::-1], atol=1e-12)
    assert straight.items.ids == back.items.ids[::-1]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_and_workers_change_nothing(colours, batch_size, workers):
    settings = Settings(batch_size=batch_size, workers=workers)
    result = matching_result("natural", custom(ColourEncoder()), colours, settings)
    np.testing.assert_array_equal(
        result.arrays["similarity"],
        matching_result("natural", custom(ColourEncoder()), colours, SETTINGS).arrays["similarity"],
    )


def test_the_prompt_is_the_notebooks(colours):
    seen = []

    class Listening(ColourEncoder):
        def encode_texts(self, texts):
            seen.extend(texts)
            return super().encode_texts(texts)

    matching_result("natural", custom(Listening()), colours, SETTINGS)
    assert seen[0] == "This is a red picture"


def test_a_broken_picture_is_named_and_left_out_of_the_rows_but_never_of_a_matrix(tmp_path, colours):
    whole = (tmp_path / "green.png").read_bytes()
    (tmp_path / "green.png").write_bytes(whole[: len(whole) // 2])
    embedded = embed_images(custom(ColourEncoder()), colours.items, Settings(workers=2))
    assert [item.id for item in embedded.kept] == ["red", "blue", "white"]
    assert "green.png" in embedded.broken[0]
    with pytest.raises(DataError, match=r"1 of 4 images are broken: green: .*green\.png"):
        matching_result("natural", custom(ColourEncoder()), colours, SETTINGS)


def test_a_missing_picture_is_an_error_that_names_it(tmp_path, colours):
    (tmp_path / "blue.png").unlink()
    with pytest.raises(DataUnavailableError, match=r"blue\.png"):
        embed_images(custom(ColourEncoder()), colours.items, SETTINGS)


def test_nothing_to_embed_is_an_error():
    with pytest.raises(DataError, match="no texts"):
        embed_texts(custom(ColourEncoder()), [], SETTINGS)


def test_towers_of_different_dim_are_refused(colours):
    class Uneven(ColourEncoder):
        def encode_texts(self, texts):
            return np.ones((len(texts), 5))

    with pytest.raises(DataError, match="texts of dim 5 and images of dim 3"):
        matching_result("natural", custom(Uneven()), colours, SETTINGS)


def test_the_fingerprint_changes_with_a_pixel_a_caption_and_the_order(tmp_path):
    first = colour_dataset(tmp_path)
    assert first.fingerprint == colour_dataset(tmp_path).fingerprint
    assert first.fingerprint != colour_dataset(tmp_path, ColourEncoder.names[::-1]).fingerprint
    before = first.fingerprint
    Image.new("RGB", (40, 30), (254, 0, 0)).save(tmp_path / "red.png")
    again = type(first)(first.name, first.items, first.source, protocol=first.protocol)
    assert again.fingerprint != before


def test_a_card_states_only_what_the_encoder_states():
    result = model_card(custom(ColourEncoder()), no_items(SETTINGS), SETTINGS)
    assert result.metrics == {}
    stated = ColourEncoder()
    stated.card = {"params": 12, "embed_dim": 3}
    metrics = model_card(custom(stated), no_items(SETTINGS), SETTINGS).metrics
    assert {name: m.value for name, m in metrics.items()} == {"params": 12, "embed_dim": 3}
    assert set(metrics) <= set(CARD_METRICS)


def work(colours, size=4):
    return speed.workload(colours, Settings(batch_size=size))


def test_the_workload_is_exactly_one_batch(colours):
    assert [len(work(colours, size).images) for size in (1, 4, 9)] == [1, 4, 9]
    assert len(work(colours, 9).texts) == 9


def test_throughput_is_the_batch_over_the_median_round(colours):
    metric = speed.images_per_second(custom(ColourEncoder()), work(colours), lambda call, rounds: [0.5, 1.0, 2.0])
    assert metric["images_per_second"].value == 4
    assert metric["images_per_second"].n == 3


def test_throughput_without_a_timer_is_absent_not_zero(colours):
    assert speed.texts_per_second(custom(ColourEncoder()), work(colours), lambda call, rounds: []) == {}


def test_rounds_fit_the_budget(colours, monkeypatch):
    asked = []

    def rounds_at(seconds):
        monkeypatch.setattr(speed, "_seconds", lambda call: seconds)
        speed.throughput(lambda: None, 4, lambda call, rounds: asked.append(rounds) or [1.0])
        return asked[-1]

    assert [rounds_at(s) for s in (100.0, 5.0, 1.0, 0.5, 1e-6)] == [1, 2, 3, 6, 50]


@pytest.mark.parametrize(
    ("seconds", "present"),
    [
        (0.001, {"latency_p50", "latency_p90", "latency_p99"}),
        (0.2, {"latency_p50", "latency_p90"}),
        (1.0, {"latency_p50"}),
    ],
)
def test_latency_quantiles_are_absent_below_their_number_of_samples(colours, monkeypatch, seconds, present):
    monkeypatch.setattr(speed, "_seconds", lambda call: seconds)
    metrics = speed.latency(custom(ColourEncoder()), work(colours))
    assert set(metrics) == present
    assert metrics["latency_p50"].n == min(200, round(5 / seconds))
    assert metrics["latency_p50"].value == pytest.approx(seconds)


def test_a_timed_call_that_does_other_work_is_refused(colours):
    class Shortcut(ColourEncoder):
        calls = 0

        def encode_images(self, images):
            self.calls += 1
            rows = super().encode_images(images)
            return rows if self.calls > 1 else -rows

    with pytest.raises(EncoderError, match="the timed call gives other rows"):
        speed.images_per_second(custom(Shortcut()), work(colours), speed.perf_counter_timer)


def test_speed_as_a_whole_gives_every_metric_it_can(colours):
    metrics = speed.speed(custom(ColourEncoder()), colours, Settings(batch_size=2)).metrics
    assert {"images_per_second", "texts_per_second", "latency_p50", "latency_p90", "latency_p99"} <= metrics.keys()
    assert all(np.isfinite(m.value) and m.value > 0 for m in metrics.values())


def test_experiments_are_found_by_looking():
    assert list(all_experiments())[:2] == ["model_card", "natural"]
    assert "speed" in all_experiments()


def test_evaluate_takes_an_object_and_names_of_experiments():
    run = clipbench.evaluate(ColourEncoder(), experiments=["model_card"], device="cpu")
    assert [r.model.name for r in run.results] == ["ColourEncoder"]
    assert run.environment["machine"]["cores"] >= 1


def test_evaluate_refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match="unknown experiment 'naturel'; closest: natural"):
        clipbench.evaluate(ColourEncoder(), experiments=["naturel"], device="cpu")
    with pytest.raises(UsageError, match="expected one of fp32, bf16, fp16"):
        clipbench.evaluate(ColourEncoder(), precision="int8", device="cpu")
    with pytest.raises(UsageError, match="brings its own weights"):
        clipbench.evaluate(ColourEncoder(), pretrained="random", device="cpu")


def test_evaluate_notes_what_could_not_be_had(monkeypatch):
    def gone(settings):
        raise DataUnavailableError("scikit-image is not installed")

    experiment = all_experiments()["natural"]
    monkeypatch.setitem(all_experiments(), "natural", type(experiment)("natural", 20, gone, experiment.measure, ()))
    run = clipbench.evaluate(ColourEncoder(), experiments=["natural"], device="cpu")
    assert (run.results, [s.reason for s in run.skipped]) == ((), ["scikit-image is not installed"])


def test_an_encoder_with_nan_is_an_error_not_a_result(colours):
    with pytest.raises(EncoderError, match="NaN"):
        matching_result("natural", custom(NanEncoder()), colours, SETTINGS)
