"""Schedules, steps and walks against the reference figures and against diffusers."""

import numpy as np
import pytest
import torch
from golden_draws import draw, figures, fill

from models import sampling, schedulers
from models.unet import ConditionalUNet

SHAPE = (1, 4, 4, 4)
TIMESTEPS = figures("lcm_timesteps.json")


@pytest.fixture(scope="module")
def unets():
    small = dict(width=32, multipliers=(1, 2), blocks=1, heads=4, attention=(2,))
    return {name: fill(ConditionalUNet(**small, qkv_by_head=name == "bsldm")) for name in ("bsldm", "gllcm")}


def test_schedules_are_the_published_ones():
    """Up to float32's rounding in a product of 1000 factors, which is another with other vector instructions."""
    for schedule, trajectory in (
        (schedulers.squared_cosine, "bsldm_trajectory.npz"),
        (schedulers.scaled_linear, "gllcm_trajectory.npz"),
    ):
        np.testing.assert_allclose(schedule(), figures(trajectory)["alphas_cumprod"], rtol=1e-5)


@pytest.mark.parametrize("steps", TIMESTEPS)
def test_lcm_timesteps(steps):
    assert schedulers.lcm_timesteps(int(steps)) == TIMESTEPS[steps]


def test_trailing_timesteps_start_at_the_noisiest():
    assert schedulers.trailing_timesteps(1000) == list(range(999, -1, -1))
    for steps in (1, 7, 50):
        found = schedulers.trailing_timesteps(steps)
        assert found[0] == 999 and len(set(found)) == steps and found == sorted(found, reverse=True)


def test_threshold_grows_with_the_position_and_lags_on_request():
    assert [schedulers.threshold(j, 1.4, 0.003) for j in (0, 1, 999)] == pytest.approx([1.4, 1.403, 4.397])
    assert [schedulers.threshold(j, 1.4, 0.003, lag=1) for j in (0, 1, 2)] == pytest.approx([1.4, 1.4, 1.403])
    walk = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(4), schedulers.LCM_STEPS)
    assert [step.position for step in walk] == pytest.approx([0, 12, 25, 37])  # the same bound at the same noise level


