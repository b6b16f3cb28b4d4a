"""A state dict is the same from every container, hashes the same, and goes into a model whole or not at all.

Files that are no checkpoint, broken ones and hostile ones end in one error that names them. OpenAI's archives are read as data: equal
to the module's state dict; any other TorchScript is refused. Nothing in a file ever runs.
"""

import hashlib
import io
import itertools
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip.model
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.coca_model import CoCa
from open_clip.factory import load_checkpoint
from torch import nn

from clipbench.errors import CheckpointError, UsageError
from clipbench.models.checkpoint import (
    OPENAI_EXTRAS,
    WRAPPER_PREFIXES,
    Checkpoint,
    load_into,
    openai_archives,
    read_checkpoint,
    read_torchscript,
    strip_prefixes,
    weights_sha256,
)

TEXT = {"context_length": 77, "vocab_size": 256, "width": 64, "heads": 2, "layers": 2}
Tensors = dict[str, torch.Tensor]


def vision(image_size: int = 64, width: int = 64) -> dict[str, int]:
    return {"layers": 2, "width": width, "patch_size": 32, "image_size": image_size, "head_width": 32}


def clip(seed: int, image_size: int = 64, width: int = 64) -> open_clip.model.CLIP:
    torch.manual_seed(seed)
    return open_clip.model.CLIP(32, vision(image_size, width), TEXT)


def custom_text_clip(seed: int) -> open_clip.model.CustomTextCLIP:
    torch.manual_seed(seed)
    return open_clip.model.CustomTextCLIP(32, vision(), TEXT)


