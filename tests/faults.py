"""Faults of a CLIP in life, each at a stated dose, done to the tiny CLIP: `python tests/faults.py` says what the gate makes of each.

A fault is done where it happens (`injections`), then everything is measured as a session measures it, and `clipbench compare` holds the
run to the one without a fault. The doses were chosen before the gate's thresholds. One fault, on its own small sets:
`python tests/faults.py --fault black_decoded --pictures 500 --coco-pictures 100 --results out/`. All take 20 minutes of one core,
`--jobs 2` shares them; with `--again` the runs that are kept are judged once more, in a minute.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import injections as do
import numpy as np
import tiny_clip
import torch
from injections import IMAGES, Data, Head, Inject
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from tiny_clip.drawings import write_coco, write_folders

from clipbench import cli
from clipbench.embed.evidence import STEP
from clipbench.errors import ClipbenchError, UsageError, closest
from clipbench.report.document import Heading, Paragraph, Table, to_markdown
from clipbench.storage import dump_json, read_run, run_to_json, write_atomically

Expected = Literal["fail", "not green", "green", "not seen"]
EXPERIMENTS = ("model_card", "coco_crops", "coco_multilabel", "coco_retrieval", "zero_shot")
PICTURES, COCO_PICTURES = 5000, 1000


@dataclass(frozen=True)
class Fault:
    """One way in which a model, its data or their measuring changes in life.

    `what` has its `dose` in it. `stage`: where a perfect gate would locate it. `expected`: "fail"; "not green" (fail or inconclusive);
    "green" for a benign change; "not seen" for harm that these sets cannot show. `is_asked`: somebody chose it, and the run says so.
    `precision`: what the session is asked for.
    """

    name: str
    what: str
    stage: str
    expected: Expected
    inject: Inject = do.nothing
    dose: float = 1.0
    is_asked: bool = False
    precision: str = "fp32"

    @property
    def line(self) -> str:
        """What it is, with its dose."""
        return self.what.format(dose=self.dose)


FAIL, NOT_GREEN, GREEN = "fail", "not green", "green"
# fmt: off
FAULTS = (
    Fault("black_files", "{dose:.1%} of the picture files are black", "data", NOT_GREEN, do.files(do.resaved(do.as_black)), 0.01),
    Fault("cut_files", "{dose:.1%} of the picture files end halfway", "data", NOT_GREEN, do.files(do.cut_in_half), 0.004),
    Fault("exchanged_files", "{dose:.1%} of the files hold another's picture", "data", NOT_GREEN, do.files(do.exchanged), 0.01),
    Fault("moved_files", "{dose:.1%} of the pictures in another class's folder", "data", NOT_GREEN, do.files(do.to_next_class), 0.02),
    Fault("duplicates", "{dose:.0%} of the files are copies of another", "data", NOT_GREEN, do.files(do.duplicated), 0.05),
    Fault("recompressed", "JPEG files saved again, quality {dose:.0f}", "data", NOT_GREEN, do.recompressed, 30),
    Fault("wrong_boxes", "{dose:.0%} of the boxes of the next class", "data", NOT_GREEN, do.annotated("instances", do.next_class), 0.02),
    Fault("lost_captions", "{dose:.0%} of the captions gone", "data", NOT_GREEN, do.annotated("captions", do.no_row), 0.03),
    Fault("lost_class", "one class folder of 20 gone", "data", NOT_GREEN, do.without_class),

    Fault("upright", "EXIF orientation applied (one picture in 80 has one)", "pixels", FAIL, do.decoded(do.made_upright)),
    Fault("black_decoded", "{dose:.1%} of the pictures decode to black", "pixels", FAIL, do.decoded(do.as_black), 0.01),
    Fault("few_black_decoded", "{dose:.1%} of the pictures decode to black", "pixels", FAIL, do.decoded(do.as_black), 0.004),
    Fault("grey_decoded", "all pictures decode to grey", "pixels", NOT_GREEN, do.decoded(do.as_grey)),
    Fault("draft_decoded", "JPEG files decode at half their size", "pixels", NOT_GREEN, do.decoded(do.halved)),

    Fault("bgr", "BGR in place of RGB", "tensor", NOT_GREEN, do.prepared(do.bgr)),
    Fault("black_prepared", "{dose:.1%} of the pictures black when preprocessed", "tensor", FAIL, do.prepared(do.black), 0.01),
    Fault("upside_down", "{dose:.1%} of the pictures upside down", "tensor", FAIL, do.prepared(do.upside_down), 0.005),
    Fault("portrait_turned", "portrait pictures turned by 90 degrees", "tensor", FAIL, do.prepared(do.portrait_turned)),
    Fault("jpeg_thumbnails", "pictures pass through JPEG, quality {dose:.0f}", "tensor", NOT_GREEN, do.prepared(do.as_jpeg), 50),
    Fault("gamma", "gamma {dose}", "tensor", NOT_GREEN, do.prepared(do.brighter), 0.8),
    Fault("bilinear", "bilinear for bicubic resize", "tensor", NOT_GREEN, do.transformed(interpolation="bilinear")),
    Fault("nearest", "nearest for bicubic resize", "tensor", NOT_GREEN, do.prepared(do.nearest)),
    Fault("no_antialias", "bilinear resize without antialiasing", "tensor", NOT_GREEN, do.prepared(do.not_antialiased)),
    Fault("squash", "squashed to a square, no crop", "tensor", NOT_GREEN, do.transformed(resize_mode="squash")),
    Fault("corner_crop", "cropped at the top left, not in the middle", "tensor", NOT_GREEN, do.prepared(do.from_corner)),
    Fault("through_smaller", "resized to {dose:.0f} pixels before", "tensor", NOT_GREEN, do.prepared(do.through_smaller), 32),
    Fault("imagenet_mean", "ImageNet's mean and deviation", "tensor", NOT_GREEN, do.normalized(IMAGENET_MEAN, IMAGENET_STD)),
    Fault("half_mean", "mean and deviation of .5", "tensor", NOT_GREEN, do.normalized((0.5,) * 3, (0.5,) * 3)),
    Fault("unnormalized", "mean 0, deviation 1", "tensor", NOT_GREEN, do.normalized((0.0,) * 3, (1.0,) * 3)),

    Fault("cut_short", "texts cut at {dose:.0f} tokens", "tokens", NOT_GREEN, do.tokenized(do.cut), 10),
    Fault("cut_long", "texts cut at {dose:.0f} tokens of 32", "tokens", NOT_GREEN, do.tokenized(do.cut), 24),
    Fault("capitals_kept", "texts not lower-cased", "tokens", NOT_GREEN, do.tokenized(do.with_capitals)),
    Fault("no_end", "no end token", "tokens", NOT_GREEN, do.tokenized(do.without_end)),
    Fault("padded_left", "padding before the text", "tokens", NOT_GREEN, do.tokenized(do.padded_left)),
    Fault("no_stops", "full stops removed", "tokens", NOT_GREEN, do.tokenized(do.without_stops)),
    Fault("prefix", "'a photo of' before every text", "tokens", NOT_GREEN, do.tokenized(do.with_prefix)),
    Fault("words_exchanged", "the tokens of 'red' and 'blue' exchanged", "tokens", NOT_GREEN, do.tokenized(do.words_exchanged)),

    Fault("other_template", "class template '{{}}'", "prompts", NOT_GREEN, do.class_file(templates=["{}"])),
    Fault("names_exchanged", "two class names exchanged", "prompts", NOT_GREEN, do.class_file(classes=do.two_exchanged)),

    Fault("noise_1", "noise of {dose:.0%} on the weights", "weights", NOT_GREEN, do.stored(do.noisy), 0.01),
    Fault("noise_5", "noise of {dose:.0%} on the weights", "weights", NOT_GREEN, do.stored(do.noisy), 0.05),
    Fault("noise_20_asked", "noise of {dose:.0%} on the weights", "weights", FAIL, do.stored(do.noisy, True), 0.2, True),
    Fault("pruned_30", "the {dose:.0%} smallest weights 0", "weights", NOT_GREEN, do.stored(do.pruned), 0.3),
    Fault("pruned_50_asked", "the {dose:.0%} smallest weights 0", "weights", FAIL, do.stored(do.pruned, True), 0.5, True),
    Fault("undertrained_asked", "{dose:.0%} of the way to initial weights", "weights", FAIL, do.stored(do.undertrained, True), 0.3, True),
    Fault("layer_zero", "one MLP's output weights 0", "weights", NOT_GREEN, do.stored(do.one_layer_zero)),
    Fault("scale_doubled", "logit scale x {dose:.0f}", "weights", NOT_GREEN, do.stored(do.scale_multiplied), 2.0),
    Fault("other_architecture", "another architecture: no last vision block", "weights", NOT_GREEN, do.one_block_less),

    Fault("gelu", "GELU for QuickGELU, all {dose:.0f} blocks", "activation", NOT_GREEN, do.live(do.gelu), 6),
    Fault("gelu_one", "GELU for QuickGELU, {dose:.0f} block of 6", "activation", NOT_GREEN, do.live(do.gelu), 1),

    Fault("vision_block_skipped", "the third vision block hands on its input", "rows", NOT_GREEN, do.live(do.skipped(2))),
    Fault("text_block_skipped", "the last text block hands on its input", "rows", NOT_GREEN, do.live(do.skipped(-1))),
    Fault("norm_epsilon", "epsilon {dose} in LayerNorm", "rows", NOT_GREEN, do.live(do.epsilon), 0.01),
    Fault("norm_bias", "LayerNorm without bias", "rows", NOT_GREEN, do.live(do.without_norm_bias)),
    Fault("no_mask", "no causal mask in the text tower", "rows", NOT_GREEN, do.live(do.without_mask)),
    Fault("positions_shifted", "positions counted from {dose:.0f}", "rows", NOT_GREEN, do.live(do.positions_shifted), 1),

    Fault("dropout_2", "dropout of {dose:.0%} left on", "repeat", FAIL, do.live(do.dropout), 0.02),
    Fault("dropout_10", "dropout of {dose:.0%} left on", "repeat", FAIL, do.live(do.dropout), 0.1),
    Fault("jitter", "noise of {dose:.1%} on rows, other each time", "repeat", FAIL, do.output(do.jittered), 0.003),
    Fault("jitter_2", "noise of {dose:.0%} on rows, other each time", "repeat", FAIL, do.output(do.jittered), 0.02),

    Fault("first_of_batch", "the first of each batch of 64 disturbed", "batching", FAIL, do.output(do.first_disturbed), 0.5),
    Fault("partial_batch", "a batch that is not full averaged with its padding", "batching", FAIL, do.output(do.partial_disturbed), 0.3),
    Fault("partial_shifted", "the rows of a batch that is not full one place off", "batching", FAIL, do.output(do.partial_shifted)),
    Fault("batch_statistics", "{dose:.0%} of the batch's mean in each row", "batching", FAIL, do.output(do.dependent), 0.1),
    Fault("large_batch", "the first of {dose:,.0f} in a batch wrong", "batching", "not seen", do.output(do.large_batch_disturbed), 8192),

    Fault("off_by_one", "rows one place off within each batch", "rows", FAIL, do.output(do.off_by_one)),
    Fault("neighbour", "every picture gets the row of the one before", "rows", FAIL, do.output(do.neighbour, IMAGES)),
    Fault("threads_crossed", "two rows exchanged in {dose:.0%} of the batches", "rows", FAIL, do.output(do.threads_crossed), 0.2),
    Fault("stale_buffer", "one batch in {dose:.0f} is the one before", "rows", FAIL, do.output(do.stale, IMAGES), 20),

    Fault("bf16_unasked", "bfloat16 autocast left on", "precision", NOT_GREEN, do.live(do.autocast)),
    Fault("fp16_unasked", "layers give float16", "precision", "not seen", do.live(do.rounded(do.to_fp16))),
    Fault("tf32_unasked", "layers give 10 bits of mantissa", "precision", "not seen", do.live(do.rounded(do.to_tf32))),
    Fault("int8_unasked", "int8 weights", "precision", NOT_GREEN, do.live(do.rounded_weights), 127),
    Fault("int4_asked", "4-bit weights, stated as int8", "precision", NOT_GREEN, do.INT8, 7, True),
    Fault("bf16_hides_black", "{dose:.1%} of the pictures black beside", "tensor", FAIL, do.prepared(do.black), 0.004, True, "bf16"),

    Fault("rotated", "both towers' rows rotated alike", "rows", NOT_GREEN, do.output(do.rotated)),
    Fault("negated", "both towers' rows negated", "rows", NOT_GREEN, do.output(do.scaled), -1.0),
    Fault("scaled", "rows x {dose:.0f}", "rows", NOT_GREEN, do.output(do.scaled), 7.0),
    Fault("random_lengths", "rows of random length, up to x {dose:.0f}", "rows", NOT_GREEN, do.output(do.of_random_length), 10),
    Fault("dims_appended", "{dose:.0f} constant dims appended", "rows", NOT_GREEN, do.output(do.longer), 32),
    Fault("dims_cut", "the first {dose:.0f} of 64 dims", "rows", NOT_GREEN, do.output(do.shorter), 48),
    Fault("dims_cut_asked", "the first {dose:.0f} of 64 dims, stated", "rows", NOT_GREEN, do.DIMS, 48, True),
    Fault("shifted", "one vector of {dose:.0%} of their length added to all rows", "rows", NOT_GREEN, do.output(do.shifted), 0.2),
    Fault("quantized_rows", "rows in {dose:.0f} steps either side", "rows", NOT_GREEN, do.output(do.quantized), 7),
    Fault("constant_rows", "{dose:.1%} of the pictures get one row", "rows", FAIL, do.output(do.constant, IMAGES), 0.008),
    Fault("constant_tower", "every picture gets one row", "rows", FAIL, do.output(do.constant, IMAGES), 1.0),
    Fault("hubs", "{dose:.1%} of the pictures become hubs", "rows", FAIL, do.output(do.hubs, IMAGES), 0.004),
    Fault("dead_class", "pictures near {dose:.0f} class of 20 moved to the second best", "rows", FAIL, do.output(do.dead_class, IMAGES), 1),
    Fault("zero_rows", "{dose:.2%} of the pictures get zeros", "rows", NOT_GREEN, do.output(do.zero, IMAGES), 0.001),
    Fault("nan_rows", "{dose:.2%} of the pictures get NaN", "rows", NOT_GREEN, do.output(do.not_finite, IMAGES), 0.001),

    Fault("black_cached", "a cache filled when {dose:.1%} were black", "rows", NOT_GREEN, do.cached(do.prepared(do.black)), 0.005),
    Fault("decoded_cached", "a cache filled when {dose:.1%} decoded black", "rows", NOT_GREEN, do.cached(do.decoded(do.as_black)), 0.004),

    Fault("rank_at_most_k", "a hit is rank <= k, not < k, in classification", "scoring", FAIL, do.RANKS_CLASSES),
    Fault("rank_in_retrieval", "a hit is rank <= k, not < k, in retrieval", "scoring", FAIL, do.RANKS_RETRIEVAL),
    Fault("labels_off_by_one", "one class of 20 held to the next one's label", "scoring", FAIL, do.LABELS),
    Fault("ties_win", "ties count for the model in retrieval (5 pictures in 1,000)", "scoring", "not seen", do.TIES),

    Fault("batch_1", "batches of {dose:.0f}", "none", GREEN, do.option("batch_size"), 1),
    Fault("batch_7", "batches of {dose:.0f}", "none", GREEN, do.option("batch_size"), 7),
    Fault("batch_256", "batches of {dose:.0f}", "none", GREEN, do.option("batch_size"), 256),
    Fault("no_workers", "no threads that decode", "none", GREEN, do.option("workers"), 0),
    Fault("two_threads", "{dose:.0f} threads for the model in place of one", "none", GREEN, do.threads, 2),
    Fault("other_order", "the files written in another order", "none", GREEN, do.in_another_order),
    Fault("pt_container", "the weights in torch's container", "none", GREEN, do.container(".pt", torch.float16), is_asked=True),
    Fault("fp32_container", "the weights stored as float32", "none", GREEN, do.container(".safetensors", torch.float32), is_asked=True),
    Fault("resaved", "PNG files saved again, nothing lost", "none", GREEN, do.files(do.resaved(optimize=True), ".png")),
    Fault("grown", "{dose:.0%} more pictures", "none", GREEN, do.grown, 0.1),
    Fault("bf16_asked", "bfloat16, asked", "none", GREEN, is_asked=True, precision="bf16"),
    Fault("fp16_asked", "float16, asked", "none", GREEN, is_asked=True, precision="fp16"),
    Fault("int8_asked", "int8 weights, stated", "none", GREEN, do.INT8, 127, True),
    Fault("no_optimizations", "--no-optimizations", "none", GREEN, do.option("no_optimizations"), True),
    Fault("upgrade", "rows moved by {dose:.0e}", "none", GREEN, do.output(do.upgraded), 1e-6),
    Fault("other_loader", "the same model under the same alias by a factory", "none", GREEN, do.other_loader, is_asked=True),
    Fault("again", "nothing", "none", GREEN),
)
# fmt: on


def fault(name):
    """Return the fault of that name. Raises: UsageError with the closest names."""
    known = {f.name: f for f in FAULTS}
    if name not in known:
        raise UsageError(f"unknown fault {name!r}; closest: {closest(name, known) or ', '.join(known)}")
    return known[name]


def written(folder, pictures=PICTURES, coco_pictures=COCO_PICTURES):
    """Return the two sets, drawn into a folder; those that are there are taken as they are."""
    data = Data(folder / f"shapes-{pictures}", folder / f"coco-{coco_pictures}")
    for root, write, n in ((data.folders, write_folders, pictures), (data.coco, write_coco, coco_pictures)):
        if not root.is_dir():
            write(root, n)
    return data


def measured(chosen, data, experiments=EXPERIMENTS):
    """Return (the run of the tiny CLIP with a fault on these sets, the marks of the items that it damages); None: the base."""
    chosen = chosen or fault("again")
    before = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(1)  # where two wait for each other, a model so small takes many times as long
        folder = Path(stack.enter_context(TemporaryDirectory()))
        head = Head(data, tiny_clip.load(precision=chosen.precision), folder, stack, tuple(experiments))
        chosen.inject(head, chosen.dose)
        return do.measured(head), frozenset(head.marks)


def run_of(chosen, data, experiments=EXPERIMENTS):
    """Return the run of the tiny CLIP with a fault on these sets; None: the base."""
    return measured(chosen, data, experiments)[0]


def damaged(base, marks):
    """Return the items of the base with these marks: {(key, tower): ids}. A class row has none."""
    found, every = {}, np.fromiter(marks, dtype=np.uint64, count=len(marks))
    for result in base.results:
        for tower, evidence in result.evidence.items():
            is_marked = np.isin(evidence.contents, every)
            if tower == "images":
                is_marked |= np.isin(evidence.pixels, every)
            if is_marked.any():
                found[result.key, tower] = frozenset(np.array(evidence.ids)[is_marked].tolist())
    return found


def moves(base, head):
    """Return how far rows moved, by sketches: {(key, tower): (ids, distances)} of the items that both runs have."""
    found = {}
    heads = {result.key: result for result in head.results}
    for result in base.results:
        for tower, before in result.evidence.items():
            after = heads[result.key].evidence.get(tower) if result.key in heads else None
            if after is None or after.dim != before.dim:
                continue
            place = {name: k for k, name in enumerate(after.ids)}
            pairs = [(k, place[name]) for k, name in enumerate(before.ids) if name in place]
            old, new = (np.array(side) for side in zip(*pairs))
            apart = before.sketches[old].astype(np.float64) - after.sketches[new]
            found[result.key, tower] = tuple(before.ids[k] for k in old), np.linalg.norm(apart, axis=1) * STEP
    return found


def compared(base, head):
    """Return what `clipbench compare` says of two run files: its exit status, and its JSON. The one place that knows that output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.main(["compare", str(base), str(head), "--format", "json"])
    return status, json.loads(printed.getvalue())


