"""The comparison with the peers: the same work or no clock, ratios with intervals, data in layout, a table that says what was found."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import open_clip
import peers
import pytest
import torch
from peers import COMPARISONS, PEER, Bench, Ours, PeerError, Theirs, Work, check_same, main, timed
from PIL import Image

from clipbench.data.coco import coco_crops, coco_multilabel, coco_retrieval
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec

pytest.importorskip("skimage", reason="the photographs are scikit-image's")
pytest.importorskip("clip_benchmark", reason="the peer is in the test extra")

TINY = ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu")
IMAGES = 8


def tiny(seed=0):
    return load_open_clip(replace(TINY, pretrained=f"random:{seed}"), "cpu", "fp32", True)


def silent(text):
    pass


@pytest.fixture(scope="module")
def bench(tiny_models, tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("peers"), silent, IMAGES, classes=3, templates=4, cached_images=2, rounds=2)
    made.ours = Ours(encoder=tiny())
    return made


@pytest.fixture(scope="module")
def root(bench):
    return bench.root()


class Clock:
    """Time that passes only when work says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def side(self, name, seconds):
        """A side that takes the next of these seconds at each call, the first being the check."""
        left = iter(seconds)

        def call():
            self.calls.append(name)
            self.now += next(left)
            return {"rows": np.eye(2)}

        return call


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(peers.gc, "collect", lambda: 0)  # takes a second in a process with many modules
    return Clock()


def work_of(clock, ours, theirs, turns=1):
    return Work("encode", "peer", 2.0, clock.side("ours", ours), clock.side("theirs", theirs), 2, turns)


# The data.


def test_the_folder_is_in_the_official_layout_and_every_reader_reads_all_of_it(root):
    crops, labels, retrieval = coco_crops(root), coco_multilabel(root), coco_retrieval(root)
    assert (len(crops), len(labels), len(retrieval)) == (2 * IMAGES, IMAGES, IMAGES)
    assert len(crops.classes) == 80
    assert not any({**crops.exclusions, **labels.exclusions, **retrieval.exclusions}.values())
    assert all(len(item.captions) == 5 for item in retrieval.items)


def test_pictures_are_distinct_640_by_480_in_colour_and_about_as_large_as_coco_s(root):
    files = [item.image.path for item in coco_retrieval(root).items]
    opened = [Image.open(file) for file in files]
    assert {tuple(sorted(image.size)) for image in opened} == {(480, 640)}
    assert {(image.format, image.mode) for image in opened} == {("JPEG", "RGB")}
    assert len({file.read_bytes() for file in files}) == IMAGES
    assert 120e3 < np.mean([file.stat().st_size for file in files]) < 200e3


def test_the_data_are_the_same_every_time(root, tmp_path):
    again = peers.write_coco_like(tmp_path / "again", IMAGES)
    for file in sorted(path.relative_to(root) for path in root.rglob("*.j*")):
        assert (again / file).read_bytes() == (root / file).read_bytes()


def test_captions_are_distinct_and_as_long_as_coco_s():
    texts = peers.captions(2000, ["a", "the", "man", "dog", "with", "red", "kite", "on", "beach", "table"])
    lengths = open_clip.get_tokenizer("ViT-B-32")(texts).argmax(dim=-1) + 1
    assert len(set(texts)) == 2000
    assert 10 < np.mean([len(text.split()) for text in texts]) < 11
    assert 12 < lengths.float().mean() < 13
    assert 8 <= lengths.min() <= lengths.max() <= 30


def test_captions_of_the_folder_are_about_a_token_per_word(root):
    texts = peers.captions_of(coco_retrieval(root).items)
    lengths = open_clip.get_tokenizer("ViT-B-32")(texts).argmax(dim=-1) + 1
    assert 12 < lengths.float().mean() < 14.5


# The same work, or no clock.


@pytest.mark.parametrize("name", COMPARISONS)
def test_both_sides_of_every_comparison_do_the_same_work(bench, name):
    work = COMPARISONS[name](bench)
    found = work.ours()
    check_same(name, found, work.theirs())
    assert all(len(array) for array in found.values())


def test_a_peer_with_other_weights_is_refused(bench):
    other = Theirs(tiny(seed=1), "cpu")
    work = replace(COMPARISONS["captions"](bench), theirs=lambda: {"rows": other.texts(bench.items())})
    with pytest.raises(PeerError, match="rows of clipbench differs from the peer's"):
        timed("captions", work, 2, silent)


