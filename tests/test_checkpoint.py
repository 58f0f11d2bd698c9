"""Weights and states: what is written comes back, released files load without running anything, damaged files are
named.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from golden_draws import SHARED, draw, figures, fill
from safetensors.torch import save_file

from models.runtime import checkpoint, training_state, weights_file
from models.runtime.files import UserError, replacing
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN, PatchDiscriminator

ROOT = Path(__file__).resolve().parent.parent
LEGACY = SHARED / "golden"
needs_legacy = pytest.mark.skipif(
    not LEGACY.is_dir(), reason="the released-form checkpoints of ../shared/golden are not here"
)
SMALL = dict(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)


def test_network_comes_back_from_its_own_file(tmp_path):
    vqgan = fill(MLVQGAN(**SMALL))
    vqgan.save(tmp_path / "weights.safetensors", epoch=3)
    loaded = MLVQGAN.load(tmp_path / "weights.safetensors")
    image = draw("image", (1, 1, 32, 32))
    assert (
        torch.equal(loaded(image)[0], vqgan(image)[0])
        and not loaded.training
        and loaded.settings == {**vqgan.settings, "channels": [8, 16]}
    )


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not weights", lambda b: b[:-200] + bytes(200)]
)
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


def test_a_pickle_of_damaged_instructions_is_one_line(tmp_path):
    """PyTorch's list of the names that a file asks for raises an error of its own on these."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02\xff.")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    with pytest.raises(UserError, match="is not a weights file or is damaged: .*operand"):
        ConditionalUNet.load(path)


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
    with pytest.raises(
        UserError, match=r"another architecture: decoder.blocks.0.conv.weight is \(3, 4, 3, 3\), expected"
    ):
        MLVQGAN.load(tmp_path / "wrong.pth")


def test_newest_whole_state_wins_and_damage_is_told(tmp_path):
    for step in (1, 2, 3):
        training_state.save_state(tmp_path, step, {"step": step, "tensor": torch.full((1000,), float(step))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state_00000002.pt", "state_00000003.pt"]
    assert training_state.newest_state(tmp_path)[0]["step"] == 3
    newest = tmp_path / "state_00000003.pt"
    whole, told = newest.read_bytes(), []
    middle = whole.index(torch.full((1000,), 3.0).numpy().tobytes()) + 100
    for damaged in (b"", whole[:1000], whole[:middle] + b"\xff" + whole[middle + 1 :]):
        newest.write_bytes(damaged)
        state, path = training_state.newest_state(tmp_path, warn=told.append)
        assert state["step"] == 2 and path.name == "state_00000002.pt"
    assert len(told) == 3 and all("state_00000003.pt" in line for line in told)
    (tmp_path / "state_00000002.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no training state .* is whole"):
        training_state.newest_state(tmp_path, warn=told.append)
    assert training_state.newest_state(tmp_path / "empty") is None


def test_going_on_before_a_damaged_state_keeps_two_whole_ones(tmp_path):
    for step in (10, 20, 30):
        training_state.save_state(tmp_path, step, {"step": step})
    (tmp_path / "state_00000030.pt").write_bytes(b"damaged")
    training_state.save_state(tmp_path, 25, {"step": 25})
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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory through /proc")
def test_loading_takes_the_memory_of_the_file_once(tmp_path):
    torch.save(ConditionalUNet(blocks=1, multipliers=(1, 2, 3)).state_dict(), tmp_path / "unet.pth")
    size = (tmp_path / "unet.pth").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "unet.pth")], cwd=ROOT, capture_output=True, text=True
    )
    assert size > 5e7 and int(done.stdout) < 1.5 * size, done.stderr


# --- Hostile and foreign files: one line each, and nothing that takes hours or gigabytes -----------------------------


