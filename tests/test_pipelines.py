"""The two methods from X-ray to soft tissue, on small random networks: batches, masks, fusion, what is written."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from golden_draws import SHARED

from models import blur, config, fusion, images, pipelines, residual, sampling
from models.runtime.files import UserError
from models.simulate import phantom
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pipelines.BSLDM, pipelines.GLLCM])
def test_a_result_depends_on_the_image_its_name_and_the_seed_alone(networks, patients, kind):
    together = run(networks, patients, kind)
    assert together.shape == (3, 1, SIZE, SIZE) and together.abs().max() <= 1 and torch.isfinite(together).all()
    alone = run(networks, patients, kind, which=slice(1, 2))
    assert (
        together[1:2] - alone
    ).abs().mean() < 1e-3  # sums of another order, which the first step, at no signal, amplifies
    assert torch.equal(together, run(networks, patients, kind))
    assert not torch.allclose(together, run(networks, patients, kind, seed=1), atol=1e-2)
    assert not torch.allclose(together[:1], run(networks, patients, kind, which=slice(0, 1), names=("z",)), atol=1e-2)


def test_networks_that_are_in_training_learn_nothing_from_an_xray(networks, patients):
    """A codebook in training changes with every latent; under torchrun it would wait for the other processes."""
    in_training = tuple(copy.deepcopy(network).train() for network in networks)
    result = run(in_training, patients, pipelines.BSLDM, which=slice(0, 1), names=("a",))
    assert torch.equal(result, run(networks, patients, pipelines.BSLDM, which=slice(0, 1), names=("a",)))
    for network, known in zip(in_training, networks):
        assert not network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, known.state_dict()[name]), name


@pytest.mark.slow
def test_bsldm_with_all_samplers_and_gllcm_with_all_guidances_and_fusions(networks, patients):
    results = [run(networks, patients, pipelines.BSLDM, sampler=sampler) for sampler in ("ddpm", "ddim", "dpmpp")]
    results += [run(networks, patients, guidance=guidance) for guidance in ("leg", "leg_shared", "cfg", "vanilla")]
    results += [run(networks, patients, fusion=fused) for fused in ("alpha", "autoencoder", "none")]
    for i, a in enumerate(results):
        assert torch.isfinite(a).all() and all(not torch.equal(a, b) for b in results[:i])


@pytest.mark.slow
def test_outside_the_lungs_fusion_changes_nothing_and_black_stays_black(networks, patients):
    whole, fused = run(networks, patients, fusion="none"), run(networks, patients, fusion="alpha")
    masks = torch.from_numpy(patients[1])[:, None]
    assert torch.allclose(whole[~masks], fused[~masks], atol=1e-6) and not torch.allclose(
        whole[masks], fused[masks], atol=1e-3
    )
    black = patients[0].clone()
    black[:, :, :8] = -1
    assert (run(networks, (black, patients[1]))[:, :, :8] == -1).all()


def test_brightness_in_the_lungs_is_matched():
    global_soft, local_soft = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[:, :, 2:6, 1:5] = True
    matched = pipelines.match_brightness(global_soft, local_soft, masks)
    for g, m, local, inside in zip(global_soft, matched, local_soft, masks):
        assert float(m[inside].mean()) == pytest.approx(float(g[inside].mean()), abs=1e-6) and torch.equal(
            m[~inside], local[~inside]
        )
    assert torch.equal(pipelines.match_brightness(global_soft, local_soft, masks & False), local_soft)


def test_the_default_fusion_is_the_poisson_fusion_of_the_two_paths(networks, patients, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fusion, "fuse", lambda whole, local, mask, method, blend: seen.append((method, whole, local, mask)) or whole
    )
    run(networks, patients)
    assert [method for method, *_ in seen] == ["poisson"] * 3
    assert all(np.isclose(whole[mask].mean(), local[mask].mean(), atol=2e-2) for _, whole, local, mask in seen)


@pytest.mark.slow
def test_lungs_are_found_where_no_masks_are_given(networks, patients):
    found = pipelines.GLLCM(*networks, steps=2)(patients[0], ["a", "b", "c"])
    assert torch.isfinite(found).all() and not torch.equal(
        found, pipelines.GLLCM(*networks, steps=2)(patients[0], ["a", "b", "c"], patients[1])
    )


def test_gllcm_finds_the_lungs_in_bf16_as_in_float32(networks, patients, monkeypatch):
    seen = []
    monkeypatch.setattr(sampling, "sample_gllcm", lambda unet, cxr, masked, draw, **_: (cxr, masked))
    monkeypatch.setattr(fusion, "fuse", lambda whole, local, mask, method, blend: seen.append(mask) or whole)
    for precision in ("float32", "bf16"):
        found = pipelines.GLLCM(*networks, precision=precision)(patients[0][:1], ["a"])
        assert torch.isfinite(found).all()
    assert np.array_equal(*seen) and seen[0].any()


def test_weights_that_do_not_belong_together_and_sizes_that_do_not_fit(networks, tmp_path):
    networks[0].save(tmp_path / "vqgan.safetensors")
    ConditionalUNet(6, 6, width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,)).save(
        tmp_path / "unet.safetensors"
    )
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


@pytest.mark.parametrize("method", [pipelines.BSLDM, pipelines.GLLCM])
def test_a_name_that_is_not_utf_8_is_a_name_like_others(networks, patients, method):
    name = os.fsdecode(b"bad\xff")
    strange, other = (run(networks, patients, method, which=slice(0, 1), names=[text]) for text in (name, "bad"))
    assert torch.isfinite(strange).all() and not torch.equal(strange, other)


def test_the_noise_of_a_name_is_what_it_always_was(networks):
    """Results of earlier versions come out again: the first number of a draw, computed by hand from the SHA-256."""
    found = pipelines.BSLDM(*networks, seed=3).draw(["scän"], torch.Size((1, 4, 2, 2)))("global/7")
    seed = int.from_bytes(hashlib.sha256("3/scän/global/7".encode()).digest()[:8], "big") // 2
    assert torch.equal(found[0], torch.randn((4, 2, 2), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    "method, options", [(pipelines.GLLCM, {"alpha": 1e38, "clip_local": 1e38}), (pipelines.BSLDM, {})]
)
def test_a_result_that_is_not_finite_is_refused_in_one_line(networks, patients, method, options, monkeypatch):
    if method is pipelines.BSLDM:
        monkeypatch.setattr(sampling, "sample_bsldm", lambda unet, cxr, draw, **_: cxr * torch.nan)
    with pytest.raises(UserError, match="the result of a, b, c has pixels that are not finite numbers") as refusal:
        run(networks, patients, method, **options)
    assert "\n" not in str(refusal.value)


def test_images_too_small_to_have_lungs_need_masks(networks, patients):
    small = torch.nn.functional.avg_pool2d(patients[0], 2)
    with pytest.raises(UserError, match="no lungs can be found in an X-ray of 32 x 32"):
        pipelines.GLLCM(*networks, steps=1)(small, ["a", "b", "c"])
    assert pipelines.GLLCM(*networks, steps=1)(small, ["a", "b", "c"], patients[1][:, ::2, ::2]).shape == (3, 1, 32, 32)


# --- What weights say of themselves -----------------------------------------------------------------------------------

WEIGHTS = Path(pipelines.__file__).resolve().parents[1] / "weights"
SHIPPED = {pipelines.BSLDM: ("bsldm", "ldm_eval.py"), pipelines.GLLCM: ("gllcm", "batch_lcm_eval.py")}


@pytest.mark.slow
@pytest.mark.parametrize("method", SHIPPED)
def test_one_picture_by_every_way(method, tmp_path, run_here):
    """The shipped weights by their paths, by the profile's name, by settings, and on the command line."""
    name, script = SHIPPED[method]
    ways = {
        "paths": method.load(WEIGHTS / "vqgan.safetensors", WEIGHTS / f"{name}.safetensors"),
        "profile": pipelines.load("small", name),
        "settings": method.from_settings(config.parse("", (), ["--profile", "small"])),
    }
    for way, found in ways.items():
        said = {key: value for key, value in vars(found).items() if isinstance(value, (int, float, str, dict))}
        assert (
            said["residual"] and said["strength"] == 0.9 and said["image_size"] == 512 and said["options"]["steps"] == 1
        ), way
        assert said == {key: vars(ways["paths"])[key] for key in said}, way
        assert found.refiner is not None, way

    scan = phantom.simulate(7, 160).cxr[:, 10:150]
    images.write(tmp_path / "scan.png", scan, 16)
    status, _, told = run_here(
        script, "--profile", "small", "eval.input=scan.png", "eval.output=out", "device=cpu", folder=tmp_path
    )
    assert status == 0, told
    pixels = images.read(tmp_path / "scan.png").pixels
    images.write(tmp_path / "notebook.png", ways["paths"].suppress_image(pixels, "scan"), 16)
    assert np.array_equal(
        images.read(tmp_path / "notebook.png").pixels, images.read(tmp_path / "out" / "scan.png").pixels
    )
    assert np.abs(images.read(tmp_path / "out" / "scan.png").pixels - pixels).max() > 0.02


