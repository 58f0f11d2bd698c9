"""How a noise estimator sees the CXR's latent, scaled by sqrt(alpha_bar_t) or plain: in training, sampling, files."""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run_script

from models import config, images, losses, pipelines, sampling, schedulers
from models.runtime.device import pick_device
from models.runtime.files import UserError
from models.training import interfaces, noise_estimator, states
from models.unet import ConditionalUNet

SHAPE = (2, 4, 8, 8)
PAIRINGS = (("scaled", "plain"), ("scaled", "scaled"), ("plain", "plain"))  # in training, in sampling
SMALL = dict(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))
METHODS = {
    "ldm": (
        schedulers.squared_cosine,
        lambda unet, *latents, **how: sampling.sample_bsldm(unet, latents[0], noise, **how),
    ),
    "lcm": (
        schedulers.scaled_linear,
        lambda unet, *latents, **how: sampling.sample_gllcm(unet, *latents, noise, **how),
    ),
}


def noise(name: str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(len(name)))


def latent(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("condition", schedulers.CONDITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_training_scales_the_cxr_or_leaves_it(method, condition):
    alpha_bar = METHODS[method][0]()
    batch = {"soft": latent(1), "cxr": latent(2)}
    seen = {}

    def unet(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    objective = losses.denoising_objective(alpha_bar, 0.1, condition=condition)
    objective({"unet": unet}, batch, interfaces.Noise(0, 0, 2, [0, 1], pick_device("cpu")))
    # the published line: noise (soft, CXR) with (eps, 0) at once
    factor = alpha_bar[seen["t"]].sqrt()[:, None, None, None] if condition == "scaled" else torch.ones(2, 1, 1, 1)
    assert factor.min() < 0.9 or condition == "plain"
    torch.testing.assert_close(seen["x"][:, 4:], factor * batch["cxr"])


@pytest.mark.parametrize("condition", schedulers.CONDITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_sampling_scales_the_cxr_or_leaves_it(method, condition):
    schedule, sample = METHODS[method]
    alpha_bar = schedule()
    cxr, masked_cxr = latent(2), latent(3)
    steps = []

    def unet(x, t):
        steps.append((int(t[0]), x[:, 4:]))
        return torch.zeros_like(x)

    sample(unet, cxr, masked_cxr, steps=5, condition=condition)
    expected = torch.cat([cxr] if method == "ldm" else [cxr, cxr, masked_cxr])
    assert len(steps) == 5
    for t, found in steps:
        factor = alpha_bar[t].sqrt() if condition == "scaled" else 1.0
        torch.testing.assert_close(found, factor * expected)


def test_the_papers_profiles_train_scaled_and_sample_plain():
    for profile in ("szch", "jsrt", "bsldm"):
        settings = config.parse("", (), ["--profile", profile])
        found = (settings.unet.condition, settings.ldm.condition, settings.lcm.condition)
        assert found == ("scaled", "plain", "plain"), profile


def test_a_file_says_how_its_network_was_trained(tmp_path):
    path = tmp_path / "unet.safetensors"
    for condition in schedulers.CONDITIONS:
        ConditionalUNet(**SMALL, condition=condition).save(path)
        assert ConditionalUNet.load(path).settings["condition"] == condition

    # a header of an earlier version, which trained on plain latents, and one that was tampered with
    for change, expected in ({}, "plain"), ({"condition": "twice"}, None):
        unet = ConditionalUNet(**SMALL)
        del unet.settings["condition"]
        unet.settings.update(change)
        unet.save(path)
        if expected:
            assert ConditionalUNet.load(path).settings["condition"] == expected
        else:
            with pytest.raises(UserError, match="condition='twice' is not one of: scaled, plain"):
                ConditionalUNet.load(path)

    # a released file has no header: the published pairing
    released = tmp_path / "released.pth"
    torch.save(ConditionalUNet(**SMALL).state_dict(), released)
    assert ConditionalUNet.load(released).settings["condition"] == "scaled"


@pytest.mark.parametrize("name", ["bsldm", "gllcm"])
def test_the_shipped_weights_are_sampled_as_they_were_trained(name):
    path = ROOT / "weights" / f"{name}.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["header"])
    unet = ConditionalUNet.load(path)
    method = pipelines.METHODS[name]
    found = method.load(ROOT / "weights" / "vqgan.safetensors", path)
    assert unet.settings["condition"] == found.options["condition"] == "plain"
    # files of before these settings: what they do not say is filled in
    if "condition" not in header["settings"]:
        assert "condition" not in header["works_with"]


def test_what_no_network_was_trained_for_is_refused(networks, tmp_path):
    def refusal(*arguments: str) -> str:
        settings = config.parse("", (), list(arguments))
        with pytest.raises(UserError) as error:
            noise_estimator.check_condition(settings, settings.lcm, "lcm")
        return str(error.value)

    assert "unet.prior=0.3 needs the CXR's latent as it is" in refusal("unet.prior=0.3")
    assert "say lcm.condition=plain" in refusal("unet.condition=plain", "lcm.condition=scaled")

    # of weights that are there, when they are loaded
    vqgan, _ = networks
    vqgan.save(tmp_path / "vqgan.safetensors")
    ConditionalUNet(**SMALL, condition="plain").save(tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="was trained on plain latents of the CXR"):
        pipelines.GLLCM.load(tmp_path / "vqgan.safetensors", tmp_path / "unet.safetensors", condition="scaled")


@pytest.mark.slow
def test_all_three_pairings_run_and_are_told_apart(chain, tmp_path):
    """Trained scaled by the script, sampled plain and scaled; trained plain, sampled plain. All differ."""
    data = [
        "data.root=runs/demo/data",
        "data.lists=runs/demo/lists",
        "vqgan.weights=runs/demo/vqgan/weights.safetensors",
    ]
    results = {}
    for trained in schedulers.CONDITIONS:
        common = [*TINY, *data, f"runs={tmp_path / trained}", "unet.prior=0", f"unet.condition={trained}"]
        common += ["ldm.epochs=1", "ldm.average=0"]
        ended, _, said = run_script("ldm_train.py", *common, folder=chain)
        assert ended == 0, said
        for sampled in schedulers.CONDITIONS[: 2 if trained == "scaled" else None]:
            output = tmp_path / f"{trained}_{sampled}"
            ended, _, said = run_script(
                "ldm_eval.py", *common, f"ldm.condition={sampled}", f"eval.output={output}", folder=chain
            )
            if (trained, sampled) == ("plain", "scaled"):
                assert ended == 2 and "was trained on plain latents" in said
                continue
            assert ended == 0, said
            assert json.loads((output / "summary.json").read_text())["settings"]["condition"] == sampled
            first = min(path for path in output.glob("*.png"))
            results[trained, sampled] = np.frombuffer(Path(first).read_bytes(), np.uint8)
    assert set(results) == set(PAIRINGS)
    assert len({result.tobytes() for result in results.values()}) == 3


def test_a_state_of_an_earlier_version_goes_on_as_it_was_trained(tmp_path):
    state = {**dict.fromkeys(states.STATE_ENTRIES, {}), "settings": {"unet.width": 32}}
    path = tmp_path / "state_1.pt"
    settings = {"unet.width": 32, "unet.condition": "plain", "ldm.condition": "plain"}
    states.check(state, path, settings, facts={}, fixed=("unet",))
    settings = {"unet.width": 32, "unet.condition": "scaled"}
    with pytest.raises(UserError, match="trained with unet.condition=plain, now it is scaled"):
        states.check(state, path, settings, facts={}, fixed=("unet",))


def test_the_experiments_table_has_a_row_for_each_pairing_and_the_spread_over_seeds(tmp_path):
    condition = pytest.importorskip("condition")  # tools/condition.py
    results = []
    for seed, psnr in enumerate((20.0, 22.0)):
        for trained, sampled, prior in condition.PAIRINGS:
            case = {"patients": "ct", "method": "BS-LDM", "seed": seed}
            case.update(trained=trained, sampled=sampled, prior=prior)
            row = {"PSNR": psnr, "PSNR_mean_right": psnr, "mean_off": 0.1, "BSR_two_sided": 50.0}
            results.append({**case, **row})
    assert {pairing[:2] for pairing in condition.PAIRINGS} == set(PAIRINGS)
    untouched = {"patients": "ct", "method": "untouched CXR", **row}
    lines = condition.table([*results, untouched]).splitlines()
    assert len(lines) == 2 + 1 + len(condition.PAIRINGS)
    assert lines[2].startswith("| untouched CXR") and "22.00" in lines[2]
    assert "scaled, then plain (published)" in lines[3] and "21.00 ± 1.41" in lines[3]
    of_ct = condition.tables(results).split("Patients from a chest CT")[1]
    assert "scaled in both" in of_ct and "scaled in both" not in condition.tables(results).split("Patients from")[0]

    # an image that is off by a constant has its mean put right
    (tmp_path / "out").mkdir()
    truth = np.full((32, 32), 0.5, np.float32)
    truth[8:16] = 0.25
    images.write(tmp_path / "BS" / "0.png", truth)
    images.write(tmp_path / "CXR" / "0.png", np.clip(truth + 0.2 * np.eye(32, dtype=np.float32), 0, 1))
    images.write(tmp_path / "out" / "0.png", truth + 0.1)
    found = condition.score(tmp_path / "out", tmp_path, ["0.png"])
    assert found["mean_off"] == pytest.approx(0.1, abs=0.004)
    assert found["PSNR"] == pytest.approx(20, abs=0.3) and found["PSNR_mean_right"] > 40

    # what has been scored is taken from its file, without a training
    options = argparse.Namespace(folder=tmp_path / "runs", epochs=8, offset=0.1)
    (options.folder / "ct" / "lists").mkdir(parents=True)
    (options.folder / "ct" / "lists" / "data_testset.txt").write_text("0.png\n")
    for trained, sampled in PAIRINGS:
        done = options.folder / "ct" / f"{trained}_0_0.1_1" / f"lcm_{sampled}_4.json"
        done.parent.mkdir(exist_ok=True)
        done.write_text(json.dumps(found))
    rows = list(condition.measure("lcm", "ct", 1, options))
    assert [(row["trained"], row["sampled"]) for row in rows] == list(PAIRINGS) and rows[0]["PSNR"] == found["PSNR"]
