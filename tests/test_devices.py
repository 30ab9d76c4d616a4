"""Devices and dtypes that a model cannot have: refused wherever one can be asked for, before anything is made or moved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from encoderlens import HookedAudioEncoder, HookedEncoder, utils
from encoderlens.devices import default_device, device_named
from encoderlens.errors import ConfigError, DeviceError, InputError, WeightsError
from tests.speech import tiny_speech
from tests.test_audio_from_configuration import FRONT_END
from tests.tiny import tiny_hf

Model = HookedEncoder | HookedAudioEncoder
ABSENT = ["cuda:99", "xpu:99", "hpu", "mtia:99", "ipu", "vulkan", "xla", torch.device("cuda", 99)]
ABSENT += [] if torch.backends.mps.is_available() else ["mps"]
ABSENT += [] if torch.cuda.is_available() else ["cuda"]
STORAGE_ONLY = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float4_e2m1fn_x2]
SMALL: dict[str, Any] = {"d_model": 24, "d_head": 8, "n_layers": 1}
TEXT, AUDIO = SMALL | {"n_ctx": 9, "d_vocab": 31}, SMALL | FRONT_END


def text_model(**options: Any) -> HookedEncoder:
    return HookedEncoder(TEXT, **options)


def audio_model(**options: Any) -> HookedAudioEncoder:
    return HookedAudioEncoder(AUDIO, **options)


def pretrained_text_model(**options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel"), **options)


def pretrained_audio_model(**options: Any) -> HookedAudioEncoder:
    return HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertModel"), **options)


makes = pytest.mark.parametrize("make", [text_model, audio_model, pretrained_text_model, pretrained_audio_model])


@pytest.fixture(params=["text", "audio"])
def model(request: pytest.FixtureRequest) -> Model:
    return text_model(device="cpu") if request.param == "text" else tiny_speech("HubertModel")


def test_a_device_that_is_there_is_found_by_any_of_its_names() -> None:
    for name in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 1)):
        assert device_named(name) == torch.device("cpu")
    assert device_named(None) == default_device() == utils.get_device()


@pytest.mark.parametrize("device", ABSENT, ids=str)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"device=.* is not there, or cannot be used; torch \S+ finds cpu.* on this machine"):
        device_named(device)


@pytest.mark.parametrize("device", ["foo", "", "cuda:x", "CPU", -1, 1.5, True, ["cpu"]], ids=repr)
def test_what_is_no_device(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"device=.* is no device that torch knows"):
        device_named(device)


def test_the_error_is_one_of_configurations_and_of_inputs() -> None:
    for kind in (ConfigError, InputError):
        with pytest.raises(kind):
            device_named("cuda:99")


@makes
@pytest.mark.parametrize("device", ["cuda:99", "vulkan", "foo", "meta"])
def test_a_model_is_not_made_where_it_cannot_be(make: Callable[..., Model], device: str) -> None:
    with pytest.raises(DeviceError, match=f"device='{device}'"):
        make(device=device)


@pytest.mark.parametrize("make", [pretrained_text_model, pretrained_audio_model])
@pytest.mark.parametrize("option", [{"device": "foo"}, {"dtype": torch.float8_e5m2}], ids=["device", "dtype"])
def test_the_request_is_checked_before_anything_is_read(make: Callable[..., Model], option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        make(model_name="some-lab/no-such-model", **option)


@pytest.mark.parametrize("fields", [TEXT, AUDIO], ids=["text", "audio"])
def test_the_device_of_a_dictionary_counts_where_the_call_names_none(fields: dict[str, Any]) -> None:
    make = HookedEncoder if "d_vocab" in fields else HookedAudioEncoder
    with pytest.raises(DeviceError, match="device='cuda:99'"):
        make(fields | {"device": "cuda:99"})
    with pytest.raises(DeviceError, match="device=''"):
        make(fields | {"device": "cpu"}, device="")
    assert make(fields | {"device": "cuda:99"}, move_to_device=False).cfg.device.type == "cpu"


def test_a_model_without_numbers_is_not_filled() -> None:
    state = text_model(device="cpu").state_dict()
    with pytest.raises(WeightsError, match="the model is on the meta device, which holds no numbers"):
        HookedEncoder.from_transformer_lens_state_dict(state, TEXT, device="meta")
    with pytest.raises(DeviceError, match="device=device"):
        text_model(device="meta", init_weights=False).initialise()


@makes
@pytest.mark.parametrize("dtype", STORAGE_ONLY, ids=str)
def test_a_dtype_that_nothing_computes_in_is_refused(make: Callable[..., Model], dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"dtype=torch\.float\d_\w+; a model's dtype is torch\.float32, float16, bfloat16 or"):
        make(device="cpu", dtype=dtype)


# Moving a model that is there

MOVES: dict[str, tuple[Callable[[Model], Any], str]] = {
    "to a device": (lambda model: model.to("cuda:99"), "device='cuda:99' is not there"),
    "to a device, by keyword": (lambda model: model.to(device=torch.device("vulkan")), "device=.*vulkan.* is not there"),
    "to a device, in TransformerLens' words": (lambda model: model.to(device_or_dtype="xpu:99"), "device='xpu:99' is not"),
    "to what is no device": (lambda model: model.to("foo"), "device='foo' is no device that torch knows"),
    "cuda": (lambda model: model.cuda(99), "the model cannot be moved there .*, and stays where it is; torch .* finds cpu"),
    "xpu": (lambda model: model.xpu(99), "the model cannot be moved there"),
    "mtia": (lambda model: model.mtia(99), "the model cannot be moved there"),
    "ipu": (lambda model: model.ipu(), "the model cannot be moved there"),
    "to a dtype": (lambda model: model.to(torch.float8_e4m3fn), r"dtype=torch\.float8_e4m3fn; a model's dtype is"),
    "to whole numbers": (lambda model: model.to(dtype=torch.int8), r"dtype=torch\.int8; a model's dtype is"),
    "to complex numbers": (lambda model: model.to("cpu", torch.complex64), r"dtype=torch\.complex64; a model's dtype is"),
    "type": (lambda model: model.type(torch.float8_e5m2), r"dtype=torch\.float8_e5m2; a model's dtype is"),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_move_that_cannot_be_made_leaves_the_model_as_it_was(move: str, model: Model) -> None:
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    act, message = MOVES[move]
    with pytest.raises(ConfigError, match=message):
        act(model)
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == before


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has what the test takes to be absent")
def test_a_move_to_apple_s_gpu_where_there_is_none(model: Model) -> None:
    with pytest.raises(DeviceError, match="device='mps' is not there"):
        model.mps()