PLANTED = {
    "off by more than additions make": {"rows": np.eye(2) + 2e-5},
    "another shape": {"rows": np.eye(3)},
    "no number": {"rows": np.full((2, 2), np.nan)},
    "an array that is absent": {"recalls": np.eye(2)},
    "nothing": {},
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_peer_that_does_other_work_is_refused_before_the_clock_is_read(planted):
    def no_clock():
        raise AssertionError("the clock was read")

    work = Work("encode", "peer", 2, lambda: {"rows": np.eye(2)}, lambda: planted, 2)
    with pytest.raises(PeerError, match="captions: "):
        timed("captions", work, 2, silent, no_clock)


def test_rows_within_the_order_of_additions_are_the_same_and_a_recall_of_one_hit_more_is_not():
    check_same("captions", {"rows": np.eye(2, dtype=np.float32)}, {"rows": np.eye(2) + 5e-6})
    with pytest.raises(PeerError, match="recalls"):
        check_same("retrieval", {"recalls": np.array([0.5])}, {"recalls": np.array([0.5 + 1 / 25_000])})


def test_what_clipbench_keeps_on_an_encoder_does_not_outlive_a_turn(bench):
    before = set(vars(bench.ours.encoder))
    bench.ours.texts(bench.items())
    bench.ours.images(bench.items())
    assert set(vars(bench.ours.encoder)) == before


def test_a_peer_that_is_not_installed_is_named_with_the_command_before_anything_is_measured(monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    assert main(["--only", "lite"]) == 2
    assert 'pip install "clipbench[test]"' in capsys.readouterr().err


# Ratios.


def test_the_ratio_is_the_peer_s_time_over_ours_and_sides_take_turns(clock):
    ratio = timed("encode", work_of(clock, [9] + [2] * 4, [1] + [6] * 4, turns=2), 2, silent, clock)
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
    assert (ratio.base, ratio.head) == (2, 6)
    assert clock.calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "theirs", "ours", "ours", "theirs"]


def test_the_interval_is_student_s_over_the_logarithms_of_the_rounds_ratios(clock):
    ratio = timed("encode", work_of(clock, [1, 1, 1, 1], [1, 2, 4, 8]), 3, silent, clock)
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert ratio.rounds == pytest.approx((2, 4, 8))
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((4, 4 * math.exp(-half), 4 * math.exp(half)), rel=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (2, 3, "yes"),
        (2.1, 3, "yes"),
        (1, 3, "cannot tell"),
        (1, 2, "cannot tell"),
        (1, 1.9, "no"),
        (None, None, "cannot tell"),
    ],
)
def test_a_target_is_reached_by_the_whole_interval(clock, low, high, word):
    ratio = timed("encode", work_of(clock, [0, 1, 1], [0, 4, 4]), 2, silent, clock)
    cells = peers.line("encode", "peer", 2, replace(ratio, low=low, high=high), lambda value: f"{value:.2f} s")
    assert cells[:3] == ("encode", "peer, 4.00 s", "1.00 s")
    assert cells[-1] == word


# Memory and whole processes.


@pytest.mark.parametrize("side", ["clipbench", PEER])
def test_a_peak_is_no_lower_than_the_memory_before(bench, side):
    before, peak = peers.encoding_peak(bench, side, 2)
    assert 0 < before <= peak


def test_where_peaks_cannot_be_counted_memory_is_not_measured_and_passes_nothing(bench, monkeypatch):
    monkeypatch.setattr(peers, "reset_peak_memory", lambda device: False)
    monkeypatch.setattr(peers, "fresh_peak", peers.encoding_peak)
    lines, notes = peers.measure(["memory"], bench)
    assert [cells[-1] for cells in lines] == ["not measured"]
    assert "cannot be counted anew" in notes[0]
    assert peers.exit_code(lines) == 3


def test_memory_is_compared_in_pairs_of_processes_that_alternate_and_stated_against_size(bench, monkeypatch):
    seen = []

    def peak(bench, side, images):
        seen.append((side, images))
        return 10e6, (100e6 if side == "clipbench" else 150e6) + images * 1e6

    monkeypatch.setattr(peers, "fresh_peak", peak)
    (cells,), note = peers.memory_lines(bench)
    assert cells[1:] == ("clip-benchmark, 158 MB", "108 MB", "1.46 (1.46 to 1.46)", "1", "yes")
    assert seen[:4] == [("clipbench", 8), (PEER, 8), (PEER, 8), ("clipbench", 8)]
    assert "on 2, 4, 8, 16 images: 102 MB (92), 104 MB (94), 108 MB (98), 116 MB (106)" in note


