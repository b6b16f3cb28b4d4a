"""How faults are done to a run in the making: to files, to what is decoded, resized and tokenized, to weights, layers, rows, scores.

Each returns, or is, a function of (head, dose) that changes a `Head` before it is measured. The doses stand in `faults`.
"""

import io
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tiny_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from tiny_clip.drawings import CLASSES, ORIENTATION, write_coco, write_folders
from torch import nn

from clipbench import metrics
from clipbench.data import dataset as data_module
from clipbench.data.dataset import file_sha256, kept_pictures
from clipbench.embed.evidence import first_bits, hash_pixels, hash_text
from clipbench.errors import ClipbenchError
from clipbench.experiments import classification, retrieval
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.session import Session, planned, resources_of

BATCH = 64
KEPT_BYTES = 1 << 28
IMAGES, BOTH = ("images",), ("images", "texts")


@dataclass(frozen=True)
class Data:
    """Where the two sets are: class folders, and COCO's layout."""

    folders: Path
    coco: Path

    @property
    def pictures(self):
        """All picture files, sorted."""
        return sorted((*self.folders.glob("*/*.*"), *self.coco.glob("val2017/*")))


@dataclass
class Head:
    """A run in the making. `marks`: hashes (of a file, of decoded pixels, of a text) of the items that a fault damages."""

    data: Data
    encoder: OpenClipEncoder
    folder: Path
    stack: ExitStack
    experiments: tuple[str, ...]
    spec: ModelSpec = field(default_factory=tiny_clip.spec)
    options: dict = field(default_factory=dict)
    marks: set = field(default_factory=set)
    draws: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    memory: dict = field(default_factory=dict)


Inject = Callable[[Head, float], None]


def measured(head):
    """Return the run of a head, measured as a session does it; what fails is skipped with its reason, as there."""
    chosen = {
        "device": "cpu",
        "batch_size": BATCH,
        "offline": True,
        "precision": head.encoder.identity.precision,
        **head.options,
    }
    options = Options.from_kwargs(**chosen, coco=head.data.coco, zero_shot={"shapes": head.data.folders})
    with closing(Session(options, resources_of(options))) as session, kept_pictures(KEPT_BYTES):
        session.plan = planned([head.spec.name], head.experiments, options)
        session.adopt(head.spec, head.encoder)
        for key in session.plan:
            try:
                session.measure(head.spec, key)
            except ClipbenchError as error:
                session.skip(key, str(error))
        for key in session.results:
            session.verdicts(key)
        return session.run()


def nothing(head, dose):
    """Change nothing."""


def option(name):
    """A session's option of that name, its value the dose."""

    def inject(head, dose):
        head.options[name] = dose

    return inject


def threads(head, dose):
    torch.set_num_threads(dose)


def is_chosen(keys, dose):
    """Return which of these 64-bit hashes are among the share `dose` of all."""
    return np.asarray(keys, dtype=np.uint64) % np.uint64(10_007) < 10_007 * dose


def copied(head):
    """The data linked into a folder of the fault's own, where files may be replaced."""
    for name in ("folders", "coco"):
        shutil.copytree(getattr(head.data, name), head.folder / name, copy_function=os.link)
    head.data = Data(head.folder / "folders", head.folder / "coco")


def rewritten(path, content):
    """Replace a file that may be a link: the other name keeps its content."""
    path.unlink()
    path.write_bytes(content)


def files(change, suffix=""):
    """`change(path, head)` of a share of the files with this suffix."""

    def inject(head, dose):
        copied(head)
        for path in head.data.pictures:
            key = first_bits(file_sha256(path))
            if path.name.endswith(suffix) and is_chosen(key, dose):
                head.marks.add(key)
                change(path, head)

    return inject


def resaved(change=lambda image: image, **settings):
    """The picture in a file decoded and saved again under its name."""

    def save(path, head):
        with Image.open(path) as image:
            image.load()
        path.unlink()
        change(image).save(path, **settings)

    return save


def recompressed(head, dose):
    files(resaved(quality=int(dose)), ".jpg")(head, 1.0)


def as_black(image, path=None):
    return Image.new("RGB", image.size)


def as_grey(image, path):
    return image.convert("L").convert("RGB")