def cells_of(comparison):
    """Return (cell, verdict, reason) of every judgement that is no pass, in the order given."""
    found = [
        (v.get("cell") or ".".join(filter(None, (v["experiment"], v["metric"]))), v["verdict"], v["reason"])
        for v in comparison["findings"]
    ]
    return [entry for entry in found if entry[1] in ("fail", "inconclusive")]


TRACED = {
    "decoded_pixels": "pixels",
    "preprocessed_tensor": "tensor",
    "tokens": "tokens",
    "weights": "weights",
    "precision": "precision",
    "activation": "activation",
}


def located(comparison):
    """Return where the gate says that something changed: a stage, "" where it says nothing."""
    said = [v for v in comparison["findings"] if v["verdict"] in ("fail", "inconclusive")]
    asked = next((v["reason"] for v in comparison["findings"] if "what was asked for" in v["reason"]), "")
    if any("not comparable: prompts" in v["reason"] for v in said):
        return "prompts"
    if any(" returned " in v["reason"] for v in said):
        return "rows"
    if any(v["kind"] == "items" or v["cell"] == "complete" for v in said):
        return "data"
    if any(v["kind"] == "repeat" for v in said):
        return "batching" if any("another batch" in v["reason"] for v in said) else "repeat"
    if any("it is another model" in v["reason"] for v in said):
        return "weights"
    if any("decoded pixels" in v["reason"] for v in said):
        return "pixels"
    moved = [TRACED[s["stage"]] for s in comparison["stages"] if s["state"] == "moved" and s["stage"] in TRACED]
    moved = [stage for stage in moved if stage not in asked or stage == "weights"]
    if moved:
        return moved[0]
    if any("scoring changed" in v["reason"] for v in said):
        return "scoring"
    if any(v["cell"].startswith("subject") for v in said):
        return next((stage for stage in TRACED.values() if any(stage in v["reason"] for v in said)), "weights")
    return "rows" if any(v["cell"].startswith("rows") for v in said) else ""