@pytest.fixture(scope="module")
def bombed(tmp_path_factory):
    """A checkpoint of less than 100 kB that unpacks to 64 MB of zeros."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("bomb/data/1", bytes(1 << 26))
    return path


@pytest.mark.parametrize(
    "read", [MLVQGAN.load, weights_file.read_weights, lambda path: training_state.newest_state(path.parent)]
)
def test_a_bomb_is_refused_by_its_directory_and_never_unpacked(bombed, tmp_path, monkeypatch, read):
    path = tmp_path / "state_00000001.pt.pth"
    os.link(bombed, path)
    os.link(bombed, tmp_path / "state_00000001.pt")
    assert path.stat().st_size < 4e5

    def unpack(*_, **__):
        raise AssertionError("it was unpacked")

    for name in ("testzip", "read", "extract"):
        monkeypatch.setattr(zipfile.ZipFile, name, unpack)
    monkeypatch.setattr(torch, "load", unpack)
    for module in (weights_file, training_state):
        monkeypatch.setattr(module, "get_unsafe_globals_in_checkpoint", unpack)
    with pytest.raises(UserError, match=r"has \d+ bytes, but would unpack to 67\d{6}; no checkpoint does"):
        read(path)


def test_a_compressed_checkpoint_is_read_and_tensors_larger_than_their_file_are_not(tmp_path):
    network = fill(MLVQGAN(**SMALL))
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert torch.equal(
        MLVQGAN.load(tmp_path / "small.pth").encoder.blocks[0].conv.weight, network.encoder.blocks[0].conv.weight
    )
    torch.save({**network.state_dict(), "more": torch.zeros(1).expand(10**6, 10**4)}, tmp_path / "strided.pth")
    with pytest.raises(UserError, match="but its tensors 400000"):
        MLVQGAN.load(tmp_path / "strided.pth")


def write_header(path, header, network=None):
    """A network's weights under a header of one's own."""
    state = (network or MLVQGAN(**SMALL)).state_dict()
    save_file(state, path, metadata={"header": header if isinstance(header, str) else json.dumps(header)})
    return path


GOOD = dict(
    in_channels=1,
    channels=[8, 16],
    residual_channels=8,
    residual_layers=1,
    codes=32,
    code_channels=4,
    decay=0.5,
    commitment=0.25,
    restart=False,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "header, words",
    [
        ("[1, 2]", "does not say which network"),
        ('"text"', "does not say which network"),
        ("5", "does not say which network"),
        ("{", "header of .* is damaged"),
        ("[" * 100_000, "header of .* is damaged"),
        ("9" * 5000, "header of .* is damaged"),
        ({}, "does not say which network"),
        ({"network": "MLVQGAN"}, "does not say which network"),
        ({"settings": GOOD}, "does not say which network"),
        ({"network": ["MLVQGAN"], "settings": GOOD}, "does not say which network"),
        ({"network": "MLVQGAN", "settings": [1]}, "does not say which network"),
        (
            {"network": "MLVQGAN", "settings": {**GOOD, "attention": [2]}},
            "sets attention, which MLVQGAN does not have in this version",
        ),
        *(
            ({"network": "MLVQGAN", "settings": {**GOOD, name: value}}, f"sets {name}=")
            for name, value in (
                ("channels", "abc"),
                ("channels", 8),
                ("channels", [8, None]),
                ("channels", [8, 10**9]),
                ("channels", [1] * 100),
                ("codes", 10**9),
                ("codes", 32.5),
                ("codes", True),
                ("codes", -1),
                ("codes", None),
                ("residual_layers", 10**5),
                ("residual_layers", 50),
                ("decay", "0.5"),
                ("decay", float("nan")),
                ("decay", 10**400),
                ("restart", 1),
            )
        ),
        ({"network": "MLVQGAN", "settings": {**GOOD, "channels": [8, 1 << 20]}}, "another architecture"),
        ({"network": "MLVQGAN", "settings": {**GOOD, "channels": []}}, "another architecture|can be built"),
        ({"network": "MLVQGAN", "settings": {**GOOD, "residual_layers": 15}}, "another architecture"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_hostile_or_newer_header_is_refused_in_one_line(tmp_path, header, words):
    path = write_header(tmp_path / "weights.safetensors", header)
    with pytest.raises(UserError, match=words) as refusal:
        MLVQGAN.load(path)
    assert (
        str(path) in str(refusal.value)
        and "\n" not in str(refusal.value)
        and len(str(refusal.value)) < 400 + len(str(path))
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"heads": 0}, "no ConditionalUNet can be built"),
        ({"heads": 7}, "no ConditionalUNet can be built .*7 attention heads"),
        ({"width": 33}, "no ConditionalUNet can be built"),
        ({"multipliers": []}, "no ConditionalUNet can be built"),
        ({"prior": 0.3, "schedule": "none"}, "no ConditionalUNet can be built"),
        ({"blocks": 10**9}, "sets blocks="),
    ],
)
def test_settings_that_build_no_noise_estimator_are_refused(tmp_path, change, words):
    settings = dict(width=32, multipliers=[1, 1], blocks=1, heads=4, attention=[2])
    unet = ConditionalUNet(**settings)
    header = {"network": "ConditionalUNet", "settings": {**unet.settings, **change}}
    with pytest.raises(UserError, match=words):
        ConditionalUNet.load(write_header(tmp_path / "unet.safetensors", header, unet))


@pytest.mark.parametrize(
    "value, words",
    [
        (torch.full((8,), torch.nan), "not finite, in encoder.blocks.0.conv.bias"),
        (torch.full((8,), -torch.inf), "not finite"),
        (
            torch.ones(8, dtype=torch.int64),
            "holds int64 numbers in encoder.blocks.0.conv.bias, expected floating-point",
        ),
        (torch.ones(8, dtype=torch.bool), "holds bool numbers"),
        (torch.ones(8, dtype=torch.complex64), "holds complex64 numbers"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_numbers_that_no_network_can_use_are_named(tmp_path, value, words, suffix):
    state = {**MLVQGAN(**SMALL).state_dict(), "encoder.blocks.0.conv.bias": value}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"header": json.dumps({"network": "MLVQGAN", "settings": GOOD})})
    with pytest.raises(UserError, match=words):
        MLVQGAN.load(path)


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1},
        {"a": torch.zeros(3).to_sparse()},
        {"state_dict": {"a": "text"}},
        torch.zeros(3),
        "text",
        {},
        {"a": torch.zeros(3, device="meta")},
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights.pth"):
        MLVQGAN.load(tmp_path / "weights.pth")


def test_a_discriminator_without_a_header_is_refused_in_one_line(tmp_path):
    torch.save(PatchDiscriminator(1, 8, 2).state_dict(), tmp_path / "critic.pth")
    with pytest.raises(UserError, match="does not hold the weights of PatchDiscriminator"):
        PatchDiscriminator.load(tmp_path / "critic.pth")


@pytest.mark.parametrize(
    "content, words",
    [
        (Malicious(), "asks for .*system"),
        (Unknown(), "asks for .*eval"),
        ([1, 2], "one list"),
        (torch.ones(3), "one Tensor"),
    ],
)
def test_a_foreign_training_state_is_refused_in_one_line_and_nothing_runs(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1}, tmp_path / "state_00000001.pt")
    torch.save(content, tmp_path / "state_00000002.pt", pickle_module=pickle)
    with pytest.raises(UserError, match=f"state_00000002.pt .*{words}") as refusal:
        training_state.newest_state(tmp_path)
    assert "\n" not in str(refusal.value) and not (tmp_path / "executed").exists()


def test_the_digest_of_tensors_is_of_the_weights_and_not_of_their_file(tmp_path):
    network = fill(MLVQGAN(**SMALL))
    network.save(tmp_path / "a.safetensors", epoch=1)
    network.save(tmp_path / "b.safetensors", epoch=2)
    torch.save(network.state_dict(), tmp_path / "c.pth")
    found = {checkpoint.tensor_digest(MLVQGAN.load(path)) for path in tmp_path.iterdir()}
    assert (
        found == {checkpoint.tensor_digest(network)}
        and len({checkpoint.digest(path) for path in tmp_path.iterdir()}) == 3
    )
    network.decoder.blocks[0].conv.bias[0] += 1e-6
    assert checkpoint.tensor_digest(network) not in found


def test_notes_are_kept_by_save_and_load(tmp_path):
    network = MLVQGAN(**SMALL)
    network.notes = {"method": "GL-LCM"}
    network.save(tmp_path / "a.safetensors", epoch=3)
    loaded = MLVQGAN.load(tmp_path / "a.safetensors")
    assert loaded.notes == {"method": "GL-LCM", "epoch": 3} and copy.deepcopy(loaded).notes == loaded.notes
    loaded.save(tmp_path / "b.safetensors", epoch=4)
    assert MLVQGAN.load(tmp_path / "b.safetensors").notes == {"method": "GL-LCM", "epoch": 4}


def test_a_state_is_a_zip_whose_checksums_hold(tmp_path):
    path = training_state.save_state(tmp_path, 1, {"tensor": torch.arange(5)})
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