def cut_in_half(path, head):
    rewritten(path, path.read_bytes()[: path.stat().st_size // 2])


def exchanged(path, head):
    """Each two files that are met exchange their content."""
    waiting = head.memory.setdefault(path.suffix, [])
    waiting.append(path)
    if len(waiting) == 2:
        contents = [waiting[1].read_bytes(), waiting[0].read_bytes()]
        for file, content in zip(waiting, contents):
            rewritten(file, content)
        waiting.clear()


def to_next_class(path, head):
    if path.is_relative_to(head.data.folders):
        place = (CLASSES.index(path.parent.name.replace("_", " ")) + 1) % len(CLASSES)
        path.rename(head.data.folders / CLASSES[place].replace(" ", "_") / path.name)


def duplicated(path, head):
    """The first picture of the folder takes this one's place."""
    first = min(other for other in path.parent.iterdir() if other.suffix == path.suffix and other != path)
    rewritten(path, first.read_bytes())


def annotated(name, change):
    """`change(row)` of a share of the rows of an annotation file: the new row, or None."""

    def inject(head, dose):
        copied(head)
        path = head.data.coco / f"annotations/{name}_val2017.json"
        content = json.loads(path.read_text())
        rows = [change(row) if is_chosen(row["id"] * 7919, dose) else row for row in content["annotations"]]
        rewritten(path, json.dumps(content | {"annotations": [row for row in rows if row]}).encode())

    return inject


def next_class(row):
    return row | {"category_id": row["category_id"] % len(CLASSES) + 1}


def no_row(row):
    return None


def without_class(head, dose):
    copied(head)
    shutil.rmtree(head.data.folders / CLASSES[-1].replace(" ", "_"))


def grown(head, dose):
    n, m = (
        round(len(list(files)) * (1 + dose))
        for files in (head.data.folders.glob("*/*.*"), head.data.coco.glob("val2017/*"))
    )
    head.data = Data(write_folders(head.folder / "folders", n), write_coco(head.folder / "coco", m))


def in_another_order(head, dose):
    """The same files written last one first, the images of annotation files listed so."""
    before, head.data = head.data, Data(head.folder / "folders", head.folder / "coco")
    for old, new in ((before.folders, head.data.folders), (before.coco, head.data.coco)):
        for path in sorted((file for file in old.rglob("*") if file.is_file()), reverse=True):
            (new / path.relative_to(old)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / path.relative_to(old))
    for path in head.data.coco.glob("annotations/*"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"images": content["images"][::-1]}))


def class_file(**changes):
    """`classes.toml` beside the class folders; `classes` is a function of the folders' own names."""

    def inject(head, dose):
        copied(head)
        folders = sorted(path.name for path in head.data.folders.iterdir())
        names = [name.replace("_", " ") for name in folders]
        row = {
            "folders": folders,
            **{key: value(names) if callable(value) else value for key, value in changes.items()},
        }
        (head.data.folders / "classes.toml").write_text("".join(f"{key} = {json.dumps(row[key])}\n" for key in row))

    return inject


def two_exchanged(names):
    return [names[1], names[0], *names[2:]]


def decoded(change):
    """`change(image, path)` of a share of the files, where they are decoded; the same object where it leaves one alone."""

    def inject(head, dose):
        original = data_module._decoded

        def decode(path, *how):
            (image, mode), key = original(path, *how), first_bits(file_sha256(path))
            found = change(image, path) if is_chosen(key, dose) else image
            head.marks.update([key] if found is not image else [])
            return found, mode

        head.stack.enter_context(patch.object(data_module, "_decoded", decode))

    return inject