@pytest.mark.slow
def test_keywords_replace_what_the_weights_say_and_without_a_header_the_papers_count(networks, tmp_path):
    gllcm = (WEIGHTS / "vqgan.safetensors", WEIGHTS / "gllcm.safetensors")
    changed = pipelines.GLLCM.load(*gllcm, steps=4, strength=1.0, fusion="none")
    assert (
        changed.options["steps"] == 4
        and changed.strength == 1
        and changed.fusion == "none"
        and changed.options["alpha"] == 0.75
    )
    assert pipelines.load("small", steps=3).options["steps"] == 3
    networks[0].save(tmp_path / "vqgan.safetensors")
    torch.save(networks[1].state_dict(), tmp_path / "unet.pth")
    released = pipelines.GLLCM.load(tmp_path / "vqgan.safetensors", tmp_path / "unet.pth")
    assert released.options == {} and not released.residual and released.strength == 1 and released.image_size == 1024
    with pytest.raises(UserError, match="unknown method 'lcm'; there are bsldm, gllcm"):
        pipelines.load("small", "lcm")
    with pytest.raises(TypeError, match="BSLDM has no keyword alpha"):
        pipelines.BSLDM(*networks, alpha=1.0)


@pytest.fixture
def pair(networks, tmp_path):
    """(path of the autoencoder, path of a GL-LCM noise estimator trained on it, the estimator)."""
    vqgan_path, unet_path = tmp_path / "vqgan.safetensors", tmp_path / "unet.safetensors"
    networks[0].save(vqgan_path)
    unet = ConditionalUNet.load(save(networks[1], unet_path))
    unet.notes = pipelines.GLLCM.notes(config.parse("", (), []), networks[0])
    return vqgan_path, save(unet, unet_path), unet


