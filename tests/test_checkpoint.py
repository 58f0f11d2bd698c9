"""Weights and states: what is written comes back, released files load without running anything, damaged files are named."""
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from golden_draws import SHARED, draw, figures, fill

from models.runtime import checkpoint
from models.runtime.files import UserError, replacing
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN, PatchDiscriminator

ROOT = Path(__file__).resolve().parent.parent
LEGACY = SHARED / "golden"
needs_legacy = pytest.mark.skipif(not LEGACY.is_dir(), reason="the released-form checkpoints of ../shared/golden are not here")
SMALL = dict(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)


def test_network_comes_back_from_its_own_file(tmp_path):
    vqgan = fill(MLVQGAN(**SMALL))
    vqgan.save(tmp_path / "weights.safetensors", epoch=3)
    loaded = MLVQGAN.load(tmp_path / "weights.safetensors")
    image = draw("image", (1, 1, 32, 32))
    assert torch.equal(loaded(image)[0], vqgan(image)[0]) and not loaded.training and loaded.settings == {**vqgan.settings, "channels": [8, 16]}


@needs_legacy
@pytest.mark.parametrize("name", ["bsldm", "gllcm"])
def test_released_unet(name):
    expected = figures(f"unet_{name}.npz")
    unet = ConditionalUNet.load(LEGACY / f"legacy_unet_{name}.pth")
    found = unet(draw("unet/x", (2, 8, 8, 8)), torch.from_numpy(expected["t"])).numpy()
    assert abs(found - expected["y"]).max() < 1e-4 * abs(expected["y"]).max()


@needs_legacy
def test_released_vqgan_and_its_conversion(tmp_path):
    expected = figures("vqgan.npz")
    vqgan = MLVQGAN.load(LEGACY / "legacy_vqgan.pth")
    vqgan.save(tmp_path / "converted.safetensors")
    for network in (vqgan, MLVQGAN.load(tmp_path / "converted.safetensors")):
        found = network(draw("vqgan/image", (2, 1, 64, 64)).tanh())[0].numpy()
        assert abs(found - expected["decode_z_q"]).max() < 1e-4 * abs(expected["decode_z_q"]).max()


def test_plain_state_dict_tells_the_architecture(tmp_path):
    vqgan = fill(MLVQGAN(channels=(8, 16, 32), residual_channels=12, residual_layers=3, codes=40))
    unet = fill(ConditionalUNet(width=32, multipliers=(1, 2, 3), blocks=2, heads=8, attention=(2,), qkv_by_head=True))
    for network in (vqgan, unet):
        torch.save(network.state_dict(), tmp_path / "state.pth")
        loaded = type(network).load(tmp_path / "state.pth", defaults={"qkv_by_head": True} if network is unet else None)
        assert loaded.settings == {**network.settings, **({"attention": (2,)} if network is unet else {})}
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values()))


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Unknown:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("content, symbol", [(Malicious(), "system"), ({"weight": Unknown()}, "eval")])
def test_a_file_that_asks_for_code_is_refused_and_nothing_runs(tmp_path, monkeypatch, content, symbol):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "evil.pth", pickle_module=pickle)
    with pytest.raises(UserError, match=rf"evil.pth asks for .*{symbol}"):
        MLVQGAN.load(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"not weights", lambda b: b[:-200] + bytes(200)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_are_named(tmp_path, damage, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(MLVQGAN(**SMALL).state_dict(), path)
    else:
        MLVQGAN(**SMALL).save(path)
    path.write_bytes(damage(path.read_bytes()))
    if suffix == ".safetensors" and path.stat().st_size > 1000:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=str(path)):
        MLVQGAN.load(path)


def test_missing_foreign_and_other_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="no weights at .*none.pth"):
        MLVQGAN.load(tmp_path / "none.pth")
    PatchDiscriminator(1, 8, 2).save(tmp_path / "critic.safetensors")
    with pytest.raises(UserError, match="weights of PatchDiscriminator, not of MLVQGAN"):
        MLVQGAN.load(tmp_path / "critic.safetensors")
    torch.save(MLVQGAN(**SMALL).state_dict(), tmp_path / "vqgan.pth")
    with pytest.raises(UserError, match="does not hold the weights of ConditionalUNet"):
        ConditionalUNet.load(tmp_path / "vqgan.pth")
    state = MLVQGAN(**SMALL).state_dict()
    state["decoder.blocks.0.conv.weight"] = torch.zeros(3, 4, 3, 3)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"another architecture: decoder.blocks.0.conv.weight is \(3, 4, 3, 3\), expected"):
        MLVQGAN.load(tmp_path / "wrong.pth")