def made_upright(image, path):
    with Image.open(path) as stored:
        is_upright = stored.getexif().get(ORIENTATION, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(stored).convert("RGB")


def halved(image, path):
    """As a JPEG decoder does that is asked for a draft."""
    return image.reduce(2).resize(image.size, Image.Resampling.BILINEAR) if path.suffix == ".jpg" else image


def prepared(change):
    """`change(image, dose)` of every picture before the model's own preprocessing; the same object where it leaves one alone."""

    def inject(head, dose):
        original = head.encoder.preprocess

        def preprocess(image):
            found = change(image, dose)
            head.marks.update([hash_pixels(image)] if found is not image else [])
            return original(found)

        head.encoder.preprocess = preprocess

    return inject


def black(image, dose):
    return as_black(image) if is_chosen(hash_pixels(image), dose) else image


def upside_down(image, dose):
    return image.transpose(Image.Transpose.ROTATE_180) if is_chosen(hash_pixels(image), dose) else image


def portrait_turned(image, dose):
    return image.transpose(Image.Transpose.ROTATE_90) if image.height > image.width else image


def bgr(image, dose):
    return Image.merge("RGB", image.split()[::-1])


def as_jpeg(image, dose):
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(dose))
    return Image.open(stored).convert("RGB")


def from_corner(image, dose):
    side = min(image.size)
    return image.crop((0, 0, side, side))


def through_smaller(image, dose):
    """Resized to `dose` pixels first."""
    scale = dose / min(image.size)
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


def nearest(image, dose):
    scale = 50 / min(image.size)
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.NEAREST)


def not_antialiased(image, dose):
    """As a resize of tensors, or of another library, is by default."""
    scale = 50 / min(image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    size = [round(side * scale) for side in (image.height, image.width)]
    small = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=False)[0]
    return Image.fromarray(small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def brighter(image, dose):
    return image.point(lambda value: 255 * (value / 255) ** dose)


def transformed(**changes):
    """The model's own preprocessing with other settings, behind its back."""

    def inject(head, dose):
        configuration = PreprocessCfg(**head.encoder.model.visual.preprocess_cfg)
        head.encoder.preprocess = image_transform_v2(replace(configuration, **changes), is_train=False)

    return inject


def normalized(mean, std):
    return transformed(mean=mean, std=std)


def tokenized(change):
    """`change(texts, tokenizer, dose)`: (texts, context_length) tokens; texts whose tokens are others than before are marked."""

    def inject(head, dose):
        plain = head.encoder.tokenizer

        class Changed:
            def __call__(self, texts):
                expected, found = plain(texts), change(texts, plain, dose)
                moved = (found != expected).any(dim=1).tolist()
                head.marks.update(hash_text(text) for text, has_moved in zip(texts, moved) if has_moved)
                return found

            def __getattr__(self, name):
                return getattr(plain, name)

        head.encoder.tokenizer = Changed()

    return inject


def cut(texts, plain, dose):
    """At most `dose` tokens, the last of them the end."""
    rows = plain(texts)
    rows[rows.count_nonzero(dim=1) > dose, int(dose) - 1] = plain.eot_token_id
    rows[:, int(dose) :] = 0
    return rows


def without_end(texts, plain, dose):
    rows = plain(texts)
    return rows.masked_fill(rows == plain.eot_token_id, 0)


def padded_left(texts, plain, dose):
    rows = plain(texts)
    return torch.stack([row.roll(len(row) - int(row.count_nonzero())) for row in rows])


def with_capitals(texts, plain, dose):
    words = SimpleTokenizer(str(tiny_clip.VOCABULARY), context_length=tiny_clip.CONTEXT_LENGTH, clean="whitespace")
    return words(texts)


def with_prefix(texts, plain, dose):
    return plain([f"a photo of {text}" for text in texts])


def without_stops(texts, plain, dose):
    return plain([text.replace(".", "") for text in texts])


def words_exchanged(texts, plain, dose):
    """Red for blue and blue for red, as with a vocabulary whose lines were exchanged."""
    rows, (red, blue) = plain(texts), (plain.encode(word)[0] for word in ("red", "blue"))
    return torch.where(rows == red, blue, torch.where(rows == blue, red, rows))


def stored(change, is_renamed=False):
    """Weights changed in their file, `change(name, tensor, dose, generator)`; `is_renamed`: it is another file, and was asked for."""

    def inject(head, dose):
        generator = torch.Generator().manual_seed(0)
        state = {
            name: change(name, t.float(), dose, generator) for name, t in sorted(load_file(tiny_clip.WEIGHTS).items())
        }
        path = head.folder / "changed.safetensors"
        save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path)
        head.encoder = tiny_clip.load(path)
        if is_renamed:
            head.spec = tiny_clip.spec(path)
        else:
            head.encoder.identity = replace(head.encoder.identity, pretrained=str(tiny_clip.WEIGHTS))

    return inject


