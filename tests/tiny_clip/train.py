"""Train the tiny CLIP: `python -m tiny_clip.train` (in tests/) writes the vocabulary and the weights, in ten minutes on one idle core.

Contrastive, as CLIP is, on drawings with captions; beside it, pictures and crops of one thing are held to the prompts of their 20 classes.
"""

import argparse
import gzip
import io
import math
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import open_clip
import regex
import torch
from open_clip.tokenizer import bytes_to_unicode
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch.nn import functional

from clipbench.data.coco import square_crop
from clipbench.data.dataset import ImageRef
from tiny_clip import MERGES, VOCABULARY, WEIGHTS, tokenizer, untrained
from tiny_clip.drawings import CLASSES, captions, pictured, scene

SEED = 0
TEMPLATES = ("a photo of a {}.", *(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES))
WORD = regex.compile(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def prompts(template):
    """Return a template with each of the classes."""
    return [template.replace("{}", name) for name in CLASSES]


def write_vocabulary(texts):
    """Write the MERGES most useful pairs of what words consist of: the most frequent one first, then counted again."""
    words = Counter(word for text in texts for word in WORD.findall(text.lower()))
    letters = bytes_to_unicode()
    parts = {word: [letters[byte] for byte in word.encode()] for word in words}
    for symbols in parts.values():
        symbols[-1] += "</w>"
    merges = []
    while len(merges) < MERGES:
        pairs = Counter()
        for word, symbols in parts.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, symbols in parts.items():
            joined = []
            for symbol in symbols:
                if joined and (joined[-1], symbol) == best:
                    joined[-1] += symbol
                else:
                    joined.append(symbol)
            parts[word] = joined
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write("\n".join(["#version: tiny", *map(" ".join, merges)]).encode())
    VOCABULARY.write_bytes(packed.getvalue())


class Pool:
    """What batches are drawn from: `pixels` (n, 3, 50, 50) uint8, `tokens` (n, 5, 32) of captions, `labels` (n,), -1 for a scene,
    `is_whole` (n,): False for a crop, which no caption fits. Of eight, three are pictures of one thing, two crops, three scenes.
    """

    def __init__(self, n, preprocess, tokenize):
        pixels, labels, texts = [], [], []
        for number in range(n):
            place = number % 8
            drawing, rng = pictured(SEED, number) if place < 3 else scene(SEED, number)
            image, thing = drawing.image, drawing.things[0]
            if place in (3, 4):
                thing = drawing.things[rng.integers(len(drawing.things))]
                image = ImageRef(Path(), "", square_crop(thing.box, *image.size)).cut(image)
            pixels.append((preprocess(image) * 255).round().to(torch.uint8))
            labels.append(thing.label if place < 5 else -1)
            texts.append(captions(rng, drawing))
        self.pixels, self.labels = torch.stack(pixels), torch.tensor(labels)
        self.is_whole = ~torch.isin(torch.arange(n) % 8, torch.tensor((3, 4)))
        self.tokens = torch.stack([tokenize(list(own)) for own in texts])


def shifted(pixels, generator):
    """Return pixels moved by up to three places, brighter or darker, as floats from 0 to 1."""
    down, right = torch.randint(7, (2,), generator=generator).tolist()
    size = pixels.shape[-1]
    padded = functional.pad(pixels.float() / 255, (3, 3, 3, 3), mode="replicate")
    light = 1 + 0.15 * (2 * torch.rand(len(pixels), 1, 1, 1, generator=generator) - 1)
    return (padded[..., down : down + size, right : right + size] * light).clamp(0, 1)


def loss_of(model, pixels, tokens, labels, is_whole, classes):
    """Return CLIP's loss over whole pictures, where equal captions are equally right, plus the classes' over pictures of one thing."""
    images = functional.normalize(model.encode_image(pixels), dim=-1)
    texts = functional.normalize(model.encode_text(torch.cat([tokens[is_whole], classes])), dim=-1)
    scale, n = model.logit_scale.exp(), len(texts) - len(classes)
    equal = (tokens[is_whole][:, None] == tokens[is_whole][None]).all(dim=-1).float()
    right = equal / equal.sum(dim=1, keepdim=True)
    logits = scale * images[is_whole] @ texts[:n].T
    pairs = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
    own = labels >= 0
    return pairs + functional.cross_entropy(scale * images[own] @ texts[n:].T, labels[own])


def train(steps, batch, pictures, rate=2e-3):
    """Return the trained model."""
    torch.manual_seed(SEED)
    model, tokenize = untrained().train(), tokenizer()
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.mean, cfg.std))
    plain = image_transform_v2(PreprocessCfg(size=cfg.size, mean=(0.0,) * 3, std=(1.0,) * 3), is_train=False)
    started = time.monotonic()
    pool = Pool(pictures, plain, tokenize)
    classes = torch.stack([tokenize(prompts(template)) for template in TEMPLATES])
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    draws = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * share)) / 2
        chosen = torch.randint(pictures, (batch,), generator=draws)
        which = torch.randint(pool.tokens.shape[1], (batch,), generator=draws)
        template = int(torch.randint(len(TEMPLATES), (1,), generator=draws)) if step % 2 else 0
        pixels = (shifted(pool.pixels[chosen], draws) - mean) / std
        loss = loss_of(
            model, pixels, pool.tokens[chosen, which], pool.labels[chosen], pool.is_whole[chosen], classes[template]
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step + 1 == steps:
            sys.stderr.write(f"{step:5} of {steps}: loss {loss:.3f}, {time.monotonic() - started:.0f} s\n")
    return model.eval()


def main(arguments=None):
    """Write the vocabulary and the weights."""
    parser = argparse.ArgumentParser(prog="python -m tiny_clip.train", description="Train the tiny CLIP.")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=32000, help="drawn once, before the first step")
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # two make waiting for each other the most of it
    drawings = (scene(SEED, number) for number in range(2000))
    write_vocabulary(
        [
            *(text for drawing, rng in drawings for text in captions(rng, drawing)),
            *(t for each in TEMPLATES for t in prompts(each)),
        ]
    )
    model = train(given.steps, given.batch, given.pictures)
    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, given.output)


if __name__ == "__main__":
    main()
