"""The work that clipbench and a peer take turns at, each with the least that clipbench is to be faster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from clipbench.data.coco import coco_crops
from clipbench.data.dataset import Item
from clipbench.data.folders import class_set
from clipbench.experiments.classification import class_texts
from clipbench.peers import ours, theirs
from clipbench.peers.bench import Bench
from clipbench.peers.flops import token_lengths
from clipbench.peers.work import Flops, Work

CLIP_BENCHMARK = "clip-benchmark"


def captions(bench: Bench) -> Work:
    """Return the encoding of captions."""
    encoder, items = bench.encoder, bench.items(bench.sizes.images)
    texts = _texts(items)
    return Work(
        "captions",
        f"encode {len(texts)} COCO captions",
        CLIP_BENCHMARK,
        5.5,
        lambda: ours.encoded_captions(encoder, items, bench.settings),
        lambda: theirs.encoded_captions(encoder, items),
        _text_flops(bench, texts),
        bench.sizes.rounds,
    )


def classifier(bench: Bench) -> Work:
    """Return the making of a zero-shot classifier from COCO's classes and OpenAI's templates."""
    encoder, sizes = bench.encoder, bench.sizes
    classes = coco_crops(bench.root(sizes.images)).classes[: sizes.classes]
    templates = class_set("imagenet1k").templates[: sizes.templates]
    return Work(
        "classifier",
        f"zero-shot classifier, {len(classes)} classes x {len(templates)} templates",
        CLIP_BENCHMARK,
        9,
        lambda: ours.classifier(encoder, classes, templates, bench.settings),
        lambda: theirs.classifier(encoder, classes, templates),
        _text_flops(bench, class_texts(classes, templates)),
        sizes.slow_rounds,
    )


def retrieval(bench: Bench) -> Work:
    """Return the whole retrieval evaluation from image files and captions."""
    encoder, root = bench.encoder, bench.root(bench.sizes.images)
    items = bench.items(bench.sizes.images)
    texts, images = _text_flops(bench, _texts(items)), len(items) * bench.flops.image
    return Work(
        "retrieval",
        f"retrieval evaluation, {len(items)} images, 5 captions each",
        CLIP_BENCHMARK,
        3.2,
        lambda: ours.retrieval(encoder, root, bench.settings),
        lambda: theirs.retrieval(encoder, items),
        Flops(texts.peer + images, texts.ours + images),
        bench.sizes.rounds,
    )


def images(bench: Bench) -> Work:
    """Return the encoding of image files, against the image tower alone in batches of the same size."""
    encoder, items, size = bench.encoder, bench.items(bench.sizes.images), bench.settings.batch_size
    opened = [item.image.open() for item in items]
    batches = [encoder.pixels(opened[start : start + size]) for start in range(0, len(opened), size)]
    cost = len(items) * bench.flops.image
    return Work(
        "images",
        f"encode {len(items)} images from files",
        "bare forward pass on ready tensors",
        0.93,
        lambda: ours.encoded_images(encoder, items, bench.settings),
        lambda: theirs.bare_forward(encoder, batches),
        Flops(cost, cost),
        bench.sizes.close_rounds,
        turns=2,
    )


def harness(bench: Bench) -> Work:
    """Return the plain path, no shortcut taken, against a loop written by hand: both decode in the one thread that calls."""
    encoder, items = bench.encoder, bench.items(bench.sizes.images)[: max(2, bench.sizes.images // 4)]
    settings = replace(bench.settings, plain=True, workers=0)
    cost = len(items) * bench.flops.image + bench.flops.full_texts(len(_texts(items)))
    return Work(
        "harness",
        f"the plain path, {len(items)} images from files and {len(_texts(items))} captions",
        "a hand-written loop over open_clip",
        0.97,
        lambda: ours.encoded(encoder, items, settings),
        lambda: theirs.loop(encoder, items, settings.batch_size),
        Flops(cost, cost),
        bench.sizes.close_rounds,
        turns=2,
    )


COMPARISONS: Mapping[str, Callable[[Bench], Work]] = {
    "captions": captions,
    "classifier": classifier,
    "retrieval": retrieval,
    "images": images,
    "harness": harness,
}


def _texts(items: Sequence[Item]) -> list[str]:
    return [caption for item in items for caption in item.captions]


def _text_flops(bench: Bench, texts: Sequence[str]) -> Flops:
    """The peer runs every text at full context; useful is what stands before its end."""
    return Flops(bench.flops.full_texts(len(texts)), bench.flops.texts(token_lengths(bench.encoder, texts)))