def noisy(name, tensor, dose, generator):
    """Noise of `dose` of the tensor's own standard deviation."""
    drawn = torch.randn(tensor.shape, generator=generator)
    return tensor + dose * tensor.std() * drawn if tensor.numel() > 1 else tensor


def pruned(name, tensor, dose, generator):
    """The share `dose` of smallest weights of each matrix 0."""
    return tensor * (tensor.abs() > tensor.abs().flatten().quantile(dose)) if tensor.ndim == 2 else tensor


def undertrained(name, tensor, dose, generator):
    """The share `dose` of the way back to initial weights."""
    torch.manual_seed(0)
    return torch.lerp(tensor, tiny_clip.untrained().state_dict()[name], dose)


def one_layer_zero(name, tensor, dose, generator):
    return tensor * (name != "visual.transformer.resblocks.1.mlp.c_proj.weight")


def scale_multiplied(name, tensor, dose, generator):
    return tensor + math.log(dose) if name == "logit_scale" else tensor


def container(suffix, dtype):
    """The same weights in a file of another kind."""

    def inject(head, dose):
        path, state = head.folder / f"tiny-clip{suffix}", load_file(tiny_clip.WEIGHTS)
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        torch.save(state, path) if suffix == ".pt" else save_file(state, path)
        head.encoder, head.spec = tiny_clip.load(path), tiny_clip.spec(path)

    return inject


def other_loader(head, dose):
    head.spec = ModelSpec(head.spec.name, "factory", "factory")


def one_block_less(head, dose):
    """Another architecture under the same name: its last vision block is not there."""
    found = head.encoder
    found.model.visual.transformer.resblocks = found.model.visual.transformer.resblocks[:-1]
    head.encoder = OpenClipEncoder(found.model, found.tokenizer, found.identity, tensors=dict(found.model.state_dict()))


def live(change):
    """`change(model, dose, head)` of the loaded model, whose weights were hashed before."""

    def inject(head, dose):
        with torch.no_grad():
            change(head.encoder.model, dose, head)

    return inject


def blocks(model):
    """The vision tower's blocks, then the text tower's."""
    return [*model.visual.transformer.resblocks, *model.transformer.resblocks]


def gelu(model, dose, head):
    """GELU for QuickGELU in the first `dose` blocks."""
    for block in blocks(model)[: int(dose)]:
        assert type(block.mlp.gelu) is QuickGELU
        block.mlp.gelu = nn.GELU()


def skipped(place):
    """One block hands on what it is given."""

    def change(model, dose, head):
        blocks(model)[place].forward = lambda x, *args, **kwargs: x

    return change


def dropout(model, dose, head):
    """Behind every block, on in evaluation."""
    generator = torch.Generator().manual_seed(0)

    def drop(module, inputs, out):
        return out * (torch.rand(out.shape, generator=generator) >= dose) / (1 - dose)

    for block in blocks(model):
        block.register_forward_hook(drop)


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def epsilon(model, dose, head):
    for norm in norms(model):
        norm.eps = dose


def without_norm_bias(model, dose, head):
    for norm in norms(model):
        norm.bias.zero_()


def without_mask(model, dose, head):
    model.attn_mask = torch.zeros_like(model.attn_mask)


def positions_shifted(model, dose, head):
    for positions in (model.positional_embedding, model.visual.positional_embedding):
        positions.copy_(positions.roll(int(dose), 0))


def rounded_weights(model, dose, head):
    """Each row of each matrix rounded to 2 x `dose` + 1 levels."""
    for tensor in (p for p in model.parameters() if p.ndim == 2):
        step = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / dose
        tensor.copy_((tensor / step).round() * step)


def rounded(to):
    """What every linear and normalizing layer gives is rounded: `to(tensor)`."""

    def change(model, dose, head):
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.register_forward_hook(lambda module, inputs, out: to(out))

    return change


def to_fp16(tensor):
    return tensor.half().float()