def named(comparison):
    """Return every item that a judgement names."""
    return {item for cell in comparison["cells"] for item in cell["items"]}


VERDICTS = {0: "pass", 1: "fail", 3: "inconclusive"}
ACCEPTABLE = {FAIL: (1,), NOT_GREEN: (1, 3), GREEN: (0,), "not seen": (0,)}
HEADER = (
    "fault",
    "what",
    "stage",
    "located",
    "expected",
    "verdict",
    "exit",
    "as expected",
    "named",
    "first cell",
    "why",
)
TOWERS = (("zero_shot", "images"), ("zero_shot", "texts"), ("coco_retrieval", "images"), ("coco_retrieval", "texts"))
SCORES = (
    ("zero_shot", "acc1"),
    ("coco_retrieval", "image_retrieval_recall@1"),
    ("coco_retrieval", "text_retrieval_recall@1"),
)
MOVES = (
    "fault",
    *(f"{experiment} {tower}: median, largest" for experiment, tower in TOWERS),
    *(name for _, name in SCORES),
)
WHY_LETTERS = 140


def moves_row(name, base, head):
    """Return the row of a fault in the table of how far rows moved."""
    found = {(key.experiment, tower): distances for (key, tower), (_, distances) in moves(base, head).items()}
    cells = [f"{np.median(found[t]):.5f}, {found[t].max():.5f}" if t in found else "-" for t in TOWERS]
    values = {(r.experiment, metric): score.value for r in head.results for metric, score in r.scores.items()}
    return name, *cells, *(f"{values[place]:.4f}" if place in values else "-" for place in SCORES)


