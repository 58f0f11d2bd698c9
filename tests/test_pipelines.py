"""The two methods from X-ray to soft tissue, on small random networks: batches, masks, fusion, what is written."""
import json

import numpy as np
import pytest
import torch
from golden_draws import SHARED, fill

from models import UserError, fusion, images, phantom, pipelines
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

SIZE = 64
VQGAN = dict(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)
UNET = dict(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))


@pytest.fixture(scope="module")
def networks():
    return fill(MLVQGAN(**VQGAN)), fill(ConditionalUNet(**UNET))


@pytest.fixture(scope="module")
def patients():
    """(cxr (3, 1, 64, 64) in [-1, 1], masks (3, 64, 64))."""
    phantoms = [phantom.simulate(seed, SIZE) for seed in range(3)]
    return torch.stack([images.to_network(p.cxr, SIZE) for p in phantoms]), np.stack([p.mask for p in phantoms])


def run(networks, patients, kind=pipelines.GLLCM, which=slice(None), names=("a", "b", "c"), **options):
    cxr, masks = patients
    options = {"steps": 3, **({"sampler": "ddim"} if kind is pipelines.BSLDM else {}), **options}
    return kind(*networks, **options)(cxr[which], list(names)[which], masks[which])


@pytest.mark.parametrize("kind", [pipelines.BSLDM, pipelines.GLLCM])
def test_a_result_depends_on_the_image_its_name_and_the_seed_alone(networks, patients, kind):
    together = run(networks, patients, kind)
    assert together.shape == (3, 1, SIZE, SIZE) and together.abs().max() <= 1 and torch.isfinite(together).all()
    alone = run(networks, patients, kind, which=slice(1, 2))
    assert (together[1:2] - alone).abs().mean() < 1e-3  # sums of another order, which the first step, at no signal, amplifies
    assert torch.equal(together, run(networks, patients, kind))
    assert not torch.allclose(together, run(networks, patients, kind, seed=1), atol=1e-2)
    assert not torch.allclose(together[:1], run(networks, patients, kind, which=slice(0, 1), names=("z",)), atol=1e-2)


def test_bsldm_with_all_samplers_and_gllcm_with_all_guidances_and_fusions(networks, patients):
    results = [run(networks, patients, pipelines.BSLDM, sampler=sampler) for sampler in ("ddpm", "ddim")]
    results += [run(networks, patients, guidance=guidance) for guidance in ("leg", "leg_shared", "cfg", "vanilla")]
    results += [run(networks, patients, fusion=fused) for fused in ("alpha", "autoencoder", "none")]
    for i, a in enumerate(results):
        assert torch.isfinite(a).all() and all(not torch.equal(a, b) for b in results[:i])


def test_outside_the_lungs_fusion_changes_nothing_and_black_stays_black(networks, patients):
    whole, fused = run(networks, patients, fusion="none"), run(networks, patients, fusion="alpha")
    masks = torch.from_numpy(patients[1])[:, None]
    assert torch.allclose(whole[~masks], fused[~masks], atol=1e-6) and not torch.allclose(whole[masks], fused[masks], atol=1e-3)
    black = patients[0].clone()
    black[:, :, :8] = -1
    assert (run(networks, (black, patients[1]))[:, :, :8] == -1).all()


def test_brightness_in_the_lungs_is_matched():
    global_soft, local_soft = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[:, :, 2:6, 1:5] = True
    matched = pipelines.match_brightness(global_soft, local_soft, masks)
    for g, m, local, inside in zip(global_soft, matched, local_soft, masks):
        assert float(m[inside].mean()) == pytest.approx(float(g[inside].mean()), abs=1e-6) and torch.equal(m[~inside], local[~inside])
    assert torch.equal(pipelines.match_brightness(global_soft, local_soft, masks & False), local_soft)


def test_the_default_fusion_is_the_poisson_fusion_of_the_two_paths(networks, patients, monkeypatch):
    seen = []
    monkeypatch.setattr(fusion, "fuse", lambda whole, local, mask, method, weight: seen.append((method, whole, local, mask)) or whole)
    run(networks, patients)
    assert [method for method, *_ in seen] == ["poisson"] * 3
    assert all(np.isclose(whole[mask].mean(), local[mask].mean(), atol=2e-2) for _, whole, local, mask in seen)


def test_lungs_are_found_where_no_masks_are_given(networks, patients):
    found = pipelines.GLLCM(*networks, steps=2)(patients[0], ["a", "b", "c"])
    assert torch.isfinite(found).all() and not torch.equal(found, pipelines.GLLCM(*networks, steps=2)(patients[0], ["a", "b", "c"], patients[1]))


def test_weights_that_do_not_belong_together_and_sizes_that_do_not_fit(networks, tmp_path):
    networks[0].save(tmp_path / "vqgan.safetensors")
    ConditionalUNet(in_channels=6, out_channels=6, **UNET).save(tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="takes 6 channels, but twice the latent .* is 8"):
        pipelines.BSLDM.load(tmp_path / "vqgan.safetensors", tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="no weights at .*none"):
        pipelines.GLLCM.load(tmp_path / "vqgan.safetensors", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="multiple of 8"):
        pipelines.BSLDM(*networks)(torch.zeros(1, 1, 60, 60), ["a"])


