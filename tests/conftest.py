"""Shared fixtures: tiny real models under open_clip names of their own, and a cache that tests own."""

import importlib
import json
import os
import pkgutil
import sys

import pytest
from fakes import TINY_RESNET, TINY_VIT
from hypothesis import settings
from robustness import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401  # hooks: the fault table
from running import ENCODERS, NATURAL

import clipbench

# The same examples each time: a red suite is the change's doing. `--hypothesis-profile random` searches for others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("repeatable")

# Workers share the cores: threads that wait for each other's cores take many times as long. Before anything imports torch.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# Before anything imports the hub's client: a unit test that would reach for a network fails at once, by name.
os.environ["HF_HUB_OFFLINE"] = "1"

# Loaded before the first pytest run inside a test: such a run forgets what it loads itself, torch cannot be loaded twice, and a test
# that replaces something in a module that was forgotten replaces nothing.
for module in pkgutil.walk_packages(clipbench.__path__, "clipbench."):
    if not module.name.endswith("__main__") and module.name.split(".")[1] not in ("benchmarks", "fixtures"):
        importlib.import_module(module.name)


def pytest_runtest_setup(item):
    """Skip what needs a CUDA device where there is none."""
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA device: torch {torch.__version__} finds none here")


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


@pytest.fixture
def homeless(monkeypatch):
    """Make this process one of a user who is in no list, and has neither a name nor a home in the environment."""

    def missing(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pytest.importorskip("pwd", reason="Windows has no such list"), "getpwuid", missing)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on benchmark files in an empty folder with the encoders above importable; return (result, folder)."""
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    pytester.makepyfile(known_encoders=ENCODERS)
    pytester.syspathinsert()
    # pytest-benchmark switches itself off in a worker of xdist; the session inside the test is none, wherever the test runs.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def call(*arguments, model="known_encoders:Oracle", files=NATURAL, **more):
        models = [a for m in ([model] if isinstance(model, str) else model) for a in ("--model", m)]
        return pytester.runpytest_inprocess(
            files, *models, "--device", "cpu", "-p", "no:cacheprovider", *arguments, **more
        )

    yield call
    sys.modules.pop("known_encoders", None)