def kept(chosen, data, results, is_judged_again=False):
    """Return (the run, its file, the marks) of a fault, measured and kept in `results`, or as it was kept there before."""
    name = chosen.name if chosen else "base"
    file, marked = results / f"{name}.json", results / f"{name}.marks.json"
    if is_judged_again and file.exists():
        return read_run(file), file, frozenset(json.loads(marked.read_text())) if marked.exists() else frozenset()
    run, marks = measured(chosen, data)
    write_atomically(file, dump_json({"clipbench": run_to_json(run)}))
    write_atomically(marked, dump_json(sorted(marks)))
    return run, file, marks


def keep(name, data, results, is_judged_again=False):
    """Do as `kept` does for the fault of that name, in a process of its own."""
    logging.disable(logging.WARNING)
    kept(fault(name), data, results, is_judged_again)


def verdict_row(chosen, status, comparison, marked):
    """Return the row of a fault in the table of verdicts; `marked`: the items that it damages."""
    cell, _, why = next(iter(cells_of(comparison)), ("", "", ""))
    what = f"{chosen.line}, asked" if chosen.is_asked else chosen.line
    judged = (VERDICTS.get(status, "unreadable"), str(status), "yes" if status in ACCEPTABLE[chosen.expected] else "no")
    share = f"{len(marked & named(comparison))} of {len(marked)}" if marked else "-"
    return (
        chosen.name,
        what,
        chosen.stage,
        located(comparison),
        chosen.expected,
        *judged,
        share,
        cell,
        why[:WHY_LETTERS],
    )