def save(network, path):
    network.save(path)
    return path


@pytest.mark.slow
def test_weights_of_the_other_method_or_schedule_are_refused(pair):
    vqgan_path, unet_path, unet = pair
    assert pipelines.GLLCM.load(vqgan_path, unet_path).options["steps"] == 50
    with pytest.raises(UserError, match=r"unet.safetensors holds weights of GL-LCM, not of BS-LDM; .* in ldm.weights="):
        pipelines.BSLDM.load(vqgan_path, unet_path)
    unet.notes["schedule"] = "squared_cosine"
    with pytest.raises(UserError, match="trained on the noise schedule squared_cosine, but GL-LCM has scaled_linear"):
        pipelines.GLLCM.load(vqgan_path, save(unet, unet_path))


@pytest.mark.slow
def test_a_prior_tells_the_schedule_without_further_notes(networks, tmp_path):
    """Weights of earlier versions: a network with a prior names its schedule among its settings; others may be of
    either method.
    """
    vqgan_path = save(networks[0], tmp_path / "vqgan.safetensors")
    small = dict(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))
    for prior in (0.3, 0.0):
        unet_path = save(
            ConditionalUNet(**small, prior=prior, schedule="squared_cosine"), tmp_path / "unet.safetensors"
        )
        assert pipelines.BSLDM.load(vqgan_path, unet_path).unet.prior == prior
        if prior:
            with pytest.raises(UserError, match="squared_cosine, but GL-LCM has scaled_linear"):
                pipelines.GLLCM.load(vqgan_path, unet_path)


