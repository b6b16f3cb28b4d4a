"""The fault table of checkpoints: small files that ask for hours or for all memory, files that change, and numbers no model holds."""

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bounds import MEGABYTE, outcome

import clipbench.models.checkpoint
from clipbench.errors import CheckpointError
from clipbench.models.checkpoint import Checkpoint, load_into, read_checkpoint, strip_prefixes
from clipbench.models.zoo import is_torchscript

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux does it")

WEIGHTS = {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}


def torch_zip(path, pickled, records=(), version=b"3\n", extra=lambda archive: None):
    """A file as torch.save writes it, around this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", version), *records):
            archive.writestr(f"archive/{name}", content)
        extra(archive)
    return path


def doubled(levels, first=b")", last=b"", step=b"\x86"):
    """Steps of a pickle that leave a tuple which holds the one below twice, level upon level."""
    steps = first
    for level in range(levels):
        steps += b"q" + bytes([level]) + b"h" + bytes([level]) + step
    return steps + last


def state_dict(steps):
    return b"\x80\x02}" + steps + b"."


# A list that holds the one below twice: ] q0 ] q1 h0 a h0 a ...
def doubled_lists(levels):
    steps = b"]q\x00"
    for level in range(levels):
        steps += b"]q" + bytes([level + 1]) + (b"h" + bytes([level]) + b"a") * 2
    return steps


# Built from the top down: each list holds the next twice while that is still empty.
def doubled_from_above(levels):
    steps = b"".join(b"]q" + bytes([k]) + b"0" for k in range(levels))
    for level in range(levels - 1):
        steps += b"h" + bytes([level]) + (b"h" + bytes([level + 1]) + b"a") * 2 + b"0"
    return steps + b"h\x00"


COUNT = b"ccollections\nOrderedDict\n"


def text(written):
    content = written.encode()
    return b"X" + struct.pack("<I", len(content)) + content


PICKLES = {
    "a nested tuple as a key": state_dict(doubled(40, last=b"K\x01s")),
    "a nested tuple as a value": state_dict(b"K\x01" + doubled(40, last=b"s")),
    "a nested tuple as a size": state_dict(b"K\x01" + b"ctorch\nSize\n" + doubled(40, last=b"\x85Rs")),
    "a nested tuple as a storage": state_dict(b"K\x01" + doubled(40, last=b"Qs")),
    "a nested list that is called": b"\x80\x02" + doubled_lists(40) + b")R.",
    "lists that are filled later": b"\x80\x02" + doubled_from_above(40) + b")R.",
    "a nested tuple that is built upon": b"\x80\x02" + COUNT + b")R" + doubled(40, last=b"b."),
    "a nested counter": b"\x80\x02ccollections\nCounter\n" + doubled(40, last=b"\x85R."),
    "any memory in one call": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 1 << 45) + b"\x85R.",
    "a codec of quadratic time": b"\x80\x02c_codecs\nencode\n" + text("é" * (1 << 19)) + text("idna") + b"\x86R.",
    "a storage of any size": b"\x80\x02ctorch\nFloatTensor\n\x8a\x08" + struct.pack("<q", 1 << 40) + b"\x85R.",
    "a long text as a text": b"\x80\x02]q\x00X"
    + struct.pack("<I", 1 << 22)
    + b"x" * (1 << 22)
    + b"q\x01"
    + b"h\x01a" * 500_000
    + b")R.",
    "millions of steps": b"\x80\x02]" + b"Na" * 5_000_000 + b".",
    "marks without end": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "a step that is none": b"\x80\x02\xff.",
    "an own __reduce__": pickle.dumps({"a": OSError("x")}, 2),
}


@pytest.mark.fault("a small checkpoint that asks for much")
@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_asks_for_too_much_is_refused(tmp_path, kind, container):
    path = tmp_path / "bad.pt"
    if container == "zip":
        torch_zip(path, PICKLES[kind])
    else:
        whole = io.BytesIO()
        torch.save(WEIGHTS, whole, _use_new_zipfile_serialization=False)
        head = whole.getvalue()
        start = head.index(b"\x80\x02", head.index(b"little_endian"))  # the fourth of its pickles
        path.write_bytes(head[:start] + PICKLES[kind] + head[start:])
    name, message = outcome(lambda: read_checkpoint(path), seconds=15, megabytes=500)
    assert name == "CheckpointError", (name, message)
    assert "bad.pt" in message
    assert len(message) < 1000


def overlapping(path):
    """2,500 entries of one table over the same megabyte."""
    torch_zip(path, pickle.dumps({}, 2), [("data/0", bytes(MEGABYTE))])
    return repeated(path, 2500)


def repeated(path, times):
    """The zip with the last entry of its table of contents so many times, under other names."""
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    entry = content[content.rindex(b"PK\x01\x02", 0, end) : end]
    table = content[start : start + size]
    more = []
    for k in range(times):
        name = f"archive/data/{k:06}".encode()
        more.append(entry[:28] + struct.pack("<H", len(name)) + entry[30:46] + name)
    table += b"".join(more)
    count = min(0xFFFF, times)
    path.write_bytes(
        content[:start] + table + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, len(table), start, 0)
    )
    return path


def sparse(path):
    """60,000 entries over one record of 300 MB, which lies on the disk as a hole."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        info = zipfile.ZipInfo("archive/data/0")
        with archive.open(info, "w", force_zip64=True) as record:
            for _ in range(30):
                record.write(bytes(10 * MEGABYTE))
    return repeated(path, 60_000)