def report(faults, data, results, is_judged_again=False, progress=lambda line: None):
    """Return (the table of verdicts, the table of moves) of these faults, as Markdown; all runs and comparisons stay in `results`."""
    base, base_file, _ = kept(None, data, results, is_judged_again)
    rows, moved = [], [moves_row("base", base, base)]
    for chosen in faults:
        head, file, marks = kept(chosen, data, results, is_judged_again)
        status, comparison = compared(base_file, file)
        write_atomically(results / f"{chosen.name}.compared.json", dump_json(comparison))
        marked = frozenset().union(*damaged(base, marks).values()) if marks else frozenset()
        rows.append(verdict_row(chosen, status, comparison, marked))
        moved.append(moves_row(chosen.name, base, head))
        progress(f"{chosen.name}: {', '.join(rows[-1][3:8])}")
    as_expected = Counter(row[7] for row in rows)["yes"]
    says = f"{len(rows)} faults on {len(data.pictures):,} pictures; {as_expected} judged as expected."
    moves_table = [Heading("How far rows moved", 3), Table(MOVES, moved)]
    return to_markdown([Paragraph(says), Table(HEADER, rows)]), to_markdown(moves_table)


def main(arguments=None):
    """Print the table and return 0; 2 for usage or what cannot be measured (one line on standard error)."""
    parser = argparse.ArgumentParser(prog="python tests/faults.py", description="What the gate says of faults.")
    add = parser.add_argument
    add("--fault", action="append", default=[], metavar="NAME", help="only this fault; may be given again")
    add("--pictures", type=int, default=PICTURES, help="in class folders (default: 5,000)")
    add("--coco-pictures", type=int, default=COCO_PICTURES, help="in COCO's layout (default: 1,000)")
    add("--results", type=Path, metavar="DIR", help="keep the runs, faults.md, moves.md and the sets here")
    add(
        "--again",
        action="store_true",
        help="judge the runs that are in --results again, measure only those that are not",
    )
    add("--jobs", type=int, default=1, help="processes that measure (default: 1)")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # open_clip's, that a model has no weights yet
    try:
        chosen = [fault(name) for name in given.fault] or FAULTS
        with ExitStack() as stack:
            results = given.results or Path(stack.enter_context(TemporaryDirectory()))
            data = written(results / "data", given.pictures, given.coco_pictures)
            if given.jobs > 1:
                kept(None, data, results, given.again)
                with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
                    measure = partial(keep, data=data, results=results, is_judged_again=given.again)
                    list(pool.map(measure, [f.name for f in chosen]))
            is_measured = given.again or given.jobs > 1
            table, moved = report(chosen, data, results, is_measured, lambda line: sys.stderr.write(f"{line}\n"))
            write_atomically(results / "faults.md", table)
            write_atomically(results / "moves.md", moved)
        sys.stdout.write(table)
    except (ClipbenchError, OSError) as error:
        sys.stderr.write(f"faults: error: {error}\n")
        return 2
    finally:
        logging.disable(logging.NOTSET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