def coca(seed: int) -> CoCa:
    torch.manual_seed(seed)
    decoder = {"context_length": 76, "vocab_size": 256, "width": 64, "heads": 2, "layers": 2}
    pooled = {**vision(), "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True}
    model = CoCa(32, decoder, text, pooled)
    for parameter in model.parameters():  # open_clip leaves some of them uninitialised
        torch.nn.init.uniform_(parameter)
    return model


def in_memory(tensors: Tensors) -> Checkpoint:
    return Checkpoint(tensors, file_sha256="", container="torch")


def refusal(model: torch.nn.Module, tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_into(model, in_memory(tensors), Path("some/file.pt"))
    assert "some/file.pt" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def weights() -> Tensors:
    return {name: tensor.clone() for name, tensor in clip(0).state_dict().items()}


def assert_equal(got: Tensors, expected: Tensors) -> None:
    assert sorted(got) == sorted(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


WRITERS: dict[str, Callable[[Tensors, Path], object]] = {
    "safetensors": lambda w, p: safetensors.torch.save_file(w, p),
    "bare": torch.save,
    "legacy": lambda w, p: torch.save(w, p, _use_new_zipfile_serialization=False),
    "open_clip training": lambda w, p: torch.save({"epoch": 3, "name": "x", "state_dict": w, "optimizer": {}}, p),
    "model": lambda w, p: torch.save({"model": w}, p),
    "model_state_dict": lambda w, p: torch.save({"model_state_dict": w, "loss": 0.5}, p),
    "distributed": lambda w, p: torch.save({f"module.{n}": t for n, t in w.items()}, p),
    "compiled": lambda w, p: torch.save({f"_orig_mod.{n}": t for n, t in w.items()}, p),
    "both": lambda w, p: safetensors.torch.save_file({f"_orig_mod.module.{n}": t for n, t in w.items()}, p),
    "parameters": lambda w, p: torch.save({n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in w.items()}, p),
    "with sizes": lambda w, p: torch.save({**w, **dict.fromkeys(OPENAI_EXTRAS, 224)}, p),
    "reversed": lambda w, p: torch.save(dict(reversed(w.items())), p),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_weights_are_the_same_from_every_container(weights: Tensors, tmp_path: Path, writer: str) -> None:
    path = tmp_path / "weights.pt"
    WRITERS[writer](weights, path)
    checkpoint = read_checkpoint(path)
    assert_equal(checkpoint.tensors, weights)
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())
    assert weights_sha256(checkpoint.tensors) == weights_sha256(weights)
    assert checkpoint.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_dtypes_survive_reading(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.tensor([[0, 1], [1, 1]]).to(dtype)}
    for writer in ("safetensors", "bare", "legacy"):
        WRITERS[writer](tensors, tmp_path / writer)
        assert_equal(read_checkpoint(tmp_path / writer).tensors, tensors)


@pytest.mark.parametrize(
    ("found", "got"),
    [
        ({"epoch": 1, "weights": {"a": torch.ones(1)}}, "entries such as 'epoch', 'weights'"),
        ({"state_dict": {"a": torch.ones(1), "b": "text"}}, "entries such as 'b'"),
        ({}, "an empty dict"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, found: object, got: str) -> None:
    torch.save(found, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd\.pt holds no state dict.*got {got}; save model\.state_dict"):
        read_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.empty(2, device="meta"), torch.ones(1).expand(1 << 30)]
)
def test_a_tensor_that_is_not_simply_its_elements_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"odd": tensor}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        read_checkpoint(tmp_path / "odd.pt")


NAMES = st.text("abm.", min_size=1, max_size=6)
PREFIXES = st.lists(st.sampled_from(WRAPPER_PREFIXES), max_size=4).map("".join)


@given(st.sets(NAMES, min_size=1), PREFIXES)
def test_prefixes_that_all_names_carry_go_in_any_order_and_number(names: set[str], prefix: str) -> None:
    assert strip_prefixes({prefix + name: name for name in names}) == {name: name for name in names}


@given(st.sets(NAMES), PREFIXES)
def test_a_prefix_that_one_name_lacks_stays(names: set[str], prefix: str) -> None:
    tensors = {"logit_scale": 0} | {prefix + name: 1 for name in names}
    assert strip_prefixes(tensors) == tensors


def test_a_name_is_never_stripped_to_nothing() -> None:
    assert strip_prefixes({"module.": 0, "module.a": 1}) == {"module.": 0, "module.a": 1}


def test_the_hash_is_of_the_bytes_its_docstring_says() -> None:
    tensors = {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor(1.0)}
    expected = b'["a","float32",[]]\n' + b"\x00\x00\x80\x3f" + b'["b","int16",[1,2]]\n' + b"\x01\x00\x02\x00"
    assert weights_sha256(tensors) == hashlib.sha256(expected).hexdigest()


def test_the_hash_ignores_strides_and_takes_empty_tensors_and_bfloat16() -> None:
    square = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    same = square.t().contiguous().t()
    empty = torch.empty(0, 3)
    assert weights_sha256({"a": square, "e": empty}) == weights_sha256({"a": same, "e": empty})


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {**w, "logit_scale": w["logit_scale"] + 1e-6},
        lambda w: {("other" if name == "logit_scale" else name): tensor for name, tensor in w.items()},
        lambda w: {**w, "text_projection": w["text_projection"].view(torch.int32)},
        lambda w: {**w, "text_projection": w["text_projection"].reshape(32, 64)},
        lambda w: {name: tensor for name, tensor in w.items() if name != "logit_scale"},
    ],
    ids=["element", "name", "dtype", "shape", "fewer"],
)
def test_the_hash_changes_with(weights: Tensors, change: Callable[[Tensors], Tensors]) -> None:
    assert weights_sha256(change(weights)) != weights_sha256(weights)


@pytest.mark.parametrize("make", [clip, custom_text_clip, coca])
def test_every_tensor_of_a_checkpoint_arrives_in_the_model(make: Callable[[int], torch.nn.Module]) -> None:
    source, target = make(0), make(1)
    load_into(target, in_memory(dict(source.state_dict())), Path("file.pt"))
    assert_equal(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("make", [clip, custom_text_clip])
def test_loading_equals_open_clips_own(
    weights: Tensors, tmp_path: Path, make: Callable[[int], torch.nn.Module]
) -> None:
    weights["logit_scale"] = weights["logit_scale"].reshape(1)  # some trainers save it so
    torch.save(weights, tmp_path / "weights.pt")
    ours, theirs = make(1), make(2)
    load_checkpoint(theirs, str(tmp_path / "weights.pt"))
    load_into(ours, read_checkpoint(tmp_path / "weights.pt"), tmp_path / "weights.pt")
    assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_a_scripted_half_precision_archive_loads_though_it_carries_the_causal_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = clip(0).half(), clip(1)
    published(monkeypatch, save_scripted(source, tmp_path / "jit.pt"))
    checkpoint = read_checkpoint(tmp_path / "jit.pt")
    assert "attn_mask" in checkpoint.tensors
    load_into(target, checkpoint, tmp_path / "jit.pt")
    assert_equal(dict(target.state_dict()), {name: tensor.float() for name, tensor in source.state_dict().items()})


def test_another_mask_than_the_models_is_refused(weights: Tensors) -> None:
    assert "1 unexpected: attn_mask" in refusal(clip(1), {**weights, "attn_mask": torch.zeros(77, 77)})


@pytest.mark.fault("weights that no model holds")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_broken_value_anywhere_is_refused_by_name(weights: Tensors, dtype: torch.dtype, value: float) -> None:
    for position in (0, 1234, -1):
        broken = weights["token_embedding.weight"].to(dtype)
        broken.view(-1)[position] = value
        message = refusal(clip(1), {**weights, "token_embedding.weight": broken})
        assert "token_embedding.weight holds NaN or infinite values" in message


def test_another_architecture_is_refused_with_both_shapes_and_counts(weights: Tensors) -> None:
    wide = clip(1, width=96)
    message = refusal(wide, weights)
    n_differing = sum(weights[name].shape != tensor.shape for name, tensor in wide.state_dict().items())
    assert f"{n_differing} differ: visual.class_embedding is (64,) float32 in the file, (96,) float32 in" in message
    assert f"and {n_differing - 5} more" in message
    assert "--model" in message


def test_missing_and_unexpected_names_are_counted_and_listed(weights: Tensors) -> None:
    renamed = {("scale" if name == "logit_scale" else name): tensor for name, tensor in weights.items()}
    message = refusal(clip(1), renamed)
    assert re.search(r"model of \d+ tensors\. 1 missing: logit_scale\. 1 unexpected: scale\. Next: choose", message)


def test_a_foreign_checkpoint_is_refused() -> None:
    assert "missing" in refusal(clip(1), {"conv1.weight": torch.ones(3)})


def test_a_checkpoint_whose_conversion_fails_is_refused(weights: Tensors) -> None:
    mobile = {**weights, "image_encoder.model.patch_emb.0.block.conv.weight": torch.ones(3)}
    assert "open_clip's conversion fails" in refusal(clip(1), mobile)


def test_quantized_integers_are_not_taken_for_weights(weights: Tensors) -> None:
    weights["visual.proj"] = weights["visual.proj"].to(torch.int8)
    assert "visual.proj is (64, 32) int8 in the file, (64, 32) float32 in the model" in refusal(clip(1), weights)


def test_many_values_are_not_taken_for_a_scalar(weights: Tensors) -> None:
    message = refusal(clip(1), {**weights, "logit_scale": torch.ones(5)})
    assert "1 differ: logit_scale is (5,) float32 in the file, () float32 in the model" in message


def test_positional_embeddings_of_another_image_size_are_refused_and_not_interpolated() -> None:
    message = refusal(clip(1, image_size=64), dict(clip(0, image_size=96).state_dict()))
    assert "visual.positional_embedding is (10, 64) float32 in the file, (5, 64) float32 in the model" in message
    assert "not interpolated" in message


def test_positional_embeddings_of_another_context_length_are_refused(weights: Tensors) -> None:
    weights["positional_embedding"] = torch.zeros(50, 64)
    assert "positional_embedding is (50, 64) float32 in the file, (77, 64)" in refusal(clip(1), weights)


def test_a_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not found: .*nothing\.pt"):
        read_checkpoint(tmp_path / "nothing.pt")


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


@pytest.mark.fault("what is no checkpoint")
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


@pytest.mark.fault("what is no checkpoint")
def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.fault("what is no checkpoint")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checkpoint(tmp_path / "pipe")


@pytest.mark.fault("what is no checkpoint")
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


@pytest.mark.fault("what is no checkpoint")
def test_a_flipped_bit_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["a"].numpy().tobytes()) + 50] ^= 1
    with pytest.raises(CheckpointError, match="fails its checksum"):
        read_checkpoint(written(path, bytes(content)))