def test_attention_order_comes_with_the_method_for_plain_state_dicts(networks, tmp_path):
    networks[0].save(tmp_path / "vqgan.safetensors")
    torch.save(networks[1].state_dict(), tmp_path / "unet.pth")
    for kind, expected in ((pipelines.BSLDM, True), (pipelines.GLLCM, False)):
        assert kind.load(tmp_path / "vqgan.safetensors", tmp_path / "unet.pth").unet.settings["qkv_by_head"] is expected


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="the released-form checkpoints of ../shared/golden are not here")
def test_released_checkpoints_run():
    golden = SHARED / "golden"
    for kind, name, options in ((pipelines.BSLDM, "bsldm", {"sampler": "ddim"}), (pipelines.GLLCM, "gllcm", {})):
        method = kind.load(golden / "legacy_vqgan.pth", golden / f"legacy_unet_{name}.pth", steps=2, **options)
        assert torch.isfinite(method(torch.zeros(1, 1, 64, 64), ["a"])).all()


def test_what_is_written_has_the_inputs_size_and_depth(networks, tmp_path):
    patient = phantom.simulate(1, 96)
    for name, pixels, bits in (("square", patient.cxr, 8), ("wide", patient.cxr[10:80], 16)):
        images.write(tmp_path / "CXR" / f"{name}.png", pixels, bits)
        images.write(tmp_path / "BS" / f"{name}.png", pixels * 0.9, bits)
    cases = pipelines.find_cases(tmp_path / "CXR", tmp_path, None)
    assert [case.truth.parent.name for case in cases] == ["BS", "BS"] and all(case.mask is None for case in cases)
    method = pipelines.GLLCM(*networks, steps=2)
    assert pipelines.evaluate(method, cases, tmp_path / "out", size=SIZE, batch_size=2, about={"script": "x"}) == 0
    for name, shape, bits in (("square", (96, 96), 8), ("wide", (70, 96), 16)):
        result, panel = (images.read(tmp_path / "out" / folder / f"{name}.png") for folder in ("", "panels"))
        assert result.pixels.shape == shape and result.bits == bits and panel.pixels.shape == (shape[0], 4 * shape[1])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 2 and summary["seconds_per_image"].keys() == {"square", "wide"} and summary["script"] == "x"
    assert summary["seconds"] > 0 and not summary["seconds_after_warm_up"]  # there was one batch only
    assert 2 ** 27 < summary["peak_memory"] < 2 ** 36 and summary["peak_memory_of"] == "of the whole process"


def test_what_a_run_costs(networks):
    count = sum(p.numel() for network in networks for p in network.parameters())
    assert pipelines.BSLDM(*networks, steps=9).describe() == {"sampler": "DDPM", "steps": 9, "parameters": count}
    assert pipelines.BSLDM(*networks, steps=9, sampler="ddim").describe()["sampler"] == "DDIM"
    assert pipelines.GLLCM(*networks, steps=4).describe()["sampler"] == "LCM"
    found = pipelines.measured({"a": 9.0, "b": 1.0, "c": 3.0, "d": 2.0}, {"b": 1.0, "c": 3.0, "d": 2.0})
    assert found["seconds"] == 2 and found["seconds_after_warm_up"]


def test_dark_bones_are_noted(tmp_path, capsys):
    patient = phantom.simulate(3, 128)
    images.write(tmp_path / "right.png", patient.cxr)
    images.write(tmp_path / "wrong.png", 1 - patient.cxr)
    pipelines.find_cases(tmp_path, tmp_path, None)
    told = capsys.readouterr().err
    assert "bones look dark in" in told and "wrong.png" in told and "right.png" not in told


def test_bad_inputs_are_named_before_anything_runs(tmp_path):
    pixels = phantom.simulate(0, 64).cxr
    images.write(tmp_path / "CXR" / "a.png", pixels)
    with pytest.raises(UserError, match="neither an image, nor a folder"):
        pipelines.find_cases(tmp_path / "none.png", tmp_path, None)
    images.write(tmp_path / "masks" / "a.png", np.ones((32, 64)))
    with pytest.raises(UserError, match="64 x 32.*64 x 64"):
        pipelines.find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks")
    images.write(tmp_path / "CXR" / "b.png", np.full((64, 64), 0.5))
    with pytest.raises(UserError, match="b.png.*same"):
        pipelines.find_cases(tmp_path / "CXR" / "b.png", tmp_path, None)
    with pytest.raises(UserError, match="no mask for b"):
        images.write(tmp_path / "masks" / "a.png", np.ones((64, 64)))
        images.write(tmp_path / "CXR" / "b.png", pixels)
        pipelines.find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks")
    (tmp_path / "CXR" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="b.png"):
        pipelines.find_cases(tmp_path / "CXR", tmp_path, None)
