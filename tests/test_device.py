"""Which device and precision a run takes, and that a device which is not there is named in one line."""

import pytest
import torch

from models.runtime import device
from models.runtime.device import pick_device
from models.runtime.files import UserError

ABSENT = [
    "meta",
    "mkldnn",
    "opengl",
    "xla",
    "hpu",
    "privateuseone",
    "lazy",
    "vulkan",
    "cuda:99",
    "cuda:-1",
    "cuda:9999999999999999999",
    "gpu",
    "nonsense",
    "",
    "é",
    "7",
    "cuda:0:0",
]


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.filterwarnings("ignore:.*no longer used as device type")
def test_a_device_that_cannot_compute_here_is_named_in_one_line(name):
    with pytest.raises(UserError, match="cannot be used here: .+") as refused:
        pick_device(name)
    message = str(refused.value)
    assert message.startswith(f"device={name} ") and refused.value.status == 2
    assert len(message.splitlines()) == 1


def test_the_devices_that_are_there():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("pays, precision", [(False, "float32"), (True, "bf16")])
def test_automatic_precision_of_a_cpu_is_the_faster_one(monkeypatch, pays, precision):
    monkeypatch.setattr(device, "cpu_computes_bf16", lambda: pays)
    cpu = torch.device("cpu")
    assert device.pick_precision("auto", cpu) == precision
    assert device.pick_precision("bf16", cpu) == "bf16"


def test_a_cpu_whose_instructions_for_bf16_are_slow_keeps_float32():
    """Processors with avx512_fp16 have amx_bf16 for it; where a virtual machine hides that, bf16 has half the speed."""
    assert not device.bf16_pays({"avx2", "avx512f"})
    assert device.bf16_pays({"avx512f", "avx512_bf16"})
    assert not device.bf16_pays({"avx512f", "avx512_bf16", "avx512_fp16"})
    assert device.bf16_pays({"avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"})


def test_more_processes_than_gpus_share_them(monkeypatch):
    """Process 5 of a machine with four GPUs computes on the second one, which processes.joined has chosen too."""
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "device", lambda name: asked.append(name) or "cpu")
    pick_device("cuda")
    assert asked[0] == "cuda:1"
