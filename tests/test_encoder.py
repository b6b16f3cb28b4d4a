"""Unit rows, your own encoder, devices."""

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import ColourEncoder, NanEncoder, colour_dataset, custom
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clipbench.embed.embedder import Embedder
from clipbench.errors import EncoderError, UnknownModelError, UsageError
from clipbench.models import device
from clipbench.models.encoder import checked_rows, find_factory, unit_rows
from clipbench.models.zoo import ModelSpec
from clipbench.options import Options
from clipbench.session import Session

RED = [Image.new("RGB", (4, 4), (255, 0, 0))]


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)).filter(lambda a: np.linalg.norm(a, axis=1).min() > 1e-3)
)
def test_rows_have_length_one_and_keep_their_direction(raw):
    rows = unit_rows(raw, "test")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(
        rows * np.linalg.norm(raw, axis=1, keepdims=True), raw, rtol=1e-5, atol=1e-5 * np.abs(raw).max()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_may_come_as_torch_tensors_of_any_float_type(dtype):
    rows = checked_rows(torch.tensor([[3.0, 4.0]], dtype=dtype), 1, "test")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[3.0, 4.0]])


@pytest.mark.fault("rows that are none")
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.zeros((2, 3)), "a zero row for input 0"),
        (np.array([[1.0, 0], [np.nan, 1]]), "NaN for input 1"),
        (np.array([[1.0, 0], [np.inf, 1]]), "infinity for input 1"),
        (np.ones((3, 2)), r"shape \(3, 2\) for 2 inputs"),
        (np.ones(2), r"shape \(2,\)"),
        ([["a", "b"], ["c", "d"]], "test returned list, which is no array of numbers"),
    ],
)
def test_anything_but_one_finite_row_an_input_is_refused_by_name(raw, words):
    with pytest.raises(EncoderError, match=words):
        checked_rows(raw, 2, "test")


@pytest.mark.fault("rows that are none")
@pytest.mark.parametrize(
    ("row", "words"), [([0.0, 0.0], "a zero row"), ([np.nan, 1.0], "NaN"), ([np.inf, 1.0], "infinity")]
)
def test_a_row_without_a_direction_cannot_be_normalised(row, words):
    with pytest.raises(EncoderError, match=f"returned {words} for input 1 "):
        unit_rows(np.array([[1.0, 1.0], row]))


@pytest.mark.fault("rows that are none")
@pytest.mark.parametrize("raw", [np.ones((1, 2), complex), torch.ones((1, 2), dtype=torch.complex64), [[1j, 2]]])
def test_complex_rows_are_refused_not_cut_to_their_real_part(raw):
    with pytest.raises(EncoderError, match="complex numbers"):
        checked_rows(raw, 1, "test")


def test_your_own_encoders_rows_are_what_it_gives_as_float32():
    encoder = custom(ColourEncoder())
    assert encoder.encode_images(RED).tolist() == [[155.0, -100.0, -100.0]]
    assert encoder.encode_images(RED).dtype == np.float32
    assert encoder.encode_texts(["a red one"]).tolist() == [[155.0, -100.0, -100.0]]


@pytest.mark.fault("rows that are none")
def test_your_own_encoder_with_nan_is_refused():
    with pytest.raises(EncoderError, match="fake: encode_images returned NaN"):
        custom(NanEncoder()).encode_images(RED)


def test_an_object_without_the_two_methods_is_no_encoder():
    with pytest.raises(UnknownModelError, match="no method encode_images"):
        custom(object())


def test_an_encoder_may_state_its_identity():
    stated = ColourEncoder()
    stated.identity = {"pretrained": "int8", "weights_sha256": "0" * 64}
    assert custom(stated).identity.pretrained == "int8"


def test_an_encoder_may_state_what_was_chosen_and_what_it_is():
    stated = ColourEncoder()
    stated.config, stated.logit_scale = {"quantized": "int8"}, np.float32(100)
    assert custom(stated).asked() == {"config": {"quantized": "int8"}}
    assert custom(stated).observed()["logit_scale"] == 100
    assert "logit_bias" not in custom(stated).observed()
    assert custom(ColourEncoder()).asked() == {}


@pytest.mark.parametrize("config", [{"scale": float("nan")}, {"made": object()}, 3])
def test_a_config_that_no_run_file_can_hold_is_refused(config):
    stated = ColourEncoder()
    stated.config = config
    with pytest.raises(UnknownModelError, match="is no mapping of JSON values"):
        custom(stated)