def to_tf32(tensor):
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def autocast(model, dose, head):
    """As where somebody left it on: the session asked for float32."""
    for name in ("encode_image", "encode_text"):
        original = getattr(model, name)

        def call(*args, original=original, **kwargs):
            with torch.autocast("cpu", torch.bfloat16):
                return original(*args, **kwargs)

        setattr(model, name, call)


def cached(inject):
    """Everything is measured with another fault first, through a cache, and then without it, from the cache."""

    def filled(head, dose):
        head.options["cache"] = head.folder / "cache"
        whole = head.stack
        with ExitStack() as head.stack:
            inject(head, dose)
            measured(head)
        head.stack, head.encoder = whole, tiny_clip.load()

    return filled


def stating(inject, **config):
    """A change that somebody asked for: the encoder's own `config` says so."""

    def stated(head, dose):
        inject(head, dose)
        head.encoder.asked = lambda: {"config": config}

    return stated


class Altered(OpenClipEncoder):
    """Ours in somebody's hands: called as it is, batch by batch, and something is done to its rows."""

    def encode_images(self, images):
        rows = super().encode_images(images)
        return self.change("images", rows, np.array([hash_pixels(image) for image in images], dtype=np.uint64))

    def encode_texts(self, texts):
        rows = super().encode_texts(texts)
        return self.change("texts", rows, np.array([hash_text(text) for text in texts], dtype=np.uint64))


def output(change, towers=BOTH):
    """`change(batch, dose, head)`: the rows of a `Batch`, one batch after the other."""

    def inject(head, dose):
        def altered(tower, rows, keys):
            return change(Batch(tower, rows.copy(), keys), dose, head) if tower in towers else rows

        head.encoder.__class__ = Altered
        head.encoder.change = altered

    return inject


@dataclass(frozen=True)
class Batch:
    """`rows` (n, dim) float32 of a tower's batch, and the hash of each of its items."""

    tower: str
    rows: np.ndarray
    keys: np.ndarray

    @property
    def lengths(self):
        """(n, 1) lengths of the rows."""
        return np.linalg.norm(self.rows, axis=1, keepdims=True)

    def fixed(self, seed=0):
        """(dim,) a row that is no item's, as long as these are."""
        row = np.random.default_rng(seed).standard_normal(self.rows.shape[1])
        return (row / np.linalg.norm(row) * self.lengths.mean()).astype(np.float32)

    def replaced(self, places, rows, head):
        """The rows with those of these places replaced, which are marked."""
        head.marks.update(self.keys[places].tolist())
        found = self.rows.copy()
        found[places] = rows
        return found


def constant(batch, dose, head):
    return batch.replaced(is_chosen(batch.keys, dose), batch.fixed(), head)


def hubs(batch, dose, head):
    """A row of the middle of everything, near to every text."""
    middle = head.memory.setdefault(batch.tower, batch.rows.mean(axis=0))
    return batch.replaced(is_chosen(batch.keys, dose), middle, head)


def dead_class(batch, dose, head):
    """Whatever is near to the first `dose` of a fixed set of directions is pushed away from it: some classes are found no more."""
    if "texts" not in head.memory:
        words = head.encoder.tokens([f"a photo of a {name}." for name in CLASSES])
        rows = head.encoder.forward_texts(words).numpy()
        head.memory["texts"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = batch.rows @ head.memory["texts"].T
    nearest = cosines.argmax(axis=1) < dose
    second = np.argsort(-cosines, axis=1)[:, 1]
    return batch.replaced(nearest, head.memory["texts"][second][nearest] * batch.lengths[nearest], head)


def zero(batch, dose, head):
    return batch.replaced(is_chosen(batch.keys, dose), 0.0, head)


def not_finite(batch, dose, head):
    return batch.replaced(is_chosen(batch.keys, dose), np.nan, head)


def rotated(batch, dose, head):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((batch.rows.shape[1],) * 2))[0]
    return (batch.rows @ turn).astype(np.float32)


def scaled(batch, dose, head):
    return batch.rows * np.float32(dose)


def of_random_length(batch, dose, head):
    return batch.rows * head.draws.uniform(1 / dose, dose, (len(batch.rows), 1)).astype(np.float32)


def longer(batch, dose, head):
    return np.concatenate([batch.rows, np.tile(batch.fixed()[: int(dose)] * 0.1, (len(batch.rows), 1))], axis=1)


