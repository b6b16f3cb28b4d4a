"""clipbench timed against clip-benchmark and plain open_clip on the same work: `python tests/peers.py` prints the README's table.

A ViT-B/32 with random weights, fp32, COCO-like images made on the spot; about an hour on two cores. A part:
`python tests/peers.py --only captions,classifier`. `--device cuda` has a table of its own, on larger sets. Both sides take
turns in one process with the same weights, inputs and threads, after a check that they give the same rows; a ratio above 1 is
clipbench being faster.
"""

import argparse
import contextlib
import copy
import gc
import importlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipbench.data.coco import coco_retrieval
from clipbench.data.dataset import _file_sha256
from clipbench.data.folders import class_set
from clipbench.data.packaged import packaged_coco
from clipbench.embed.embedder import Embedder
from clipbench.errors import ClipbenchError
from clipbench.experiments.retrieval import caption_retrieval
from clipbench.models import load_encoder
from clipbench.models.device import keep_to_one_thread, peak_memory_bytes, release, reset_peak_memory, resolve_resources
from clipbench.models.zoo import resolve
from clipbench.paths import benchmarks
from clipbench.report.document import Paragraph, Table, to_markdown
from clipbench.session import environment
from clipbench.statistics import judged_ratio, round_ratio

MODEL, PRETRAINED = "ViT-B/32", "random:0"
PEER, PEER_BATCH, PEER_WORKERS = "clip-benchmark", 64, 4
"""Batch and workers are the defaults of clip-benchmark's command line; in retrieval a batch is images and all their captions."""

AGREE = 1e-5
"""The largest difference of an element of a unit row between the sides: what the order of float32 additions makes. A recall
that differs by one hit differs by more, on fewer than 100,000 queries."""

RECALLS = [(way, k) for k in (1, 5, 10) for way in ("image", "text")]
MEGA, UNDER_SECONDS = 1e6, 30.0
SPLIT, CAPTIONS_PER_IMAGE = "val2017", 5


class PeerError(ClipbenchError):
    """A peer that is not installed or does other work than clipbench, or a process of a comparison that failed."""