def test_newest_whole_state_wins_and_damage_is_told(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_state(tmp_path, step, {"step": step, "tensor": torch.full((1000,), float(step))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state_00000002.pt", "state_00000003.pt"]
    assert checkpoint.newest_state(tmp_path)[0]["step"] == 3
    newest = tmp_path / "state_00000003.pt"
    whole, told = newest.read_bytes(), []
    middle = whole.index(torch.full((1000,), 3.0).numpy().tobytes()) + 100
    for damaged in (b"", whole[:1000], whole[:middle] + b"\xff" + whole[middle + 1:]):
        newest.write_bytes(damaged)
        state, path = checkpoint.newest_state(tmp_path, warn=told.append)
        assert state["step"] == 2 and path.name == "state_00000002.pt"
    assert len(told) == 3 and all("state_00000003.pt" in line for line in told)
    (tmp_path / "state_00000002.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no training state .* is whole"):
        checkpoint.newest_state(tmp_path, warn=told.append)
    assert checkpoint.newest_state(tmp_path / "empty") is None


def test_going_on_before_a_damaged_state_keeps_two_whole_ones(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save_state(tmp_path, step, {"step": step})
    (tmp_path / "state_00000030.pt").write_bytes(b"damaged")
    checkpoint.save_state(tmp_path, 25, {"step": 25})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state_00000020.pt", "state_00000025.pt"]


def test_tensors_that_share_memory_in_a_file_do_not_in_the_network(tmp_path):
    state = MLVQGAN(**SMALL).state_dict()
    state["quantizer.quantizer.ema_w"] = state["quantizer.quantizer.embedding.weight"] = torch.randn(32, 4)
    state["encoder.blocks.0.conv.bias"] = torch.randn(1000)[:8]
    torch.save(state, tmp_path / "shared.pth")
    codebook = MLVQGAN.load(tmp_path / "shared.pth").quantizer.quantizer
    codebook.ema_w.zero_()
    assert codebook.embedding.weight.abs().sum() > 0
    assert MLVQGAN.load(tmp_path / "shared.pth").encoder.blocks[0].conv.bias.untyped_storage().nbytes() == 8 * 4


MEASURE = """
import re, sys
from models.unet import ConditionalUNet
kilobytes = lambda what: int(re.search(what + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = kilobytes("VmRSS")
ConditionalUNet.load(sys.argv[1])
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory through /proc")
def test_loading_takes_the_memory_of_the_file_once(tmp_path):
    torch.save(ConditionalUNet(blocks=1, multipliers=(1, 2, 3)).state_dict(), tmp_path / "unet.pth")
    size = (tmp_path / "unet.pth").stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "unet.pth")], cwd=ROOT, capture_output=True, text=True)
    assert size > 5e7 and int(done.stdout) < 1.5 * size, done.stderr


def test_a_state_is_a_zip_whose_checksums_hold(tmp_path):
    path = checkpoint.save_state(tmp_path, 1, {"tensor": torch.arange(5)})
    assert zipfile.ZipFile(path).testzip() is None


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyError), replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(UserError, match="cannot write .*file"), replacing(tmp_path / "file") as temporary:
        raise OSError(28, "No space left on device")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "file" / "below") as temporary:
        temporary.write_text("x")