def test_a_factory_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_encoder_module.py").write_text("def make():\n    return 'made'\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find_factory("my_encoder_module:make")() == "made"
    with pytest.raises(UnknownModelError, match="no callable 'number'"):
        find_factory("my_encoder_module:number")
    with pytest.raises(UnknownModelError, match="cannot import 'no_such_module'"):
        find_factory("no_such_module:make")


@pytest.mark.parametrize("option", ["gpu", "cuda:x", "", "CPU"])
def test_an_unknown_device_is_a_usage_error(option):
    with pytest.raises(UsageError, match="expected auto, cpu, cuda, cuda:N or mps"):
        device.resolve_device(option)


@pytest.mark.parametrize(
    ("cuda", "mps", "option", "found"),
    [
        (0, False, "auto", "cpu"),
        (1, False, "auto", "cuda"),
        (0, True, "auto", "mps"),
        (2, False, "cuda:1", "cuda:1"),
        (1, True, "cpu", "cpu"),
    ],
)
def test_auto_is_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, option, found):
    machine(monkeypatch, cuda, mps)
    assert device.resolve_device(option) == found


@pytest.mark.parametrize(
    ("cuda", "option", "words"), [(0, "cuda", "finds no CUDA"), (1, "cuda:1", "has 1 CUDA"), (1, "mps", "no MPS")]
)
def test_an_absent_device_is_a_usage_error(monkeypatch, cuda, option, words):
    machine(monkeypatch, cuda, False)
    with pytest.raises(UsageError, match=words):
        device.resolve_device(option)


def test_auto_does_not_import_torch_where_there_is_no_driver(monkeypatch):
    monkeypatch.setattr(device, "_AMD", Path("/dev/no-such-device"))
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    assert device.resolve_device("auto") == "cpu"


def test_a_thread_that_prepares_images_runs_torch_alone_and_the_models_thread_keeps_its_own(monkeypatch):
    before = torch.get_num_threads()

    def threads(limit):
        with ThreadPoolExecutor(1, initializer=device.keep_to_one_thread if limit else None) as pool:
            return pool.submit(torch.get_num_threads).result()

    assert threads(limit=True) == 1
    assert threads(limit=False) == torch.get_num_threads() == before


def float32_switches():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [place.fp32_precision for place in (matmul, cudnn.conv, cudnn.rnn, torch.backends.mkldnn.matmul)]


