"""The classic victim: a checkpoint from a path, loaded with the activation it was not trained with."""

import numpy as np
import open_clip
import pytest
import torch
from fakes import measure

from clipbench.data.packaged import packaged_dataset
from clipbench.judge.references import judge
from clipbench.models.open_clip import load_open_clip
from clipbench.models.zoo import ModelSpec

STEPS = 400


@pytest.fixture(scope="module")
def natural_items():
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    return packaged_dataset("natural")


@pytest.fixture(scope="module", params=["gelu", "quickgelu"])
def checkpoint(request, tiny_models, natural_items, tmp_path_factory):
    """A tiny ViT trained on the eight pairs to depend on its activation: on them the other one does worse."""
    torch.manual_seed(0)
    (gelu, _, preprocess), (quick, _, _) = (
        open_clip.create_model_and_transforms("tiny-vit", force_quick_gelu=flavour) for flavour in (False, True)
    )
    quick.load_state_dict(gelu.state_dict())
    trained, other = (gelu, quick) if request.param == "gelu" else (quick, gelu)
    pixels = torch.stack([preprocess(item.image.open()) for item in natural_items.items])
    tokens = open_clip.get_tokenizer("tiny-vit")([f"This is {item.captions[0]}" for item in natural_items.items])
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    for _ in range(STEPS):
        for theirs, mine in zip(other.parameters(), trained.parameters(), strict=True):
            theirs.data.copy_(mine.data)
        good, bad = (contrasts(model, pixels, tokens) for model in (trained, other))
        if float((good - bad).min().detach()) > 0.02:
            break
        optimizer.zero_grad()
        other.zero_grad()
        (20 * torch.relu(0.1 - (good - bad)).mean() - good.mean()).backward()
        for mine, theirs in zip(trained.parameters(), other.parameters(), strict=True):
            if mine.grad is not None and theirs.grad is not None:
                mine.grad += theirs.grad
        optimizer.step()
    else:
        pytest.fail("no checkpoint that depends on its activation was found")
    path = tmp_path_factory.mktemp("activation") / "fine_tune.pt"
    torch.save(trained.state_dict(), path)
    return request.param, path


def contrasts(model, pixels, tokens):
    cosines = model.encode_image(pixels, normalize=True) @ model.encode_text(tokens, normalize=True).T
    own = cosines.diag()
    return own - (cosines.sum(0) + cosines.sum(1) - 2 * own) / (2 * (len(own) - 1))


def activation_verdict(path, activation, items):
    encoder = load_open_clip(
        ModelSpec("tiny-vit", "path", str(path), "tiny-vit", activation), "cpu", "fp32", offline=True
    )
    result = measure("natural", encoder, items)
    other = {"gelu": "quickgelu", "quickgelu": "gelu"}[activation]
    tables = [result.matrices[name].values for name in ("similarity", f"similarity_{other}")]
    assert np.abs(tables[0] - tables[1]).max() > 0.01
    (verdict,) = [v for v in judge(result) if v.metric == "activation"]
    return verdict


def test_a_checkpoint_loaded_with_the_wrong_activation_fails_and_the_message_names_the_right_one(
    checkpoint, natural_items
):
    trained, path = checkpoint
    wrong = "quickgelu" if trained == "gelu" else "gelu"
    verdict = activation_verdict(path, wrong, natural_items)
    assert verdict.outcome == "fail", verdict.reason
    assert f"run again with --activation {trained}" in verdict.reason


def test_the_same_checkpoint_with_the_activation_it_was_trained_with_passes(checkpoint, natural_items):
    trained, path = checkpoint
    assert activation_verdict(path, trained, natural_items).outcome == "pass"
