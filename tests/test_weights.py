"""Weights by tag: from a hub on loopback, from its cache, and not at all."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import open_clip
import pytest
import torch
from fakes import TINY_VIT
from safetensors.torch import save

from clipbench.cli import main
from clipbench.errors import WeightsUnavailableError
from clipbench.models import weights

COMMIT = "a" * 40
CLIENT = """
import json, sys
import open_clip
from open_clip import pretrained
folder, offline = sys.argv[1], sys.argv[2] == "offline"
open_clip.add_model_config(folder)
pretrained._PRETRAINED["tiny-vit"] = {"openai": pretrained._pcfg(hf_hub="maker/tiny/", quick_gelu=True)}
from clipbench.errors import ClipbenchError
from clipbench.models.open_clip import load_open_clip
from clipbench.models.weights import go_offline
from clipbench.models.zoo import ModelSpec
if offline:
    go_offline()
try:
    encoder = load_open_clip(ModelSpec("tiny-vit", "tag", "openai", "tiny-vit", "quickgelu"), "cpu", "fp32", offline)
    print("LOADED", encoder.identity.weights_sha256, encoder.identity.file_sha256)
except ClipbenchError as error:
    print("ERROR", type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as a model hub does for one file."""

    content = b""
    requests: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        type(self).requests.append(f"{self.command} {self.path}")
        if not self.path.endswith("open_clip_model.safetensors"):
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in (
            ("X-Repo-Commit", COMMIT),
            ("ETag", '"0123456789"'),
            ("Content-Length", str(len(self.content))),
        ):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(self.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub on loopback that serves a seeded tiny ViT; returns a function that loads the model in a process of its own."""
    (tmp_path / "configs").mkdir()
    for name, more in (("tiny-vit", {}), ("tiny-vit-quickgelu", {"quick_gelu": True})):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps({**TINY_VIT, **more}))
    torch.manual_seed(11)
    model = open_clip.model.CLIP(**TINY_VIT, quick_gelu=True)
    Hub.content, Hub.requests = save({k: v.contiguous() for k, v in model.state_dict().items()}), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def load(mode="online"):
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HOME": str(tmp_path),
        }
        command = [sys.executable, "-c", CLIENT, str(tmp_path / "configs"), mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.stdout.startswith(("LOADED", "ERROR")), done.stdout + done.stderr
        return done.stdout

    yield load
    server.shutdown()
    server.server_close()


@pytest.mark.fault("no network")
def test_a_tag_is_downloaded_once_then_found_in_the_cache_and_offline_opens_no_connection(hub):
    missing = hub("offline")
    assert missing.startswith("ERROR WeightsUnavailableError no weights for tiny-vit with the tag 'openai' (offline)")
    assert Hub.requests == []
    first = hub()
    assert first.startswith("LOADED")
    assert any(r.startswith("GET") for r in Hub.requests)
    Hub.requests.clear()
    assert hub("offline") == first
    assert Hub.requests == []


def test_a_corrupt_download_is_a_checkpoint_error(hub):
    Hub.content = Hub.content[: len(Hub.content) // 2]
    assert hub().startswith("ERROR CheckpointError")


@pytest.mark.fault("no network")
def test_offline_looks_in_openais_own_cache_and_believes_only_a_whole_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".cache/clip/ViT-B-16.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"whole")
    other = hashlib.sha256(b"another file").hexdigest()
    address = "https://openaipublic.azureedge.net/clip/models/{}/ViT-B-16.pt"
    with pytest.raises(WeightsUnavailableError, match=r"ViT-B-16\.pt.*Ways out"):
        weights.fetch_tag("ViT-B/16", "openai", {"url": address.format(other)}, offline=True)
    right = {"url": address.format(hashlib.sha256(b"whole").hexdigest())}
    assert weights.fetch_tag("ViT-B/16", "openai", right, offline=True) == Path(file)


@pytest.mark.fault("a user without name or home")
def test_without_a_home_folder_a_tag_is_unavailable_and_models_are_listed(homeless, capsys):
    with pytest.raises(WeightsUnavailableError, match=r"looked in .*~/\.cache/clip.*--pretrained PATH"):
        weights.fetch_tag("ViT-B/16", "openai", {"url": "https://openaipublic.azureedge.net/clip/a/b.pt"}, offline=True)
    assert main(["models"]) == 0
    assert "ViT-B/16" in capsys.readouterr().out


def test_the_message_names_the_tag_where_it_looked_and_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(WeightsUnavailableError) as error:
        weights.fetch_tag("RN50", "yfcc15m", {"hf_hub": "timm/resnet50_clip.yfcc15m/"}, offline=True)
    for words in ("RN50", "'yfcc15m'", "timm/resnet50_clip.yfcc15m", "--pretrained PATH", "--model lite"):
        assert words in str(error.value)