def deflated(path):
    """Sources that inflate to 16 MB each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        for k in range(60):
            archive.writestr(f"archive/data/{k}", bytes(16 * MEGABYTE))
    return path


def expanded(path):
    """400 tensors that repeat one element 16 million times."""
    torch.save({f"t{k}": torch.ones(1).expand(1 << 24) for k in range(400)}, path)
    return path


def shared(path):
    """100,000 names of one storage of 4 MB."""
    one = torch.ones(MEGABYTE)
    torch.save({f"t{k}": one[:] for k in range(3000)}, path)
    return path


def prefixed(path):
    safetensors.torch.save_file({"module." * 300_000: torch.ones(1)}, path)
    return path


def version_9(path):
    torch_zip(path, pickle.dumps({}, 2))
    content = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00", b"PK\x01\x02\x14\x03\x63\x00")
    path.write_bytes(content)
    return path


def no_utf8(path):
    torch_zip(path, pickle.dumps({}, 2), [("data/é", b"x")])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    return path


def two_pickles(path):
    """Another pickle for torch's reader of zips than for Python's, which takes the last of a name."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("archive/data.pkl", PICKLES["a nested tuple as a key"])
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
    return path


def endless_table(path):
    """A table of contents of 64 MB."""
    torch_zip(path, pickle.dumps({}, 2), [("data/0", b"x")])
    return repeated(path, 1_000_000)


def torchscript(path, source=b"x", pickled=b"\x80\x02}."):
    records = [("constants.pkl", b"\x80\x02)."), ("code/__torch__.py", source)]
    return torch_zip(path, pickled, records)


FILES = {
    "overlapping records": overlapping,
    "sixty thousand records over one": sparse,
    "a bomb": deflated,
    "tensors that repeat an element": expanded,
    "names that share a storage": shared,
    "two pickles of one name": two_pickles,
    "a table of contents without end": endless_table,
    "a zip of version 9.9": version_9,
    "a name that is no UTF-8": no_utf8,
    "TorchScript, a nested size": lambda path: torchscript(path, pickled=PICKLES["a nested tuple as a size"]),
    "TorchScript, sources of 16 MB": lambda path: torchscript(path, bytes(16 * MEGABYTE)),
    "TorchScript, one name above all": lambda path: torchscript(
        path, pickled=b"\x80\x02X" + struct.pack("<I", 8 << 20) + b"x" * (8 << 20) + b"."
    ),
}


@pytest.mark.fault("a small checkpoint that asks for much")
@pytest.mark.parametrize("kind", FILES)
def test_a_small_file_costs_no_time_and_no_memory(tmp_path, kind):
    path = FILES[kind](tmp_path / "bad.pt")
    name, message = outcome(lambda: read_checkpoint(path), seconds=15, megabytes=800)
    assert name == "CheckpointError", (name, message)
    assert "bad.pt" in message
    name, message = outcome(lambda: is_torchscript(path), seconds=10)
    assert (name, message) == ("", str(kind.startswith("TorchScript")))


