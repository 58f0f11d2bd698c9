"""The two methods from X-ray to soft tissue, on small random networks: batches, masks, fusion, what is written."""

import numpy as np
import pytest
import torch
from golden_draws import SHARED

from models import UserError, fusion, images, phantom, pipelines, sampling
from models.unet import ConditionalUNet

SIZE = 64
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
    results = [run(networks, patients, pipelines.BSLDM, sampler=sampler) for sampler in ("ddpm", "ddim", "dpmpp")]
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
    ConditionalUNet(6, 6, width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,)).save(tmp_path / "unet.safetensors")
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


@pytest.mark.parametrize("kind, options", [(pipelines.BSLDM, {}), (pipelines.GLLCM, {"fusion": "none"}), (pipelines.GLLCM, {"fusion": "autoencoder"}),
                                           (pipelines.GLLCM, {"fusion": "poisson"})])
def test_the_residual_form_keeps_what_the_autoencoder_loses(networks, patients, monkeypatch, kind, options):
    """A sampler that takes no bone away gives the CXR itself back; without the residual, the autoencoder's copy of it."""
    monkeypatch.setattr(sampling, "sample_bsldm", lambda unet, cxr, draw, **_: cxr)
    monkeypatch.setattr(sampling, "sample_gllcm", lambda unet, cxr, masked, draw, **_: (cxr, masked))
    residual, plain = (run(networks, patients, kind, residual=residual, **options) for residual in (True, False))
    assert torch.allclose(residual, patients[0], atol=0.02 if options.get("fusion") == "poisson" else 1e-4)
    assert (plain - patients[0]).abs().mean() > 0.05


def test_the_residual_form_adds_what_the_decoder_says_changed(networks, patients):
    cxr, _ = patients
    method = pipelines.BSLDM(*networks, steps=2, sampler="ddim", residual=True)
    with torch.no_grad():
        latent = method.encode(cxr)
        soft = sampling.sample_bsldm(method.unet, latent, method.draw(["a", "b", "c"], latent.shape), steps=2, sampler="ddim")
        expected = (cxr + method.decode(soft) - method.decode(latent)).clamp(-1, 1)
    assert torch.allclose(method(cxr, ["a", "b", "c"]), expected, atol=1e-5)