@pytest.fixture
def float32_as_it_was():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places = (torch.backends, cudnn, matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    yield
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


HOSTS = {
    "the default": lambda: None,
    "TF32 for matmul": lambda: torch.set_float32_matmul_precision("high"),
    "the lowest for matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "TF32 by the newer names": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "another for convolutions alone": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_float32_on_cuda_is_no_tf32_and_the_host_is_left_as_it_was(float32_as_it_was, host):
    HOSTS[host]()
    before = float32_switches()
    seen = []

    def measured():
        with device.float32_as_asked("cuda:0", "fp32"):
            seen.extend(float32_switches()[:3])
            raise EncoderError("whatever happens while it is measured")

    with pytest.raises(EncoderError):
        measured()
    assert "tf32" not in seen
    assert float32_switches() == before


@pytest.mark.parametrize(("name", "precision"), [("cpu", "fp32"), ("mps", "fp32"), ("cuda", "bf16"), ("cuda", "fp16")])
def test_float32_is_left_alone_on_other_devices_and_for_other_precisions(name, precision):
    before = float32_switches()
    with device.float32_as_asked(name, precision):
        assert float32_switches() == before


@pytest.mark.parametrize("host", HOSTS)
def test_tf32_is_all_tf32_where_it_is_asked_for_and_the_host_is_left_as_it_was(float32_as_it_was, host):
    HOSTS[host]()
    before = float32_switches()
    with device.float32_as_asked("cuda:0", "tf32"):
        assert float32_switches()[:2] == ["tf32", "tf32"]
    assert float32_switches() == before


@pytest.mark.parametrize(("name", "capability"), [("cpu", None), ("mps", None), ("cuda", (7, 5))])
def test_tf32_is_refused_where_a_device_has_none(monkeypatch, name, capability):
    machine(monkeypatch, 1, True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(UsageError, match=f"tf32: {name} multiplies no TF32"):
        device.resolve_resources(name, "tf32", None, None)


def test_tf32_is_a_precision_of_its_own_on_a_card_that_has_it(monkeypatch):
    machine(monkeypatch, 1, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert device.resolve_resources("cuda", "tf32", None, None).precision == "tf32"


def test_a_session_measures_without_tf32_until_its_encoder_is_freed():
    before = float32_switches()
    seen = []
    session = Session(Options(), device.Resources("cuda"))
    session.adopt(ModelSpec("colours", "factory", "factory"), custom(ColourEncoder()))
    seen.append(float32_switches()[:3])
    session.close()
    assert "tf32" in before
    assert "tf32" not in seen[0]
    assert float32_switches() == before


def test_a_compiled_model_runs_while_tf32_is_off(float32_as_it_was):
    torch.set_float32_matmul_precision("high")
    with device.float32_as_asked("cuda", "fp32"):
        doubled = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2))
    assert doubled.tolist() == [2, 2]


@pytest.mark.parametrize(("name", "expected"), [("cuda", 1), ("cuda:1", 1), ("cpu", 3), ("mps", 3)])
def test_one_thread_feeds_a_cuda_device_and_the_main_thread_has_its_own_again_afterwards(tmp_path, name, expected):
    seen = []

    class Counting(ColourEncoder):
        def encode_images(self, images):
            seen.append(torch.get_num_threads())
            return super().encode_images(images)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Embedder(custom(Counting()), device.Resources(name, workers=2)).images(colour_dataset(tmp_path).items)
        assert seen == [expected]
        assert torch.get_num_threads() == 3
        with pytest.raises(EncoderError):
            Embedder(custom(NanEncoder()), device.Resources(name)).images(colour_dataset(tmp_path).items)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


def machine(monkeypatch, cuda, mps):
    monkeypatch.setattr(device, "_may_have_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("name", "calls"), [("cpu", []), ("cuda", ["cuda"]), ("cuda:1", ["cuda:1"])])
def test_the_device_is_waited_for_where_work_is_queued(monkeypatch, name, calls):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device.synchronized(None, name)
    assert device.synchronized("output", name) == "output"
    assert waited == calls * 2


def test_a_devices_own_seconds_are_between_its_events_around_what_was_queued(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            happened.append(f"record on {stream}")

        def synchronize(self):
            happened.append("wait")

        def elapsed_time(self, other):
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda name: f"{name}'s stream")
    assert device.device_seconds(lambda: happened.append("start"), "cuda:1") == 0.0125
    assert happened == ["record on cuda:1's stream", "start", "record on cuda:1's stream", "wait"]
    assert device.device_seconds(lambda: pytest.fail("a CPU has no clock of its own"), "cpu") is None


def driver(answers):
    def run(command, **options):
        (asked,) = [option for option in command if option.startswith("--query")]
        assert "--id=GPU-12-ab" in command
        return subprocess.CompletedProcess(command, 0, answers[asked.split("=")[0]])

    return run


def test_a_cards_state_is_what_its_driver_says_and_absent_where_it_says_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: SimpleNamespace(uuid="12-ab"))
    answers = {"--query-gpu": "1755, 1980, 310.52, [N/A], 41\n", "--query-compute-apps": "77\n4242\n"}
    monkeypatch.setattr(subprocess, "run", driver(answers))
    found = {"clock_mhz": 1755, "highest_clock_mhz": 1980, "power_watts": 310.52, "temperature_celsius": 41}
    assert device.card_state("cuda") == found | {"processes": 2}
    assert device.card_state("cpu") == {}
    for error in (FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")):
        monkeypatch.setattr(subprocess, "run", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert device.card_state("cuda") == {}


def test_peak_memory_on_cuda_is_reset_then_what_was_allocated(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda name: 123)
    assert device.reset_peak_memory("cuda:1")
    assert (reset, device.peak_memory_bytes("cuda:1")) == (["cuda:1"], 123)


def test_peak_memory_on_a_cpu_sees_what_was_resident_and_forgets_it_after_a_reset():
    if not device.reset_peak_memory("cpu"):
        pytest.skip("this system cannot reset the peak")
    before = device.peak_memory_bytes("cpu")
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert device.peak_memory_bytes("cpu") - before > 50 * 2**20
    del block
    device.reset_peak_memory("cpu")
    assert device.peak_memory_bytes("cpu") - before < 50 * 2**20


def test_memory_is_not_measured_where_the_count_cannot_start_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "_CLEAR_REFS", tmp_path / "no" / "such")
    assert not device.reset_peak_memory("cpu")
    assert not device.reset_peak_memory("mps")