def test_an_estimator_of_another_autoencoder_is_refused(pair, networks):
    vqgan_path, unet_path, _ = pair
    other = copy.deepcopy(networks[0])
    other.save(vqgan_path, epoch=7)  # the same tensors in another file
    pipelines.GLLCM.load(vqgan_path, unet_path)
    other.encoder.blocks[0].conv.bias[0] += 1e-3
    other.save(vqgan_path)
    with pytest.raises(
        UserError, match="unet.safetensors was trained on the latents of another autoencoder than .*vqgan.safetensors"
    ):
        pipelines.GLLCM.load(vqgan_path, unet_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": 51}, "does not say what GL-LCM works with .*steps"),
        ({"steps": None}, "does not say"),
        ({"guidance": "none"}, "guidance"),
        ({"alpha": float("nan")}, "alpha"),
        ({"strength": 7}, "strength"),
        ({"residual": [1]}, "residual"),
        ({"image_size": 10**9}, "does not say"),
        ({"power": 2}, "sets power, which this version of the project does not know"),
    ],
)
def test_settings_in_a_header_that_cannot_be_are_refused_in_one_line(pair, change, words):
    vqgan_path, unet_path, unet = pair
    unet.notes["works_with"].update(change)
    with pytest.raises(UserError, match=words) as refusal:
        pipelines.GLLCM.load(vqgan_path, save(unet, unet_path))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500 + len(str(unet_path))


@pytest.mark.slow
@pytest.mark.parametrize("found", [[], "text", 5, {}, {"steps": 4}])
def test_a_header_with_something_else_in_place_of_settings_is_refused(pair, found):
    vqgan_path, unet_path, unet = pair
    unet.notes["works_with"] = found
    with pytest.raises(UserError, match="does not say what GL-LCM works with"):
        pipelines.GLLCM.load(vqgan_path, save(unet, unet_path))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "golden").is_dir(), reason="the released-form checkpoints of ../shared/golden are not here"
)
def test_released_checkpoints_run():
    golden = SHARED / "golden"
    for kind, name, options in ((pipelines.BSLDM, "bsldm", {"sampler": "ddim"}), (pipelines.GLLCM, "gllcm", {})):
        method = kind.load(golden / "legacy_vqgan.pth", golden / f"legacy_unet_{name}.pth", steps=2, **options)
        assert torch.isfinite(method(torch.zeros(1, 1, 64, 64), ["a"])).all()


@pytest.mark.parametrize(
    "kind, options",
    [
        (pipelines.BSLDM, {}),
        (pipelines.GLLCM, {"fusion": "none"}),
        (pipelines.GLLCM, {"fusion": "autoencoder"}),
        (pipelines.GLLCM, {"fusion": "poisson"}),
    ],
)
def test_the_residual_form_keeps_what_the_autoencoder_loses(networks, patients, monkeypatch, kind, options):
    """A sampler that takes no bone away gives the CXR itself; without the residual, the autoencoder's copy of it."""
    monkeypatch.setattr(sampling, "sample_bsldm", lambda unet, cxr, draw, **_: cxr)
    monkeypatch.setattr(sampling, "sample_gllcm", lambda unet, cxr, masked, draw, **_: (cxr, masked))
    residual, plain = (run(networks, patients, kind, residual=residual, **options) for residual in (True, False))
    assert torch.allclose(residual, patients[0], atol=0.02 if options.get("fusion") == "poisson" else 1e-4)
    assert (plain - patients[0]).abs().mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pipelines.BSLDM, pipelines.GLLCM])