def test_a_process_of_memory_that_is_killed_says_so(bench, monkeypatch):
    class Killed(ThreadPoolExecutor):
        def __init__(self, workers, context):
            super().__init__(workers)

        def submit(self, *call):
            raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(peers, "ProcessPoolExecutor", Killed)
    with pytest.raises(PeerError, match="memory of clip-benchmark: a process was terminated abruptly"):
        peers.fresh_peak(bench, PEER, 2)


def test_a_session_that_does_not_pass_is_no_timing(tmp_path):
    with pytest.raises(PeerError, match=r"ended with code 4.*unrecognized arguments: --no-such-option"):
        peers.pytest_benchmarks(["--no-such-option"], tmp_path)


@pytest.mark.parametrize(("seconds", "word"), [([20, 29], "yes"), ([29, 31], "cannot tell"), ([30, 31], "no")])
def test_the_main_job_is_held_to_thirty_seconds_and_its_first_run_is_not_counted(bench, seconds, word):
    left = iter([99, *seconds])
    (cells,), _ = peers.lite_lines(bench, lambda arguments, results: next(left))
    assert cells[-1] == word
    assert cells[2] == f"{np.median(seconds):.1f} s ({seconds[0]:.1f} to {seconds[1]:.1f})"


def test_the_coco_experiments_are_held_to_thirty_seconds_on_the_pictures_of_the_table(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "coco_images", IMAGES)
    (cells,), _ = peers.coco_lines(bench, lambda arguments, results: asked.append(arguments) or 28.0)
    assert cells[0] == "COCO experiments on 8 images, 16 boxes, 40 captions, whole process"
    assert cells[-1] == "yes"
    assert {"--coco", str(bench.root()), "-k", "coco"} <= set(asked[0])


def test_a_gpu_has_a_table_and_targets_of_its_own_and_the_peers_best_number_of_workers(tmp_path, monkeypatch):
    on_cuda, on_cpu = (Bench(tmp_path, silent, device=name) for name in ("cuda:1", "cpu"))
    assert (on_cuda.at_least(9, 2.5), on_cpu.at_least(9, 2.5)) == (2.5, 9)
    assert set(peers.CUDA_TABLE) | set(peers.CPU_TABLE) <= set(peers.NAMES)
    tried = []
    monkeypatch.setattr(peers.os, "sched_getaffinity", lambda process: range(16))
    assert on_cuda.best_workers(lambda n: tried.append(n) or time.sleep(0.0 if n == 8 else 0.05)) == 8
    assert tried == [4, 8, 15, 16]
    assert on_cpu.best_workers(lambda n: pytest.fail("nothing is tried on a CPU")) == peers.PEER_WORKERS


def started(seconds, values):
    left, acc1 = iter(seconds), iter(values)

    def start(arguments, results):
        assert {"--cache", "--coco"} <= set(arguments)
        results.mkdir(parents=True, exist_ok=True)
        result = {"experiment": "coco_crops", "metrics": {"acc1": next(acc1)}, "items": {}}
        (results / "run.json").write_text(json.dumps({"clipbench": {"results": [result]}}))
        return next(left)

    return start


def test_the_second_runs_are_compared_with_the_first(bench):
    (cells,), _ = peers.cached_lines(bench, started([24, 2, 48, 2], [0.5] * 4))
    assert cells[1:3] == ("first run, 36.0 s", "2.0 s")
    assert cells[3].startswith("17 (")


def test_a_second_run_that_measures_something_else_is_refused(bench):
    with pytest.raises(PeerError, match="the run from the cache measures"):
        peers.cached_lines(bench, started([24, 2, 24, 2], [0.5, 0.5, 0.5, 0.4]))


# The command.


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["yes", "yes"], 0),
        (["yes", "no", "cannot tell"], 1),
        (["yes", "cannot tell"], 3),
        (["not measured"], 3),
        ([], 0),
    ],
)
def test_the_exit_code_says_whether_every_target_is_reached(words, code):
    assert peers.exit_code([("work", word) for word in words]) == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "captoins"], "unknown captoins; expected some of captions, "),
        (["--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--images", "0"], "--images 0: expected 2 or more"),
        (["--threads", "0"], "--threads 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_the_table(tiny_models, monkeypatch, capsys):
    monkeypatch.setattr(peers, "resolve", lambda names, weights: [TINY])
    code = main(["--quick", "--only", "images", "--only", "captions"])
    printed = capsys.readouterr().out
    assert code in (0, 1, 3)
    assert printed.count("| clip-benchmark, ") == 1
    threads = f"{torch.get_num_threads()} threads"
    for expected in (
        "| work | peer |",
        "| encode 40 COCO-like captions |",
        "| encode 8 images",
        "clip-benchmark 1.6.2",
        threads,
    ):
        assert expected in printed