@pytest.mark.slow
def test_bsldm_walk(unets):
    final = sampling.sample_bsldm(
        unets["bsldm"], draw("bsldm/cxr_latent", SHAPE), lambda name: draw(f"bsldm/{name}", SHAPE), clip_lag=1
    )
    assert np.abs(final.numpy() - figures("bsldm_trajectory.npz")["final"]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("guidance", sampling.GUIDANCE)
def test_gllcm_walks(unets, guidance):
    found = sampling.sample_gllcm(
        unets["gllcm"],
        draw("gllcm/cxr_latent", SHAPE),
        draw("gllcm/masked_cxr_latent", SHAPE),
        lambda name: draw(f"gllcm/{name}", SHAPE),
        guidance=guidance,
    )
    expected = figures("gllcm_trajectory.npz")
    for path, latent in zip(("global", "local"), found):
        reference = expected[f"{guidance}/{path}"]
        assert np.abs(latent.numpy() - reference).max() < 1e-3 * np.abs(reference).max(), path


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddpm_and_ddim_steps_are_those_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    common = dict(beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="trailing")
    theirs = {
        "ddpm": diffusers.DDPMScheduler(variance_type="fixed_small", **common),
        "ddim": diffusers.DDIMScheduler(set_alpha_to_one=True, **common),
    }
    walk = schedulers.walk(schedulers.squared_cosine(), schedulers.trailing_timesteps(steps), 1000)
    z, eps = draw("z", (2, 4, 8, 8)), draw("eps", (2, 4, 8, 8))
    for name, scheduler in theirs.items():
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == [step.t for step in walk]
        for step in (walk[steps // 2], walk[-1]):
            z_0 = schedulers.predict_z_0(z, eps, step, bound=1e9)
            generator = torch.Generator().manual_seed(3)
            expected = scheduler.step(eps, step.t, z, generator=generator).prev_sample
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
            found = schedulers.DIFFUSION_SAMPLERS[name][0](z, z_0, step, noise)
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (name, step.t)


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_dpmpp_walk_is_that_of_diffusers(steps):
    """The whole walk, since each step knows the one before; the network is a fixed function of z and t."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    walk = schedulers.walk(schedulers.squared_cosine(), schedulers.trailing_timesteps(steps), 1000)
    assert scheduler.timesteps.tolist() == [step.t for step in walk]
    z = expected = draw("z", (2, 4, 8, 8))
    before = None
    for step in walk:
        expected = scheduler.step(torch.sin(expected + step.t), step.t, expected).prev_sample
        z_0 = schedulers.predict_z_0(z, torch.sin(z + step.t), step, bound=1e9)
        z, before = schedulers.dpmpp_step(z, z_0, step, None, before), (step, z_0)
        assert torch.allclose(z, expected, rtol=1e-3, atol=1e-3 * expected.abs().max()), step.t


@pytest.mark.parametrize("steps", [4, 50])
def test_lcm_steps_are_those_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    walk = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(steps), 50)
    assert scheduler.timesteps.tolist() == [step.t for step in walk]
    z = draw("z", (2, 4, 8, 8))
    for j, step in enumerate(walk):
        eps = draw(f"eps/{j}", z.shape)
        expected = scheduler.step(eps, step.t, z, generator=torch.Generator().manual_seed(j)).prev_sample
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(j))
        found = schedulers.lcm_step(z, schedulers.predict_z_0(z, eps, step, bound=1e9), step, noise)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), j
        z = expected


def test_noising_has_the_variance_of_the_schedule_and_offset_noise_its_mean():
    alpha_bar = schedulers.squared_cosine()[torch.tensor([10, 700])]
    noise, z_0 = draw("noise", (2, 4, 64, 64)), draw("z_0", (2, 4, 64, 64))
    z_t = schedulers.add_noise(z_0, noise, alpha_bar)
    assert torch.allclose(z_t[1], alpha_bar[1].sqrt() * z_0[1] + (1 - alpha_bar[1]).sqrt() * noise[1])
    offset = draw("offset", (2, 4, 1, 1))
    shifted = schedulers.offset_noise(noise, offset, 0.1)
    assert torch.allclose(shifted.mean((2, 3)) - noise.mean((2, 3)), 0.1 * offset[:, :, 0, 0], atol=1e-6)


def test_a_perfect_estimator_brings_back_the_truth():
    """With the true noise of z_0 as the estimate, every sampler ends at z_0."""
    truth = draw("truth", SHAPE).clamp(-1, 1)
    for table, sample in (
        (schedulers.squared_cosine(), sampling.sample_bsldm),
        (schedulers.scaled_linear(), sampling.sample_gllcm),
    ):

        def oracle(x, t, table=table):
            z = x[:, :4]
            eps = (z - table[t][:, None, None, None].sqrt() * truth) / (1 - table[t][:, None, None, None]).sqrt()
            return torch.cat([eps, torch.zeros_like(eps)], 1)

        if sample is sampling.sample_bsldm:
            results = [
                sample(oracle, truth, lambda n: draw(n, SHAPE), steps=steps, sampler=name)
                for name in schedulers.DIFFUSION_SAMPLERS
                for steps in (5, 40)
            ]
        else:
            results = [
                path
                for g in ("leg", "vanilla")
                for path in sample(oracle, truth, truth, lambda n: draw(n, SHAPE), guidance=g, steps=8)
            ]
        for result in results:
            assert (result - truth).abs().max() < 5e-3


@pytest.mark.slow
def test_an_images_walk_does_not_depend_on_its_batch(unets):
    cxr, masked = draw("two", (2, 4, 4, 4)), draw("masked", (2, 4, 4, 4))
    both = lambda name: draw(name, (2, 4, 4, 4))  # noqa: E731
    one = lambda name: draw(name, (2, 4, 4, 4))[1:]  # noqa: E731
    for guidance in ("cfg", "vanilla"):
        together = sampling.sample_gllcm(unets["gllcm"], cxr, masked, both, guidance=guidance, steps=5)
        alone = sampling.sample_gllcm(unets["gllcm"], cxr[1:], masked[1:], one, guidance=guidance, steps=5)
        assert all(torch.allclose(t[1:], a, atol=1e-4) for t, a in zip(together, alone))


@pytest.mark.parametrize(
    "call",
    [
        lambda unet: sampling.sample_bsldm(unet, torch.zeros(SHAPE), lambda n: torch.zeros(SHAPE), sampler="euler"),
        lambda unet: sampling.sample_bsldm(unet, torch.zeros(SHAPE), lambda n: torch.zeros(SHAPE), steps=1001),
        lambda unet: sampling.sample_gllcm(
            unet, torch.zeros(SHAPE), torch.zeros(SHAPE), lambda n: torch.zeros(SHAPE), steps=51
        ),
        lambda unet: sampling.sample_gllcm(
            unet, torch.zeros(SHAPE), torch.zeros(SHAPE), lambda n: torch.zeros(SHAPE), guidance="none"
        ),
    ],
)
def test_what_there_is_not_is_refused(unets, call):
    with pytest.raises(ValueError, match="unknown|steps must be"):
        call(unets["bsldm"])