def test_strength_is_the_share_of_what_is_taken_away(networks, patients, kind):
    whole, half, none = (run(networks, patients, kind, strength=strength) for strength in (1.0, 0.5, 0.0))
    assert torch.equal(none, patients[0]) and not torch.allclose(whole, none, atol=0.1)
    assert torch.allclose(half, (whole + none) / 2, atol=1e-6)


def test_the_residual_form_adds_what_the_decoder_says_changed(networks, patients):
    cxr, _ = patients
    method = pipelines.BSLDM(*networks, steps=2, sampler="ddim", residual=True)
    with torch.no_grad():
        latent = method.encode(cxr)
        soft = sampling.sample_bsldm(
            method.unet, latent, method.draw(["a", "b", "c"], latent.shape), steps=2, sampler="ddim"
        )
        seen, suppressed = method.decode(latent), method.decode(soft)
        share = residual.bone_share(seen - suppressed, suppressed)
    assert torch.allclose(
        method(cxr, ["a", "b", "c"]), (suppressed + (1 - share) * (cxr - seen)).clamp(-1, 1), atol=1e-5
    )
    assert 0 <= share.min() and 0.2 < share.mean() < 0.8


def test_the_share_of_bone_in_the_finest_detail_is_that_of_its_energy():
    """Against SciPy's Gaussians; none where there is no bone, all where there is nothing else, four fifths where bone
    has twice the detail.
    """
    grain = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 64, 64)).astype(np.float32))
    bone, soft = 0.02 * grain[:1], 0.05 * grain[1:] + 0.3
    found = residual.bone_share(bone, soft)[0, 0].numpy()

    def energy(part):
        image = part[0, 0].numpy().astype(float)
        return scipy.ndimage.gaussian_filter(
            (image - scipy.ndimage.gaussian_filter(image, 1, mode="mirror")) ** 2, 2, mode="mirror"
        )

    assert np.allclose(found, energy(bone) / (energy(bone) + energy(soft)), atol=2e-3)
    assert not residual.bone_share(0 * bone, soft).any() and residual.bone_share(bone, 0 * soft).min() > 0.99
    assert torch.allclose(residual.bone_share(2 * soft, soft), torch.full_like(soft, 0.8), atol=1e-4)


def test_the_share_of_bone_is_float32_whatever_runs_around_it():
    """In bf16 it agreed to 36 dB."""
    bone, soft = torch.randn(2, 1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = residual.bone_share(bone, soft)
    assert torch.equal(found, residual.bone_share(bone, soft))


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_the_blur_is_torchvisions(sigma, separable):
    from torchvision.transforms.functional import gaussian_blur

    x = torch.randn(2, 1, 40, 33, generator=torch.Generator().manual_seed(0))
    side = 2 * round(4 * sigma) + 1
    assert torch.allclose(
        blur.gaussian_blur(x, sigma, separable), gaussian_blur(x, [side, side], [sigma, sigma]), atol=1e-6
    )


@pytest.mark.slow
def test_pipelines_import_and_use_neither_torchvision_nor_scipy_nor_the_compiler():
    names = "{'torchvision', 'scipy', 'torch._dynamo', 'matplotlib', 'lpips'}"
    code = (
        "import sys, numpy, torch, models.evaluation.run; from models import fusion, pipelines, vqgan; "
        "fusion.poisson(numpy.eye(99), numpy.ones((99, 99)), numpy.ones((99, 99), bool)); "
        "vqgan.Codebook(300, 4, 0.9, 0.25, False).eval().nearest(torch.rand(999, 4)); "
        f"print(sorted({names} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=WEIGHTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
