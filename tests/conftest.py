"""Shared fixtures: tiny real models under open_clip names of their own, and a cache that tests own."""

import json
import os

import pytest
from fakes import TINY_RESNET, TINY_VIT

# Before anything imports the hub's client: a unit test that would reach for a network fails at once, by name.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Register a ViT and a ResNet of a few hundred thousand parameters, each with GELU and QuickGELU, with open_clip."""
    import open_clip

    folder = tmp_path_factory.mktemp("configs")
    for name, configuration in (("tiny-vit", TINY_VIT), ("tiny-rn", TINY_RESNET)):
        (folder / f"{name}.json").write_text(json.dumps(configuration))
        (folder / f"{name}-quickgelu.json").write_text(json.dumps({**configuration, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    return ("tiny-vit", "tiny-rn")
