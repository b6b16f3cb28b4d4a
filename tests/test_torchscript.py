"""TorchScript archives are read as data: equal to the module's state dict, and no code in them runs."""

import contextlib
import io
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clipbench.errors import CheckpointError
from clipbench.models.checkpoint import OPENAI_EXTRAS, read_checkpoint, read_torchscript


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(4, 3)
        self.again = self.c_fc  # one storage under two names
        self.register_buffer("steps", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("wide", torch.tensor(2.5).expand(3, 2))
        self.sizes: list[int] = [2, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_fc(x) + self.again(x) + self.sizes[0]


class OpenAILike(nn.Module):
    """Parameters, buffers and the three sizes that OpenAI's archives store as tensors; one tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(Block(), nn.ReLU(), Block())
        self.bn1 = nn.BatchNorm1d(3)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.tail = nn.Parameter(torch.arange(10.0)[4:])
        self.neither = torch.ones(2)
        for name in OPENAI_EXTRAS:
            self.register_buffer(name, torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.resblocks[0](x)) * self.logit_scale + self.tail[0] + self.neither[0]


class RunsOnLoad(nn.Module):
    """Its archive carries `__setstate__`, which torch's own loader executes: it fails, visibly, with a bad index."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        assert state[0].numel() == 77, "setstate ran"


def save_scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the archives people have are not going away
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Path:
    """Copy a zip record by record; `change` returns the new content, None to leave the record out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


def with_pickle(source: Path, target: Path, content: bytes) -> Path:
    return rewrite(source, target, lambda name, old: content if name.endswith("/data.pkl") else old)


@pytest.fixture(scope="module")
def half() -> OpenAILike:
    torch.manual_seed(0)
    return OpenAILike().half()


@pytest.fixture(scope="module")
def archive(half: OpenAILike, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scripted(half, tmp_path_factory.mktemp("jit") / "model.pt")


@pytest.fixture(autouse=True)
def _torch_never_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("torch.jit.load was called")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch._C, "import_ir_module", refuse)


def assert_equal(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(read) == sorted(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].shape == tensor.shape, name
        assert torch.equal(read[name], tensor), name


def test_a_scripted_archive_reads_equal_to_its_state_dict(half: OpenAILike, archive: Path) -> None:
    assert_equal(read_torchscript(archive), dict(half.state_dict()))


def test_a_traced_archive_reads_equal_to_its_state_dict(tmp_path: Path) -> None:
    model = OpenAILike().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 4)), str(tmp_path / "traced.pt"))
    assert_equal(read_torchscript(tmp_path / "traced.pt"), dict(model.state_dict()))


def test_the_sizes_among_openais_weights_are_dropped_and_nothing_else(half: OpenAILike, archive: Path) -> None:
    checkpoint = read_checkpoint(archive)
    assert checkpoint.container == "torchscript"
    assert_equal(checkpoint.tensors, {n: t for n, t in half.state_dict().items() if n not in OPENAI_EXTRAS})


def test_names_that_share_a_storage_share_it_after_reading(archive: Path) -> None:
    read = read_torchscript(archive)
    assert read["resblocks.0.c_fc.weight"].data_ptr() == read["resblocks.0.again.weight"].data_ptr()


def test_an_archive_of_torch_1_7_saved_from_a_gpu_reads_on_the_cpu(
    half: OpenAILike, archive: Path, tmp_path: Path
) -> None:
    def change(name: str, content: bytes) -> bytes | None:
        if name.endswith("/data.pkl"):
            assert b"X\x03\x00\x00\x00cpu" in content
            return content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        return None if "byteorder" in name or "serialization_id" in name else content

    old = rewrite(archive, tmp_path / "old.pt", change)
    assert_equal(read_torchscript(old), dict(half.state_dict()))


def test_an_archive_without_declared_buffers_gives_every_tensor(
    half: OpenAILike, archive: Path, tmp_path: Path
) -> None:
    source = re.compile(rb"\n  __buffers__ = .*")
    old = rewrite(
        archive, tmp_path / "old.pt", lambda name, content: source.sub(b"", content) if ".py" in name else content
    )
    assert set(read_torchscript(old)) - set(half.state_dict()) == {"neither"}


def test_an_archive_that_restores_itself_by_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    path = save_scripted(RunsOnLoad(), tmp_path / "runs.pt")
    with pytest.raises(CheckpointError, match="RunsOnLoad restores itself by code of its own") as caught:
        read_checkpoint(path)
    assert "setstate ran" not in str(caught.value)
    assert "never runs code" in str(caught.value)


def test_torchs_own_loader_would_have_run_that_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = save_scripted(RunsOnLoad(), tmp_path / "runs.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.jit.Error, match="setstate ran"):
            torch.jit.load(str(path))


class Payload:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, r"(posix|nt)\.system"), (eval, r"(__builtin__|builtins)\.eval"), (io.open, r"io\.open")],
)
def test_a_call_hidden_in_an_archive_is_refused_by_name_and_never_made(
    archive: Path, tmp_path: Path, protocol: int, function: Callable[..., object], named: str
) -> None:
    canary = tmp_path / "canary"
    argument = {os.system: f"touch {canary}", eval: f"open({str(canary)!r}, 'w')"}.get(function, str(canary))
    payload = Payload(function, *([argument, "w"] if function is io.open else [argument]))
    hidden = with_pickle(archive, tmp_path / "bad.pt", pickle.dumps({"weight": payload}, protocol))
    with pytest.raises(CheckpointError, match=rf"bad\.pt was refused: it asks for {named}.*never runs code"):
        read_checkpoint(hidden)
    assert not canary.exists()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_pickle_reads_or_is_refused_and_nothing_else(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with zipfile.ZipFile(archive) as whole:
        content = whole.read("model/data.pkl")
    start = data.draw(st.integers(0, len(content) - 1))
    end = start + data.draw(st.integers(0, 8))
    damaged = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    path = with_pickle(archive, tmp_path_factory.getbasetemp() / "damaged.pt", damaged)
    with contextlib.suppress(CheckpointError):
        assert read_checkpoint(path).tensors


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nHalfStorage\n",
        b"c__torch__\nM\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    ],
)
def test_no_instruction_of_a_pickle_alters_what_the_next_file_meets(
    half: OpenAILike, archive: Path, tmp_path: Path, target: bytes
) -> None:
    poison = b"\x80\x02" + target + b"(N}X\x08\x00\x00\x00functionc__torch__\nEvil\nstb."
    with pytest.raises(CheckpointError):
        read_checkpoint(with_pickle(archive, tmp_path / "bad.pt", poison))
    assert_equal(read_torchscript(archive), dict(half.state_dict()))


def tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int = 12) -> bytes:
    """A module whose one tensor claims this view of storage "0" of the archive below: 12 float32."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    rebuilt = Payload(torch._utils._rebuild_tensor_v2, Storage(), offset, size, stride, False, OrderedDict())
    body = io.BytesIO()
    Pickler(body, 2).dump(rebuilt)
    tensor = body.getvalue().removeprefix(b"\x80\x02").removesuffix(b".")
    return b"\x80\x02c__torch__.odd\nModule\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb."


@pytest.fixture
def one_storage(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes, storage: bytes = torch.arange(12.0).numpy().tobytes(), compression: int = 0) -> Path:
        with zipfile.ZipFile(tmp_path / "one.pt", "w", compression) as archive:
            archive.writestr("one/data.pkl", content)
            archive.writestr("one/constants.pkl", pickle.dumps((), 2))
            archive.writestr("one/data/0", storage)
        return tmp_path / "one.pt"

    return write


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (12,), (1,)),
        (11, (), ()),
        (2, (2, 5), (5, 1)),
        (0, (4, 3), (1, 4)),
        (0, (3, 5), (0, 2)),
        (12, (0, 3), (3, 1)),
    ],
)
def test_offset_size_and_stride_are_honoured_up_to_the_storages_end(
    one_storage: Callable[..., Path], offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    read = read_checkpoint(one_storage(tensor_pickle(offset, size, stride))).tensors["w"]
    assert torch.equal(read, torch.arange(12.0).as_strided(size, stride, offset))


@pytest.mark.parametrize(
    ("offset", "size", "stride", "numel", "message"),
    [
        (0, (13,), (1,), 12, "reach beyond its storage of 12"),
        (12, (), (), 12, "reach beyond"),
        (1, (4, 3), (3, 1), 12, "reach beyond"),
        (0, (2,), (12,), 12, "reach beyond"),
        (-1, (2,), (1,), 12, "not those of a tensor"),
        (0, (-2,), (1,), 12, "not those of a tensor"),
        (4, (2,), (-1,), 12, "not those of a tensor"),
        (0, (2, 2), (1,), 12, "not those of a tensor"),
        (0, (True,), (1,), 12, "not those of a tensor"),
        (0, (1 << 62, 1 << 62), (0, 0), 12, "truncated or corrupt"),
        (0, (1 << 40,), (0,), 12, "repeats a few elements"),
        (0, (1 << 30,), (1,), 1 << 30, "has 48 bytes, expected 4294967296"),
        (0, (11,), (1,), 11, "has 48 bytes, expected 44"),
        (0, (4,), (1,), -1, "which is no storage"),
    ],
)
def test_a_view_beyond_its_storage_is_refused(
    one_storage: Callable[..., Path],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    numel: int,
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=rf"one\.pt.*{message}"):
        read_checkpoint(one_storage(tensor_pickle(offset, size, stride, numel)))


def test_a_compressed_storage_is_refused(one_storage: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="storage 0 is compressed"):
        read_checkpoint(one_storage(tensor_pickle(0, (12,), (1,)), compression=zipfile.ZIP_DEFLATED))


def test_a_missing_storage_is_refused(archive: Path, tmp_path: Path) -> None:
    cut = rewrite(archive, tmp_path / "cut.pt", lambda name, old: None if name.endswith("/data/3") else old)
    with pytest.raises(CheckpointError, match=r"cut\.pt is truncated or corrupt"):
        read_checkpoint(cut)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",  # contains itself
        b"\x80\x02}.",  # no module
        b"\x80\x02c__torch__\nM\n)\x81(K\x01tb.",  # a state only its own code understands
        b"\x80\x02c__torch__\nM\n)\x81.",  # no state at all
        b"\x80\x02X\x02\x00\x00\x00hiQ.",  # no storage
        b"\x80\x02c__torch__\nM",  # cut short
        b"",
    ],
)
def test_a_tree_that_is_no_tree_of_modules_is_refused(one_storage: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"one\.pt"):
        read_checkpoint(one_storage(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02c__torch__\nM\n)\x81r\xff\xff\xff\x7f}b.", "remembers objects at place 2147483647"),  # a 32 GB table
        (b"\x80\x05\x96\x00\x00\x00\x00\x08\x00\x00\x00" + b"." * 20, "but only 20 remain"),  # of 32 GB of bytes
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused_before_it_gets_it(
    one_storage: Callable[..., Path], content: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(one_storage(content))


def test_modules_that_fan_out_without_end_are_refused(one_storage: Callable[..., Path]) -> None:
    content = b"\x80\x02c__torch__\nM\n)\x81}bq\x00"
    for level in range(1, 40):  # each level holds the one before twice: 2 ** 40 modules
        child = b"h" + bytes([level - 1])
        content += (
            b"c__torch__\nM\n)\x81}(X\x01\x00\x00\x00a"
            + child
            + b"X\x01\x00\x00\x00b"
            + child
            + b"ubq"
            + bytes([level])
        )
    with pytest.raises(CheckpointError, match="over 100000"):
        read_checkpoint(one_storage(content + b"."))


def test_a_big_endian_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    big = rewrite(archive, tmp_path / "big.pt", lambda name, old: b"big" if name.endswith("/byteorder") else old)
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(big)


def test_a_flipped_bit_in_a_storage_is_refused(half: OpenAILike, archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    weight = half.resblocks[0].c_fc.weight.detach().numpy().tobytes()
    content[content.index(weight)] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC"):
        read_checkpoint(tmp_path / "flipped.pt")