@pytest.mark.fault("a small checkpoint that asks for much")
def test_a_name_of_many_prefixes_is_stripped_in_linear_time(tmp_path):
    path = prefixed(tmp_path / "bad.safetensors")
    name, message = outcome(lambda: [*read_checkpoint(path).tensors], seconds=10)
    assert (name, message) == ("", "['module.']")
    assert strip_prefixes({"module." * 3 + "a": 1, "module." * 2 + "b": 2}) == {"module.a": 1, "b": 2}


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SAFE = {
    "a length without end": header({}, length=(1 << 62)),
    "a header of 100 MB": header(b"{" + b" " * (100 * MEGABYTE) + b"}"),
    "a deep header": header(b'{"a":' * 100_000),
    "a shape without end": header(
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "overlapping tensors": header(
        {f"t{k}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in range(9)}, bytes(4)
    ),
    "a type of four bits": header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
    "a type of no sign": header({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}, bytes(2)),
    "half a character": header(b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
}


@pytest.mark.fault("what is no checkpoint")
@pytest.mark.parametrize("kind", SAFE)
def test_a_hostile_safetensors_header_is_refused(tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(SAFE[kind])
    name, message = outcome(lambda: read_checkpoint(path), seconds=15, megabytes=600)
    assert name == "CheckpointError", (name, message)


@pytest.mark.fault("a checkpoint that changes")
@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_what_was_read_is_what_was_hashed_whatever_becomes_of_the_file(tmp_path, save):
    path = tmp_path / "weights.pt"
    save(WEIGHTS, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()

    def read():
        checkpoint = read_checkpoint(path)
        os.truncate(path, 100)  # a mapping of it would end this process by a signal
        same = all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in WEIGHTS.items())
        path.write_bytes(b"\xff" * 10_000)
        return same and torch.equal(checkpoint.tensors["b"], WEIGHTS["b"]) and checkpoint.file_sha256

    assert outcome(read) == ("", expected)


@pytest.mark.fault("a checkpoint that changes")
@pytest.mark.parametrize("change", ["overwritten", "cut", "replaced"])
@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_a_file_that_changes_between_hashing_and_loading_is_read_as_it_was_hashed(tmp_path, monkeypatch, save, change):
    path, other = tmp_path / "weights.pt", tmp_path / "other.pt"
    save(WEIGHTS, path)
    save({name: tensor + 1 for name, tensor in WEIGHTS.items()}, other)
    expected, contents = hashlib.sha256(path.read_bytes()).hexdigest(), clipbench.models.checkpoint._contents

    def late(*arguments):
        if change == "replaced":
            os.replace(other, path)
        else:
            path.write_bytes(other.read_bytes() if change == "overwritten" else b"")
        return contents(*arguments)

    monkeypatch.setattr(clipbench.models.checkpoint, "_contents", late)
    checkpoint = read_checkpoint(path)
    assert checkpoint.file_sha256 == expected
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.fault("a small checkpoint that asks for much")
def test_a_checkpoint_larger_than_the_memory_that_is_free_is_refused_unread(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(WEIGHTS, path)
    os.truncate(path, 1 << 42)
    name, message = outcome(lambda: read_checkpoint(path), seconds=5)
    assert name == "CheckpointError", (name, message)
    assert "memory" in message


@pytest.mark.fault("weights that no model holds")
@pytest.mark.parametrize(("dtype", "value"), [(torch.float64, 1e300), (torch.float64, -1e39)])
def test_a_number_that_the_cast_makes_infinite_is_refused(dtype, value):
    model = torch.nn.Linear(2, 2)
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    tensors["weight"] = torch.full((2, 2), value, dtype=dtype)
    with pytest.raises(CheckpointError, match="weight holds NaN or infinite values"):
        load_into(model, Checkpoint(tensors, "", "torch"), Path("file.pt"))


@pytest.mark.fault("weights that no model holds")
def test_a_number_that_only_half_precision_makes_infinite_is_refused_there():
    checkpoint = Checkpoint({"weight": torch.ones(2, 2), "bias": torch.tensor([1.0, 3e38])}, "", "torch")
    load_into(torch.nn.Linear(2, 2), checkpoint, Path("file.pt"))
    with pytest.raises(CheckpointError, match="bias holds NaN"):
        load_into(torch.nn.Linear(2, 2).half(), checkpoint, Path("file.pt"))


@pytest.mark.fault("text that steers")
def test_names_in_a_checkpoint_reach_nobody_raw(tmp_path):
    torch.save({"x\n::error file=README.md,line=1::a\n\x1b]0;t\x07\x00": 1}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "bad.pt")
    assert str(caught.value).isprintable()


def test_an_optimizers_state_and_tied_names_are_read(tmp_path):
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias]}], betas=(0.9, 0.98))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = dict(layer.state_dict()) | {"tied": layer.weight}
    saved = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "again": state,
        "args": [(1, "a")] * 5,
    }
    for legacy in (False, True):
        torch.save(saved, tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(read_checkpoint(tmp_path / "weights.pt").tensors["tied"], layer.weight.detach())
