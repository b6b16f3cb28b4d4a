"""What the README shows works as it stands there."""

import re
from pathlib import Path

import numpy as np
import open_clip
import torch
from fakes import custom
from PIL import Image

from clipbench.models.zoo import zoo

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def block(name):
    """The fenced block under a marker."""
    (found,) = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_there_are_exactly_two_commands_for_a_fresh_machine():
    assert README.count("```sh") == 2
    for name in ("main job", "tests"):
        assert block(name).count("\n") == 1
        assert block(name).startswith("python3 -m venv .venv && ")


def test_the_example_of_an_own_encoder_has_under_15_lines_and_gives_open_clips_rows(tiny_models, monkeypatch):
    source = block("own encoder")
    assert len(source.strip().splitlines()) < 15
    real = open_clip.create_model_and_transforms

    def tiny(name, pretrained):
        torch.manual_seed(0)
        return real("tiny-vit-quickgelu")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", tiny)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    namespace = {}
    exec(source, namespace)  # noqa: S102  # the README's own example
    encoder = custom(namespace["compiled"]())
    model, _, preprocess = tiny("", "")
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(picture)[None], normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images([picture]), expected, atol=1e-5)
    assert encoder.encode_texts(["a red picture", "a cat"]).shape == (2, 32)


def test_the_download_size_is_the_tables():
    assert f"{zoo()['ViT-B/16'].download_bytes / 1e6:,.0f} MB" in README
