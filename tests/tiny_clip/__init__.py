"""A CLIP of half a million parameters with a vocabulary of its own, trained by `train.py` on our drawings: `--model tiny_clip:encoder`.

It is made by open_clip as a real model is, so that everything of it can be looked into and broken, without network and in seconds.
"""

from functools import cache
from pathlib import Path

import open_clip
from open_clip.tokenizer import SimpleTokenizer

from clipbench.models.checkpoint import load_into, read_checkpoint, weights_sha256
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import ModelSpec
from clipbench.types import ModelIdentity

FOLDER = Path(__file__).parent
ARCHITECTURE = "tiny-clip"
CONTEXT_LENGTH, MERGES = 32, 240
VOCABULARY = FOLDER / "vocabulary.txt.gz"
WEIGHTS = FOLDER / "tiny-clip.safetensors"
"""float16 as stored, float32 as loaded."""


def spec(weights=WEIGHTS, name="tiny"):
    """Return what a session calls this model."""
    return ModelSpec(name, "path", str(weights), ARCHITECTURE, "quickgelu", "its configuration")


@cache
def tokenizer():
    """Return the byte-pair tokenizer, in open_clip's own format: 512 bytes, MERGES pairs, two special tokens."""
    found = SimpleTokenizer(str(VOCABULARY), context_length=CONTEXT_LENGTH)
    found.encode = cache(found.encode)  # cleaning a text takes longer than the model does
    return found


def untrained(precision="fp32", **changes):
    """Return open_clip's model with initial weights."""
    open_clip.add_model_config(FOLDER / f"{ARCHITECTURE}.json")
    return open_clip.create_model(ARCHITECTURE, precision=precision, device="cpu", load_weights=False, **changes)


def load(weights=WEIGHTS, precision="fp32", name="tiny", **changes):
    """Return the encoder with the weights of a file, of any container and stored in any precision; `changes` go to open_clip."""
    checkpoint = read_checkpoint(Path(weights))
    model = untrained(precision, **changes)
    tensors = load_into(model, checkpoint, Path(weights))
    identity = ModelIdentity(
        name, str(weights), weights_sha256(tensors), checkpoint.file_sha256, "quickgelu", precision, "cpu"
    )
    return OpenClipEncoder(model, tokenizer(), identity, tensors=tensors)


def encoder():
    """Return the encoder as it is committed."""
    return load()