def write_coco_like(root, images):
    """Write distinct images with two boxes and five captions each in COCO's official layout; return `root`.

    Like val2017's (https://cocodataset.org): 640 x 480, every fourth upright, 0.16 MB. Each is a crop of its own of a packaged colour
    photograph, with a film's grain. COCO has 7.3 boxes per image: fewer make what the cache saves smaller, never larger.
    """
    for folder in (SPLIT, "annotations"):
        (root / folder).mkdir(parents=True)
    mini = packaged_coco()
    opened = [Image.open(ref.path) for _, ref in sorted(mini.images.items())]
    photographs = [
        image for image in opened if image.mode == "RGB"
    ]  # drawings and grey pictures would compress too well
    instances, texts = (
        json.loads((mini.root / f"annotations/{x}_{SPLIT}.json").read_text()) for x in ("instances", "captions")
    )
    words = sorted({word for row in texts["annotations"] for word in row["caption"].lower().strip(".").split()})
    classes, rows, boxes = instances["categories"], [], []
    for number in range(images):
        width, height = (480, 640) if number % 4 == 3 else (640, 480)
        rows.append({"id": number + 1, "file_name": f"{number + 1:012d}.jpg", "width": width, "height": height})
        for place in (0, 1):
            category = classes[(2 * number + place) % len(classes)]["id"]
            box = {"bbox": [place * width / 2, place * height / 4, width / 2, height / 2], "area": width * height / 4}
            boxes.append({"id": len(boxes) + 1, "image_id": number + 1, "category_id": category, "iscrowd": 0, **box})

    def write(row):
        number = row["id"] - 1
        photograph, generator = photographs[number % len(photographs)], np.random.default_rng(number)
        picture = photograph_like(photograph, row["width"], row["height"], generator)
        picture.save(root / SPLIT / row["file_name"], "JPEG", quality=93)

    for photograph in photographs:
        photograph.load()
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, rows))
    sentences = enumerate(captions(images * CAPTIONS_PER_IMAGE, words))
    texts = [{"id": k, "image_id": k // CAPTIONS_PER_IMAGE + 1, "caption": caption} for k, caption in sentences]
    for name, content in (
        ("instances", {"annotations": boxes, "categories": classes}),
        ("captions", {"annotations": texts}),
    ):
        (root / f"annotations/{name}_{SPLIT}.json").write_text(json.dumps({"images": rows, **content}))
    return root


def photograph_like(photograph, width, height, generator):
    scale = min(photograph.width / width, photograph.height / height) * generator.uniform(0.6, 1.0)
    left, top = generator.uniform(0, 1, 2) * (photograph.width - scale * width, photograph.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    pixels = np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    grain = 10 * generator.standard_normal((height, width, 1), dtype=np.float32)  # brings the mean file near COCO's
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def captions(n, words):
    """Return n distinct texts of 10.5 words on average, as COCO's have; what a text says makes a text tower no work."""
    generator, found = np.random.default_rng(0), {}
    while len(found) < n:
        length = min(27, 6 + generator.negative_binomial(12, 12 / 16.5))
        found[" ".join(generator.choice(words, length))] = None
    return list(found)


class Ours:
    """clipbench's side: the calls that its experiments make, and all that this script knows of its inside.

    Every call works on a fresh copy of the encoder object (the weights are shared) and hashes its files anew, so that whatever
    clipbench checks or remembers is paid for each time, and never timed as nothing.
    """

    def __init__(self, device="cpu", workers=None, encoder=None, optimize=True):
        self.resources, self.optimize = resolve_resources(device, "fp32", None, workers), optimize
        self.encoder = encoder or load_encoder(resolve([MODEL], PRETRAINED)[0], self.resources, offline=True)

    def reference_path(self):
        """The same without an optimization, decoding in the thread that calls."""
        return Ours(self.resources.device, 0, self.encoder, optimize=False)

    def embedder(self):
        _file_sha256.cache_clear()
        return Embedder(copy.copy(self.encoder), self.resources, optimize=self.optimize)

    def images(self, items):
        return self.embedder().images(items).rows

    def texts(self, items):
        return self.embedder().texts(captions_of(items)).rows

    def classes(self, classes, templates):
        return self.embedder().classes(classes, templates).rows

    def retrieval(self, root):
        """Rows and recalls of the whole experiment, the reading of annotations included."""
        embedder = self.embedder()
        dataset = coco_retrieval(root)
        measured = caption_retrieval(embedder, dataset)
        values = {score.spec.name: score.value for score in measured.scores}
        recalls = [values[f"{way}_retrieval_recall@{k}"] for way, k in RECALLS if k < len(dataset)]
        return {"images": measured.images.rows, "texts": measured.texts.rows, "recalls": np.array(recalls)}


class Theirs:
    """clip-benchmark, called as its command line calls it, and plain open_clip, both on the encoder's own model, tokenizer and
    preprocessing: the very same weights. clip-benchmark's mixed precision is off."""

    def __init__(self, encoder, device):
        self.model, self.tokenizer, self.preprocess = encoder.model, encoder.tokenizer, encoder.preprocess
        self.device = device

    def pixels(self, items):
        return torch.stack([self.preprocess(Image.open(item.image.path).convert("RGB")) for item in items])

    def classes(self, classes, templates):
        call, templates = (
            peer("zeroshot_classification").zero_shot_classifier,
            [t.replace("{}", "{c}") for t in templates],
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return call(self.model, self.tokenizer, classes, templates, self.device, amp=False).T.cpu().numpy()

    def texts(self, items):
        """Rows of all captions from the retrieval evaluation, given image rows that cost nothing."""
        blank = torch.ones(1, self.model.encode_text(self.tokenizer(["a"]).to(self.device)).shape[1])
        return self.retrieval(items, 0, lambda some: blank.expand(len(some), -1), lambda rows: rows)["texts"]

    def retrieval(self, items, workers=PEER_WORKERS, pixels=None, encode_image=None):
        """Rows and recalls of the retrieval evaluation over a DataLoader of the image files."""
        evaluate = peer("zeroshot_retrieval").evaluate
        pixels, recorded = (
            pixels or self.pixels,
            Recorded(encode_image or self.model.encode_image, self.model.encode_text),
        )
        dataset = [(pixels, item) for item in items]
        recalls = [(way, k) for way, k in RECALLS if k < len(items)]
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more workers than cores
            loader = torch.utils.data.DataLoader(dataset, PEER_BATCH, num_workers=workers, collate_fn=collate)
            ks = sorted({k for _, k in recalls})
            found = evaluate(recorded, loader, self.tokenizer, self.device, amp=False, recall_k_list=ks)
        values = np.array([found[f"{way}_retrieval_recall@{k}"] for way, k in recalls])
        return {"images": unit(recorded.rows["image"]), "texts": unit(recorded.rows["text"]), "recalls": values}

    def loop(self, items, batch):
        """Rows of a loop over open_clip as anybody writes it by hand."""
        texts, images, rows = captions_of(items), [], []
        with torch.inference_mode():
            for start in range(0, len(items), batch):
                images.append(self.model.encode_image(self.pixels(items[start : start + batch]).to(self.device)))
            for start in range(0, len(texts), batch):
                rows.append(self.model.encode_text(self.tokenizer(texts[start : start + batch]).to(self.device)))
        return {"images": unit(images), "texts": unit(rows)}

    def loader(self, items, workers):
        """Rows of the image tower over a plain DataLoader of the image files."""
        dataset, pinned = [(self.pixels, item) for item in items], self.device.startswith("cuda")
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # more workers than cores
            loader = torch.utils.data.DataLoader(
                dataset, PEER_BATCH, num_workers=workers, collate_fn=collate, pin_memory=pinned
            )
            encode = self.model.encode_image
            return unit([encode(pixels.to(self.device, non_blocking=True)) for pixels, _ in loader])

    def preprocessed(self, items, workers):
        """Decode and preprocess in threads, and nothing else."""
        with ThreadPoolExecutor(max(1, workers), initializer=keep_to_one_thread) as pool:
            for _ in pool.map(lambda item: self.pixels([item]), items):
                pass

    def forward(self, batches):
        """Rows of the image tower alone."""
        with torch.inference_mode():
            return unit([self.model.encode_image(batch) for batch in batches])


class Recorded:
    """A model as clip-benchmark calls it, which keeps what it returned: that is what the check looks at."""

    def __init__(self, encode_image, encode_text):
        self._encode, self.rows = {"image": encode_image, "text": encode_text}, {"image": [], "text": []}

    def _kept(self, what, inputs):
        self.rows[what].append(self._encode[what](inputs))
        return self.rows[what][-1]

    def encode_image(self, pixels):
        return self._kept("image", pixels)

    def encode_text(self, tokens):
        return self._kept("text", tokens)


def collate(batch):
    """As clip_benchmark.datasets.builder.image_captions_collate_fn, whose module needs packages that it does not require."""
    return torch.cat([pixels([item]) for pixels, item in batch]), [item.captions for _, item in batch]


def peer(module):
    """Return a module of clip-benchmark. Raises: PeerError with the command that installs it."""
    try:
        return importlib.import_module(f"clip_benchmark.metrics.{module}")
    except ModuleNotFoundError as error:
        raise PeerError('the peer clip-benchmark is not installed; pip install "clipbench[test]"') from error


def unit(rows):
    return normalize(torch.cat(rows).float(), dim=-1).cpu().numpy()


def captions_of(items):
    return [caption for item in items for caption in item.captions]


@dataclass(frozen=True)
class Work:
    """What is timed; the sides return named arrays. `at_least`: by how much clipbench is to be faster (a rate over the peer's).

    A round is `turns` pairs, one after the other; its ratio is their median.
    """

    what: str
    peer: str
    at_least: float
    ours: Callable
    theirs: Callable
    rounds: int
    turns: int = 1


@dataclass
class Bench:
    """How much is compared where, and both sides, loaded when they are first asked for. `rounds` 0: as many as each work has."""

    folder: Path
    say: Callable | None = None
    images: int = 64
    classes: int = 80
    templates: int = 80
    cached_images: int = 500
    coco_images: int = 5000
    rounds: int = 0
    device: str = "cpu"
    workers: int | None = None

    @property
    def on_cuda(self):
        return self.device.startswith("cuda")

    def at_least(self, cpu, cuda):
        """The target of this device."""
        return cuda if self.on_cuda else cpu

    def best_workers(self, call):
        """The number of processes with which a peer's call takes least: its default on a CPU, where more only share the cores."""
        if not self.on_cuda:
            return PEER_WORKERS
        cores, seconds = len(os.sched_getaffinity(0)), {}
        for workers in sorted({min(PEER_WORKERS, cores), min(8, cores), max(1, cores - 1), cores}):
            self.say(f"a peer with {workers} workers")
            start = time.perf_counter()
            call(workers)
            seconds[workers] = time.perf_counter() - start
        return min(seconds, key=seconds.get)

    @cached_property
    def ours(self):
        return Ours(self.device, self.workers)

    @cached_property
    def theirs(self):
        return Theirs(self.ours.encoder, self.device)

    def root(self, images=None):
        """Return a folder with that many images in COCO's layout, written once."""
        root = self.folder / f"coco_{images or self.images}"
        return root if root.is_dir() else write_coco_like(root, images or self.images)

    def items(self, images=None):
        return coco_retrieval(self.root(images)).items


def captions_work(bench):
    ours, theirs, items = bench.ours, bench.theirs, bench.items()
    sides = (lambda: {"rows": ours.texts(items)}), (lambda: {"rows": theirs.texts(items)})
    what = f"encode {len(captions_of(items))} COCO-like captions"
    return Work(what, PEER, bench.at_least(5.5, 2.5), *sides, rounds=7)


def classifier_work(bench):
    ours, theirs = bench.ours, bench.theirs
    categories = json.loads((bench.root() / f"annotations/instances_{SPLIT}.json").read_text())["categories"]
    texts = [row["name"] for row in categories][: bench.classes], class_set("imagenet1k").templates[: bench.templates]
    what = f"zero-shot classifier, {len(texts[0])} classes x {len(texts[1])} templates"
    sides = (lambda: {"rows": ours.classes(*texts)}), (lambda: {"rows": theirs.classes(*texts)})
    return Work(what, PEER, bench.at_least(9, 2.5), *sides, rounds=3)


def retrieval_work(bench):
    ours, theirs, items = bench.ours, bench.theirs, bench.items()
    what = f"retrieval evaluation, {len(items)} images, {CAPTIONS_PER_IMAGE} captions each"
    workers = bench.best_workers(lambda workers: theirs.retrieval(items, workers))
    sides = (lambda: ours.retrieval(bench.root())), (lambda: theirs.retrieval(items, workers))
    return Work(what, f"{PEER}, {workers} workers", bench.at_least(3.2, 2), *sides, rounds=7)


def images_work(bench):
    ours, theirs, items, size = bench.ours, bench.theirs, bench.items(), bench.ours.resources.batch_size
    ready = [theirs.pixels(items[k : k + size]).to(bench.device) for k in range(0, len(items), size)]
    sides = (lambda: {"rows": ours.images(items)}), (lambda: {"rows": theirs.forward(ready)})
    what, against = f"encode {len(items)} images from files", "bare forward pass on ready tensors"
    return Work(what, against, 0.93, *sides, rounds=15, turns=2)


def loader_work(bench):
    ours, theirs, items = bench.ours, bench.theirs, bench.items()
    workers = bench.best_workers(lambda workers: theirs.loader(items, workers))
    sides = (lambda: {"rows": ours.images(items)}), (lambda: {"rows": theirs.loader(items, workers)})
    return Work(f"encode {len(items)} images from files", f"a DataLoader, {workers} workers", 0.95, *sides, rounds=7)


def feed_work(bench):
    """The whole path against its preprocessing; on a CPU with a model that costs nothing, on CUDA with the real one."""
    ours, theirs, items = bench.ours, bench.theirs, bench.items(bench.images if bench.on_cuda else 4 * bench.images)
    what = f"encode {len(items)} images from files"
    if not bench.on_cuda:
        encoder = copy.copy(ours.encoder)
        encoder.model = copy.copy(encoder.model)
        encoder.model.encode_image = lambda pixels: pixels[:, :, 20, 8:16].flatten(1)
        ours, theirs = Ours(bench.device, bench.workers, encoder), Theirs(encoder, bench.device)
        what += " with a model that costs nothing"
    expected = theirs.forward([theirs.pixels([item]).to(bench.device) for item in items])

    def alone():
        theirs.preprocessed(items, ours.resources.workers)
        return {"rows": expected}

    against = f"preprocessing alone, {ours.resources.workers} threads"
    return Work(what, against, 0.9, lambda: {"rows": ours.images(items)}, alone, rounds=15, turns=2)


def harness_work(bench):
    ours, theirs, items = bench.ours.reference_path(), bench.theirs, bench.items()[: max(2, bench.images // 4)]
    what = f"the reference path, {len(items)} images from files and {len(captions_of(items))} captions"
    sides = (lambda: encoded(ours, items)), (lambda: theirs.loop(items, ours.resources.batch_size))
    return Work(what, "a hand-written loop over open_clip", 0.97, *sides, rounds=15, turns=2)


def encoded(side, items):
    return {"images": side.images(items), "texts": side.texts(items)}


COMPARISONS = {
    "captions": captions_work,
    "classifier": classifier_work,
    "retrieval": retrieval_work,
    "images": images_work,
    "feed": feed_work,
    "loader": loader_work,
    "harness": harness_work,
}


def check_same(name, ours, theirs):
    """Raises: PeerError when the sides did not compute the same thing, so that no clock is read over different work."""
    if not theirs or ours.keys() != theirs.keys():
        raise PeerError(f"{name}: clipbench gives {sorted(ours)}, the peer {sorted(theirs)}; expected the same arrays")
    for what, expected in theirs.items():
        if ours[what].shape != expected.shape:
            raise PeerError(f"{name}: {what} of clipbench has shape {ours[what].shape}, the peer's {expected.shape}")
        difference = float(np.abs(np.subtract(ours[what], expected, dtype=np.float64)).max())
        if not difference <= AGREE:
            raise PeerError(
                f"{name}: {what} of clipbench differs from the peer's by {difference:.2g}, allowed {AGREE:.0e}; "
                "nothing is timed before both do the same work"
            )


def timed(name, work, rounds, say, clock=time.perf_counter):
    """Return the peer's seconds over clipbench's (`base`: clipbench's seconds, `head`: the peer's), with its interval.

    Both sides run once before, to be warm and to be checked; then they take turns, and which one starts alternates.
    """
    say(f"{name}: is it the same work?")
    check_same(name, work.ours(), work.theirs())
    found = []
    for number in range(rounds):
        say(f"{name}: round {number + 1} of {rounds}")
        seconds = {"ours": [], "theirs": []}
        for turn in range(work.turns):
            for side in ("ours", "theirs") if (number + turn) % 2 == 0 else ("theirs", "ours"):
                gc.collect()
                start = clock()
                getattr(work, side)()
                seconds[side].append(clock() - start)
        found.append((round_ratio(*seconds.values()), *map(median, seconds.values())))
    return judged_ratio(name, found, 0)


def encoding_peak(bench, side, images):
    """Return this process's memory in bytes (before, peak) while one side encodes images and captions.

    clip-benchmark decodes in this process, too: what its loader's processes would hold is not counted against it.

    Raises: PeerError where the machine cannot start the count anew.
    """
    items, ours, theirs = bench.items(images), bench.ours, bench.theirs
    release(bench.device)
    if not reset_peak_memory(bench.device):
        raise PeerError("peak memory cannot be counted anew on this machine; leave memory out with --only")
    before = peak_memory_bytes(bench.device)
    theirs.retrieval(items, workers=0) if side == PEER else encoded(ours, items)
    return before, peak_memory_bytes(bench.device)


def fresh_peak(bench, side, images):
    """Return `encoding_peak` of a fresh process. Raises: PeerError when it fails."""
    bench.say(f"memory: {side}, {images} images")
    bench.root(images)
    fresh = Bench(bench.folder, device=bench.device, workers=bench.workers)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(encoding_peak, fresh, side, images).result()
        except BrokenProcessPool as error:
            raise PeerError(f"memory of {side}: {error}") from error


def memory_lines(bench):
    """Return the line of the peer's peak over clipbench's, from pairs of fresh processes, and what grows with size as a note."""
    sides, rounds, pair = ("clipbench", PEER), [], {}
    for number in range(bench.rounds or 3):
        for side in sides if number % 2 == 0 else sides[::-1]:
            pair[side] = fresh_peak(bench, side, bench.images)
        base, head = (float(pair[side][1]) for side in sides)
        rounds.append((head / base, base, head))
    sizes = [bench.images * step // 4 for step in (1, 2, 4, 8)]
    peaks = [(images, *fresh_peak(bench, "clipbench", images)) for images in sizes]
    grown = ", ".join(f"{peak / MEGA:.0f} MB ({(peak - before) / MEGA:.0f})" for _, before, peak in peaks)
    note = f"Peak memory of clipbench (of it, added by encoding) on {', '.join(map(str, sizes))} images: {grown}."
    what = f"peak memory of encoding {bench.images} images with their captions, a fresh process each"
    return [line(what, PEER, 1, judged_ratio("memory", rounds, 0), lambda value: f"{value / MEGA:.0f} MB")], note


def pytest_benchmarks(arguments, results):
    """Return the wall-clock seconds of a fresh `pytest benchmarks`. Raises: PeerError when it does not pass."""
    command = [sys.executable, "-m", "pytest", str(benchmarks()), "-q", "-p", "no:cacheprovider", "--offline"]
    command += ["--results", str(results), *arguments]
    results.mkdir(parents=True, exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "CLIPBENCH_CACHE"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=results, env=variables, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        errors = [text for text in said if "error: " in text.lower()] or said
        raise PeerError(f"`pytest benchmarks {' '.join(arguments)}` ended with code {done.returncode}: {errors[-1]}")
    return seconds


def lite_lines(bench, start=pytest_benchmarks):
    """Return the line of the main job. A first run is not counted, since it may build the embedded model."""
    return limited_lines(bench, "lite", "`pytest benchmarks`, lite", [], start)


def coco_lines(bench, start=pytest_benchmarks):
    """Return the line of the COCO experiments. A first run is not counted, since the files are in no cache of the system yet."""
    images = bench.coco_images
    asked = ["--model", MODEL, "--pretrained", PRETRAINED, "-k", "coco", "--coco", str(bench.root(images))]
    what = f"COCO experiments on {images} images, {2 * images} boxes, {CAPTIONS_PER_IMAGE * images} captions"
    return limited_lines(bench, "coco", what, asked, start)


def limited_lines(bench, name, what, asked, start):
    """Return the line of a whole process: reached when every run but the first was under the limit, missed when none was."""
    folders = [bench.folder / f"{name}_{k}" for k in range(1 + (bench.rounds or 3))]
    seconds = [start(["--device", bench.device, *asked], folder) for folder in folders][1:]
    under = [each < UNDER_SECONDS for each in seconds]
    word = "yes" if all(under) else "cannot tell" if any(under) else "no"
    took = f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
    return [(f"{what}, whole process", "-", took, "-", f"under {UNDER_SECONDS:.0f} s", word)], ""


def cached_lines(bench, start=pytest_benchmarks):
    """Return the line of a first run of the COCO experiments against a second one that finds the first one's cache.

    Raises: PeerError when a run fails, or a second one measures anything else than the first.
    """
    asked = ["--device", bench.device, "--model", MODEL, "--pretrained", PRETRAINED, "-k", "coco"]
    asked, rounds = [*asked, "--coco", str(bench.root(bench.cached_images))], []
    for number in range(bench.rounds or 3):
        bench.say(f"cached: round {number + 1} of {bench.rounds or 3}")
        cache, folders = bench.folder / f"cache_{number}", [bench.folder / f"{x}_{number}" for x in ("first", "second")]
        first, second = (start([*asked, "--cache", str(cache)], folder) for folder in folders)
        runs = [json.loads((folder / "run.json").read_text())["clipbench"]["results"] for folder in folders]
        before, after = ({r["experiment"]: (r["metrics"], r["items"]) for r in run} for run in runs)
        if not before or before != after:
            raise PeerError(
                f"the run from the cache measures {sorted(after)} otherwise than the first, {sorted(before)}"
            )
        rounds.append((first / second, second, first))
    what = f"COCO experiments on {bench.cached_images} COCO-like images, second run from the cache, whole process"
    return [line(what, "first run", 12, judged_ratio("cached", rounds, 0), lambda value: f"{value:.1f} s")], ""


OTHERS = {"cached": cached_lines, "memory": memory_lines, "lite": lite_lines, "coco": coco_lines}
NAMES = (*COMPARISONS, *OTHERS)
CPU_TABLE = ("captions", "classifier", "retrieval", "images", "feed", "harness", "cached", "memory", "lite")
CUDA_TABLE = ("captions", "classifier", "retrieval", "feed", "loader", "coco")
CUDA_SIZES = {"images": 2000}


def line(what, peer, at_least, ratio, written):
    """Return a line of the table; a target is reached by the whole interval."""
    undecided = ratio.low is None or ratio.low < at_least <= ratio.high
    word = "cannot tell" if undecided else "yes" if ratio.low >= at_least else "no"
    interval = "" if ratio.low is None else f" ({ratio.low:.3g} to {ratio.high:.3g})"
    cells = f"{peer}, {written(ratio.head)}", written(ratio.base), f"{ratio.ratio:.3g}{interval}"
    return what, *cells, f"{at_least:g}", word


def measure(names, bench):
    """Return (lines, notes). Raises: PeerError when two sides do not do the same work."""
    lines, notes = [], []
    for name in names:
        if name in COMPARISONS:
            work = COMPARISONS[name](bench)
            ratio = timed(name, work, bench.rounds or work.rounds, bench.say)
            lines.append(line(work.what, work.peer, work.at_least, ratio, lambda value: f"{value:.2f} s"))
            continue
        try:
            found, note = OTHERS[name](bench)
        except PeerError as error:
            found, note = [(name, "-", "-", "-", "-", "not measured")], f"{name} was not measured: {error}"
        lines, notes = [*lines, *found], [*notes, note] if note else notes
    return lines, notes


def exit_code(lines):
    """Return 0 when every target is reached, 1 when one is missed, else 3: one cannot be told, or was not measured."""
    words = {cells[-1] for cells in lines}
    return 1 if "no" in words else 3 if words - {"yes"} else 0


def document(lines, notes, bench, load):
    """Return the findings as Markdown. `load`: the load average before the first of them."""
    kilobytes = np.mean([path.stat().st_size for path in (bench.root() / SPLIT).iterdir()]) / 1e3
    resources, found = bench.ours.resources, environment(bench.device)
    machine, software = found["machine"], found["software"]
    versions = [f"{name} {software[name]}" for name in ("python", "torch", "open_clip_torch", "pillow", "clipbench")]
    asked = (
        f"{MODEL} with random weights ({PRETRAINED}), fp32, {bench.device}; a ratio above 1 is clipbench being faster. Batch: "
        f"{resources.batch_size} here, {PEER_BATCH} in {PEER}, the defaults; threads or processes that decode: {resources.workers} here, "
        f"{PEER_WORKERS} in {PEER} where no other number is said. COCO-like images: {kilobytes:.0f} kB on average."
    )
    where = (
        f"{machine['processor']} {machine['accelerator']}, {machine['cores']} cores, {machine['threads']} threads, load {load:.1f} at "
        f"the start; {', '.join(versions)}, {PEER} {importlib.metadata.version(PEER)}"
    )
    table = Table(("work", "peer", "clipbench", "ratio (95 % interval)", "at least", "reached?"), lines)
    return to_markdown([Paragraph(asked), table, *map(Paragraph, [*notes, where])])


def read_options(arguments):
    """Return the command line's options. Raises: SystemExit 2 for what cannot be meant."""

    def names(text):
        if unknown := [name for name in text.split(",") if name not in NAMES]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python tests/peers.py", description="clipbench against its peers.")
    add, numbers = parser.add_argument, {"rounds": 2, "images": 2, "templates": 1, "threads": 1, "workers": 0}
    add("--only", action="extend", type=names, metavar="NAMES", help=f"comma list of {', '.join(NAMES)}; repeatable")
    add("--quick", action="store_true", help="tiny sizes, to try the machinery; its ratios say nothing")
    add("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:N or mps, for both sides")
    add("--rounds", type=int, metavar="N", help="rounds of every comparison")
    add("--images", type=int, metavar="N", help="images of the cached run (default: 500)")
    add("--templates", type=int, metavar="N", help="templates of the zero-shot classifier (default: 80)")
    add("--threads", type=int, metavar="N", help="threads of torch, for every side and process")
    add("--workers", type=int, metavar="N", help="threads of clipbench that decode (default: its own)")
    options = parser.parse_args(arguments)
    for name, least in numbers.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name} {value}: expected {least} or more")
    return options


def main(arguments=None):
    """Print the table and return 0; 1 when a target is missed, 3 when one cannot be told or measured, 2 for usage."""
    options = read_options(arguments)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for every process that is started
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 on both sides
    on_cuda = options.device.startswith("cuda")
    quick = {"images": 8, "classes": 3, "templates": 4, "cached_images": 8, "coco_images": 8, "rounds": 2}
    sizes = quick if options.quick else CUDA_SIZES if on_cuda else {}
    asked = {"rounds": options.rounds, "cached_images": options.images, "templates": options.templates}
    chosen = options.only or (CUDA_TABLE if on_cuda else CPU_TABLE)
    sizes = sizes | {name: value for name, value in asked.items() if value}
    load = os.getloadavg()[0]
    try:
        peer("zeroshot_retrieval")  # said before an hour of measuring, not after it
        with tempfile.TemporaryDirectory(prefix="clipbench-peers-") as folder:
            say = lambda text: sys.stderr.write(f"{text}\n")  # noqa: E731  # one line, used once
            bench = Bench(Path(folder), say, device=options.device, workers=options.workers, **sizes)
            lines, notes = measure([name for name in NAMES if name in chosen], bench)
            sys.stdout.write(document(lines, notes, bench, load))
            return exit_code(lines)
    except (ClipbenchError, OSError) as error:
        sys.stderr.write(f"peers: error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
