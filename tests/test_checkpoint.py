"""A state dict is the same from every container, hashes the same, and goes into a model whole or not at all."""

import hashlib
import re
import warnings
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

from clipbench.errors import CheckpointError, UsageError
from clipbench.models.checkpoint import (
    OPENAI_EXTRAS,
    WRAPPER_PREFIXES,
    Checkpoint,
    load_into,
    read_checkpoint,
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


def test_a_scripted_half_precision_archive_loads_though_it_carries_the_causal_mask(tmp_path: Path) -> None:
    source, target = clip(0).half(), clip(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(source), str(tmp_path / "jit.pt"))
    checkpoint = read_checkpoint(tmp_path / "jit.pt")
    assert "attn_mask" in checkpoint.tensors
    load_into(target, checkpoint, tmp_path / "jit.pt")
    assert_equal(dict(target.state_dict()), {name: tensor.float() for name, tensor in source.state_dict().items()})


def test_another_mask_than_the_models_is_refused(weights: Tensors) -> None:
    assert "1 unexpected: attn_mask" in refusal(clip(1), {**weights, "attn_mask": torch.zeros(77, 77)})


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
    with pytest.raises(UsageError):
        read_checkpoint(tmp_path / "nothing.pt")
