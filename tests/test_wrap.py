"""open_clip's triple as an encoder: the same rows as the library's own call, and the model left as it was."""

import numpy as np
import open_clip
import pytest
import torch
from fakes import colour_dataset

import clipbench
from clipbench.errors import UsageError
from clipbench.models import wrap_encoder
from clipbench.models.device import Resources


@pytest.fixture
def triple(tiny_models):
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-vit")
    return model, preprocess, open_clip.get_tokenizer("tiny-vit")


def test_rows_are_the_model_s_own_in_eval_mode_and_its_modules_keep_their_modes(triple, tmp_path):
    model, preprocess, tokenizer = triple
    images = [item.image.open() for item in colour_dataset(tmp_path).items]
    model.train()
    model.visual.eval()
    encoder = clipbench.wrap(*triple, name="step 100")
    rows, texts = encoder.encode_images(images), encoder.encode_texts(["red", "blue"])
    assert (model.training, model.visual.training) == (True, False)
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([preprocess(image) for image in images]))
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(texts, model.encode_text(tokenizer(["red", "blue"])))


def test_evaluate_takes_the_triple_and_names_it(triple):
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    run = clipbench.evaluate(triple, "natural", device="cpu")
    assert [r.model.name for r in run.results] == ["CLIP"]
    run = clipbench.evaluate(clipbench.wrap(*triple, name="step 100"), "natural", device="cpu")
    (result,) = run.results
    assert (result.model.name, result.model.precision) == ("step 100", "fp32")
    assert len(result.model.weights_sha256) == 64
    assert run.subjects[0].observed["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)


def test_other_weights_are_observed(triple):
    before = wrap_encoder(triple, Resources()).observed()["weights"]
    with torch.no_grad():
        triple[0].logit_scale.add_(1)
    assert wrap_encoder(triple, Resources()).observed()["weights"] != before


def test_two_transforms_in_place_of_a_tokenizer_are_named(triple):
    model, train, preprocess = open_clip.create_model_and_transforms("tiny-vit")
    with pytest.raises(UsageError, match=r"the tokenizer fails on \['a photo'\].*get_tokenizer"):
        clipbench.wrap(model, train, preprocess)
    with pytest.raises(UsageError, match=r"the tokenizer gives ndarray"):
        clipbench.wrap(model, preprocess, lambda texts: np.zeros((len(texts), 77)))
    with pytest.raises(UsageError, match=r"Identity has no method encode_image"):
        clipbench.wrap(torch.nn.Identity(), preprocess, triple[2])
    with pytest.raises(UsageError, match=r"give what it wraps: model\.module"):
        clipbench.wrap(torch.nn.DataParallel(model), preprocess, triple[2])
    with pytest.raises(UsageError, match="preprocess gives str for a picture"):
        clipbench.wrap(model, lambda image: "x", triple[2]).encode_images([None])


def test_tab_finds_what_the_package_offers():
    assert {"evaluate", "wrap"} <= set(dir(clipbench))
