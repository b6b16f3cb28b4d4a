"""Files that are no checkpoint, broken ones and hostile ones: each ends in one error that names it, none runs."""

import io
import itertools
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clipbench.errors import CheckpointError, UsageError
from clipbench.models.checkpoint import read_checkpoint

WEIGHTS = {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}


def saved(path: Path, found: object = WEIGHTS, *, legacy: bool = False) -> Path:
    torch.save(found, path, _use_new_zipfile_serialization=not legacy)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("\x80"), io.BytesIO())
    return path


def plain_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/model.bin", b"weights")
    return path


def compressed(path: Path) -> Path:
    whole = saved(path.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_the_container_is_told_by_content_and_not_by_suffix(tmp_path: Path, legacy: bool) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "really_safe.pt")
    assert read_checkpoint(tmp_path / "really_safe.pt").container == "safetensors"
    assert read_checkpoint(saved(tmp_path / "really_torch.safetensors", legacy=legacy)).container == "torch"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: written(p, b""), "is empty"),
        (lambda p: written(p, b"\n<!DOCTYPE html><html>Not found</html>"), "is a web page"),
        (lambda p: written(p, b"<?xml version='1.0'?><Error/>"), "is a web page"),
        (lambda p: written(p, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
        (lambda p: written(p, b"Entry not found"), "is no checkpoint"),
        (lambda p: written(p, b'{"error": "no access"}'), "is no checkpoint"),
        (lambda p: written(p, b"\x80"), "truncated or corrupt"),
        (lambda p: written(p, b"\xff" * 8 + b"{}"), "truncated or corrupt"),
        (lambda p: written(p, b"PK\x03\x04 and no more"), "truncated or corrupt"),
        (lambda p: written(p.with_suffix(".safetensors"), b"\x00" * 100), "no safetensors header"),
        (plain_zip, "zip without data.pkl"),
        (tar, "is no checkpoint|refused|corrupt"),
        (compressed, "is compressed"),
    ],
    ids=map(str, itertools.count()),
)
def test_what_is_no_checkpoint_is_named_as_what_it_is(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not found: .*nothing\.pt"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("container", ["safetensors", "torch", "legacy"])
def test_a_file_cut_short_is_truncated_or_corrupt(tmp_path: Path, container: str, keep: float) -> None:
    path = tmp_path / "weights.pt"
    if container == "safetensors":
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        saved(path, legacy=container == "legacy")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"weights\.pt is truncated or corrupt.*download or copy it again"):
        read_checkpoint(path)


def test_a_flipped_bit_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["a"].numpy().tobytes()) + 50] ^= 1
    with pytest.raises(CheckpointError, match="fails its checksum"):
        read_checkpoint(written(path, bytes(content)))


def test_a_torch_storage_that_claims_more_than_its_record_is_refused(tmp_path: Path) -> None:
    path, bad = saved(tmp_path / "weights.pt"), tmp_path / "bad.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            thousand, million = b"M\xe8\x03", b"J\x40\x42\x0f\x00"
            content = old.read(name)
            new.writestr(name, content.replace(thousand, million) if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"bad\.pt is truncated or corrupt"):
        read_checkpoint(bad)


class Touch:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Evaluate(Touch):
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self.canary)!r}).touch()",)


@pytest.mark.parametrize("payload", [Touch, Evaluate])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_call_hidden_in_a_torch_file_is_refused_by_name_and_never_made(
    tmp_path: Path, payload: type[Touch], legacy: bool
) -> None:
    canary = tmp_path / "canary"
    path = saved(tmp_path / "bad.pt", {**WEIGHTS, "optimizer": payload(canary)}, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"refused: it asks for \S*(system|eval); .*never runs code.*safetensors"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("payload", [Touch, Evaluate])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_raw_pickle_is_never_run(tmp_path: Path, payload: type[Touch], protocol: int) -> None:
    canary = tmp_path / "canary"
    path = written(tmp_path / "bad.pt", pickle.dumps(payload(canary), protocol))
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        read_checkpoint(path)
    assert not canary.exists()


def test_the_payloads_of_these_tests_do_run_where_they_are_let(tmp_path: Path) -> None:
    for payload in (Touch, Evaluate):
        canary = tmp_path / payload.__name__
        pickle.loads(pickle.dumps(payload(canary)))
        assert canary.exists()


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"it asks for torch\.nn\.modules\.linear\.Linear; .*save its state_dict"):
        read_checkpoint(path)
