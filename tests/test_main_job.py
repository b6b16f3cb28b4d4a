"""The main job as a user starts it: the embedded model on the packaged pictures, in a process of its own without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench.paths import benchmarks

ROOT = Path(__file__).resolve().parents[1]
NO_NETWORK = """
import socket

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise RuntimeError(f"a connection to {address} was tried")

socket.socket.connect = socket.socket.connect_ex = refuse

def no_lookup(*arguments, **more):
    raise RuntimeError(f"a look-up of {arguments[0]} was tried")

socket.getaddrinfo = no_lookup
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The finished process and its folder."""
    pytest.importorskip("skimage", reason="the natural pictures are scikit-image's")
    folder = tmp_path_factory.mktemp("main_job")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(benchmarks()),
        "-k",
        "card or own",
        "--device",
        "cpu",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300), folder


@pytest.mark.fault("no network")
def test_it_passes_without_a_network(outcome):
    done, _ = outcome
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was tried" not in done.stdout + done.stderr
    assert "9 passed" in done.stdout


def test_it_begins_with_pass_and_says_that_nothing_was_skipped_and_what_was_held_to_what(outcome):
    lines = outcome[0].stdout.splitlines()
    first = next(k for k, line in enumerate(lines) if "= clipbench =" in line) + 1
    assert lines[first] == "PASS: 11 pass, 0 fail, 0 inconclusive"
    natural = next(line for line in lines if line.startswith("  natural of lite on natural: "))
    assert "text_to_image_top1 0.625 [0.306, 0.863] (floor 0.5000, contract 0.1250)" in natural
    assert "skipped" not in outcome[0].stdout


def test_it_ends_with_the_next_command_and_its_download_size(outcome):
    lines = outcome[0].stdout.strip().splitlines()
    assert "downloads 598 MB once" in lines[-3]
    assert lines[-2].strip() == "pytest benchmarks --model ViT-B/16"


def test_a_pipe_gets_no_progress_bar(outcome):
    assert "\r" not in outcome[0].stdout + outcome[0].stderr


def test_it_says_that_lite_is_no_clip(outcome):
    text = (outcome[1] / "results" / "summary.md").read_text()
    assert "not CLIP" in text


def test_the_run_identifies_the_weights(outcome):
    run = json.loads((outcome[1] / "results" / "run.json").read_text())["clipbench"]
    model = run["results"][0]["model"]
    assert (model["name"], model["pretrained"], model["precision"], model["device"]) == ("lite", "lite", "fp32", "cpu")
    assert len(model["weights_sha256"]) == len(model["file_sha256"]) == 64
    assert run["environment"]["software"]["torch"]