@pytest.mark.fault("what is no checkpoint")
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


@pytest.mark.fault("code in a checkpoint")
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


@pytest.mark.fault("code in a checkpoint")
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


@pytest.mark.fault("code in a checkpoint")
def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"it asks for torch\.nn\.modules\.linear\.Linear; .*save its state_dict"):
        read_checkpoint(path)


def published(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a small archive stand for one of OpenAI's, which are read by their SHA-256 alone."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("clipbench.models.checkpoint.openai_archives", lambda: frozenset({sha256}))


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


def test_a_scripted_archive_reads_equal_to_its_state_dict(half: OpenAILike, archive: Path) -> None:
    assert_equal(read_torchscript(archive), dict(half.state_dict()))


def test_a_traced_archive_reads_equal_to_its_state_dict(tmp_path: Path) -> None:
    model = OpenAILike().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 4)), str(tmp_path / "traced.pt"))
    assert_equal(read_torchscript(tmp_path / "traced.pt"), dict(model.state_dict()))


def test_the_sizes_among_openais_weights_are_dropped_and_nothing_else(
    half: OpenAILike, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, archive)
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


@pytest.mark.fault("code in a checkpoint")
def test_another_archive_than_openais_is_refused_unread_with_the_way_out(archive: Path, tmp_path: Path) -> None:
    for path in (archive, save_scripted(RunsOnLoad(), tmp_path / "runs.pt")):
        with pytest.raises(
            CheckpointError, match=r"none of OpenAI's nine.*never runs code.*save its state_dict\(\)"
        ) as caught:
            read_checkpoint(path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)


def test_openais_archives_are_nine() -> None:
    assert len(openai_archives()) == 9


@pytest.mark.fault("code in a checkpoint")
def test_not_even_an_archive_that_is_known_makes_anything_but_modules_and_tensors(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = pickle.dumps({"weight": Touch(tmp_path / "canary")}, 2)
    path = rewrite(archive, tmp_path / "bad.pt", lambda name, old: called if name.endswith("/data.pkl") else old)
    published(monkeypatch, path)
    with pytest.raises(CheckpointError, match=r"bad\.pt was refused: it asks for (posix|nt)\.system.*never runs code"):
        read_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_torchs_own_loader_would_have_run_that_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = save_scripted(RunsOnLoad(), tmp_path / "runs.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.jit.Error, match="setstate ran"):
            torch.jit.load(str(path))