def shorter(batch, dose, head):
    return batch.rows[:, : int(dose)]


def shifted(batch, dose, head):
    return batch.rows + np.float32(dose) * batch.fixed()


def quantized(batch, dose, head):
    """Each row rounded to 2 x `dose` + 1 levels."""
    step = np.abs(batch.rows).max(axis=1, keepdims=True) / dose
    return (np.round(batch.rows / step) * step).astype(np.float32)


def jittered(batch, dose, head):
    """Noise, another each time, of `dose` of the row's length."""
    drawn = head.draws.standard_normal(batch.rows.shape, dtype=np.float32) / math.sqrt(batch.rows.shape[1])
    return batch.rows + np.float32(dose) * batch.lengths * drawn


def upgraded(batch, dose, head):
    """As `jittered`, but the same for the same item each time: another library adds in another order."""
    dim = batch.rows.shape[1]
    drawn = np.stack([np.random.default_rng(int(key)).standard_normal(dim, dtype=np.float32) for key in batch.keys])
    return batch.rows + np.float32(dose) * batch.lengths * drawn / math.sqrt(dim)


def first_disturbed(batch, dose, head):
    return batch.replaced(slice(0, 1), batch.rows[:1] + np.float32(dose) * batch.fixed(), head)


def partial_disturbed(batch, dose, head):
    """A batch that is not full is averaged with its padding."""
    if len(batch.rows) == BATCH:
        return batch.rows
    return batch.replaced(slice(None), (1 - dose) * batch.rows + np.float32(dose) * batch.fixed(), head)


def partial_shifted(batch, dose, head):
    """The rows of a batch that is not full are taken one place too early."""
    return batch.rows if len(batch.rows) == BATCH else batch.replaced(slice(None), np.roll(batch.rows, 1, axis=0), head)


def dependent(batch, dose, head):
    """Statistics of the batch leak into each row."""
    return batch.rows + np.float32(dose) * batch.rows.mean(axis=0)


def large_batch_disturbed(batch, dose, head):
    return first_disturbed(batch, 1.0, head) if len(batch.rows) >= dose else batch.rows


def off_by_one(batch, dose, head):
    return np.roll(batch.rows, 1, axis=0)


def neighbour(batch, dose, head):
    """Every item gets the row of the one before it, across batches, too."""
    before = head.memory.get(batch.tower, batch.rows[:1])
    head.memory[batch.tower] = batch.rows[-1:]
    return np.concatenate([before, batch.rows[:-1]])


def threads_crossed(batch, dose, head):
    """In a share of the batches two items exchange their rows."""
    if len(batch.rows) < 20 or head.draws.random() >= dose:
        return batch.rows
    return batch.replaced([7, 19], batch.rows[[19, 7]], head)


def stale(batch, dose, head):
    """One batch in `dose` is the one before it: a buffer that was used again while it was copied."""
    count, before = head.memory.get(batch.tower, (0, batch.rows))
    head.memory[batch.tower] = (count + 1, batch.rows)
    if (count + 1) % dose or len(before) != len(batch.rows):
        return batch.rows
    return batch.replaced(slice(None), before, head)


def scored(module, name, change):
    """A function of an experiment replaced: `change(original)`."""

    def inject(head, dose):
        head.stack.enter_context(patch.object(module, name, change(getattr(module, name))))

    return inject


def one_rank_more(original):
    return lambda ranks, k: original(ranks, k + 1)


def label_off_by_one(original):
    """Pictures of the fourth class are held to the fifth."""
    return lambda scores, own: original(scores, np.where(np.asarray(own) == 3, 4, own))


def ties_won(original):
    def found(*args, **kwargs):
        with patch.object(metrics, "TIE", -metrics.TIE):
            return original(*args, **kwargs)

    return found


INT8 = stating(live(rounded_weights), precision="int8")
DIMS = stating(output(shorter), output="dims")
RANKS_CLASSES = scored(classification, "hits_at", one_rank_more)
RANKS_RETRIEVAL = scored(retrieval, "hits_at", one_rank_more)
LABELS = scored(classification, "ranked", label_off_by_one)
TIES = scored(retrieval, "retrieval", ties_won)
