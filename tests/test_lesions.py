"""Drawn lesions: their shapes and places, twins with and without them, and the loss that charges bone estimated in
them."""

import csv
import dataclasses

import cv2
import numpy as np
import pytest
import torch
from conftest import run
from test_augment import augmentation

from models import config, images, losses, pipelines, schedulers
from models.data import datasets, lists
from models.runtime.files import UserError
from models.simulate import anatomy, ct, folder, lesions, opacities, phantom
from models.training import noise_estimator

SIDE = 40.0  # cm
SIZE = 200


@pytest.fixture
def chest():
    """(lungs, bone): one square lung under bars of bone."""
    lung = np.zeros((SIZE, SIZE), bool)
    lung[20:180, 20:180] = True
    return lung, np.tile((np.arange(SIZE) // 10 % 2 == 0)[:, None].astype(np.float32), (1, SIZE))


# --- Shapes and places ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", lesions.SHAPES)
def test_every_shape_is_about_as_wide_as_asked_and_as_thick_as_a_ball(shape):
    diameter, pixel = 3.0, 0.05
    pieces = [lesions.thickness(shape, diameter, pixel, np.random.default_rng(seed)) for seed in range(12)]
    for piece in pieces:
        assert piece.dtype == np.float32 and np.isfinite(piece).all() and piece.min() >= 0
        assert max(piece[0].max(), piece[-1].max(), piece[:, 0].max(), piece[:, -1].max()) < 0.02  # nothing is cut off
    areas = [(piece > 0.1).sum() * pixel**2 for piece in pieces]
    assert 0.5 * diameter < np.mean(2 * np.sqrt(np.array(areas) / np.pi)) < 1.5 * diameter
    assert 0.15 * diameter < np.mean([piece.max() for piece in pieces]) < 2.5 * diameter


def test_a_round_lesion_weighs_what_a_ball_of_its_size_and_density_weighs():
    diameter, pixel = 2.0, 0.04
    pieces = [lesions.thickness("round", diameter, pixel, np.random.default_rng(seed)) for seed in range(60)]
    masses = [piece.sum() * pixel**2 for piece in pieces]
    assert np.mean(masses) == pytest.approx(np.mean(lesions.DENSITY) * np.pi / 6 * diameter**3, rel=0.25)


def test_a_cavitated_lesion_is_thinner_inside_and_a_calcified_one_denser():
    def profile(shape):  # mean of the middle over that of the body
        pieces = [lesions.thickness(shape, 3.0, 0.05, np.random.default_rng(seed)) for seed in range(20)]
        half = len(pieces[0]) // 2
        middle = np.s_[half - 4 : half + 5, half - 4 : half + 5]
        return np.mean([piece[middle].mean() / piece[piece > 0.1].mean() for piece in pieces])

    assert profile("cavitated") < profile("round") < profile("calcified")


@pytest.mark.slow
def test_half_of_the_lesions_lie_over_bone_and_all_in_the_lungs(chest):
    lung, bone = chest
    found = [lesion for seed in range(60) for lesion in lesions.draw(lung, bone, seed, SIDE)[1]]
    assert all(lung[lesion.y, lesion.x] for lesion in found)
    assert all((bone[lesion.y, lesion.x] > 0) == lesion.over_bone for lesion in found)
    assert np.mean([lesion.over_bone for lesion in found]) == pytest.approx(lesions.OVER_BONE, abs=0.1)
    diameters = [lesion.diameter for lesion in found]
    assert lesions.DIAMETER[0] <= min(diameters) < 0.6 and 3 < max(diameters) <= lesions.DIAMETER[1]
    assert {lesion.shape for lesion in found} == lesions.SHAPES.keys()


def test_lesions_are_a_function_of_the_seed_and_add_where_they_are_said_to_be(chest):
    added, found = lesions.draw(*chest, 3, SIDE)
    again, _ = lesions.draw(*chest, 3, SIDE)
    np.testing.assert_array_equal(added, again)
    assert not np.array_equal(added, lesions.draw(*chest, 4, SIDE)[0])
    assert added.min() >= 0 and len(found) >= lesions.COUNT[0]


def test_a_lung_without_air_has_no_lesions(chest):
    added, found = lesions.draw(np.zeros_like(chest[0]), chest[1], 0, SIDE)
    assert not added.any() and found == []


def test_what_leaves_the_image_is_cut_off():
    total = np.zeros((20, 20), np.float32)
    lesions.add(total, np.ones((9, 9), np.float32), 1, 19)
    assert total.sum() == 6 * 5 and total[15:, :6].all()
    lesions.add(total, np.ones((9, 9), np.float32), -30, 5)
    assert total.sum() == 30


# --- Wide opacities ---------------------------------------------------------------------------------------------------


def two_lungs() -> np.ndarray:
    """Two lungs side by side, bool (SIZE, SIZE); the image is SIDE wide."""
    lung = np.zeros((SIZE, SIZE), bool)
    lung[20:160, 30:90] = True
    lung[20:160, 110:170] = True
    return lung


def test_fluid_lies_at_the_base_of_one_lung_and_rises_towards_the_chest_wall():
    lung = two_lungs()
    for seed in range(8):
        water = opacities.effusion(lung, np.random.default_rng(seed), SIDE / SIZE)
        assert water.dtype == np.float32 and water.min() >= 0
        left, right = water[:, :95].sum(), water[:, 105:].sum()
        assert min(left, right) < 1e-3 * max(left, right)
        wall, mediastinum = (35, 85) if left > right else (165, 115)  # columns
        assert np.all(np.diff(water[20:150, wall]) > -1e-4)  # thicker the lower
        deepest = water.max()
        assert opacities.EFFUSION_DEPTH[0] * 0.9 < deepest < opacities.EFFUSION_DEPTH[1] * 1.01
        surface = [np.argmax(water[:, column] > 0.05 * deepest) for column in (wall, mediastinum)]
        assert surface[0] < surface[1]


def test_a_plate_is_a_thin_band_low_in_a_lung():
    lung = two_lungs()
    pixel = SIDE / SIZE
    for seed in range(8):
        water = opacities.plate(lung, np.random.default_rng(seed), pixel)
        assert not water[~lung].any() and water.max() > 0
        rows, columns = np.nonzero(water > 0.2 * water.max())
        # as long as a plate may be, and covering far less than a square of that length
        length = np.hypot(np.ptp(rows), np.ptp(columns)) * pixel
        assert length <= opacities.PLATE_LENGTH[1] * 1.1
        assert len(rows) * pixel**2 < 0.8 * (length + 1)


def test_opacities_come_at_their_rates_and_a_patient_is_always_the_same():
    lung = two_lungs()
    drawn = [opacities.draw(lung, np.random.default_rng(seed), SIDE / SIZE) for seed in range(150)]
    expected = 1 - (1 - opacities.EFFUSIONS) * (1 - opacities.PLATES)
    assert np.mean([water.any() for water in drawn]) == pytest.approx(expected, abs=0.08)
    assert np.array_equal(drawn[7], opacities.draw(lung, np.random.default_rng(7), SIDE / SIZE))
    assert not opacities.draw(np.zeros_like(lung), np.random.default_rng(7), SIDE / SIZE).any()


def test_lesions_contain_the_wide_opacities(chest, monkeypatch):
    lung, bone = chest
    without = lesions.draw(lung, bone, 3, SIDE)[0]
    monkeypatch.setattr(opacities, "draw", lambda lung, random, pixel: np.full(lung.shape, 0.5, np.float32))
    assert np.allclose(lesions.draw(lung, bone, 3, SIDE)[0] - without, 0.5, atol=1e-6)


# --- Twins ------------------------------------------------------------------------------------------------------------


def test_a_patient_with_lesions_differs_from_his_twin_by_the_same_lesions_in_both_images():
    ill, normal = phantom.simulate(5, 128, True), phantom.simulate(5, 128)
    in_cxr, in_soft = ill.cxr - normal.cxr, ill.soft - normal.soft
    assert np.abs(in_soft).max() > 0.02
    assert np.corrcoef(in_cxr.ravel(), in_soft.ravel())[0, 1] > 0.8
    np.testing.assert_array_equal(ill.mask, normal.mask)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (5, 8))
def test_twins_differ_where_lesions_are_and_hardly_elsewhere_alike_in_both_images(seed):
    """Hardly, since scatter and tone curve are those of the whole image."""
    ill, normal = phantom.simulate_twins(seed, 128)
    _, bone, lungs = phantom.matter(anatomy.draw_anatomy(seed), 128)
    added, _ = lesions.draw(lungs > 0.5, bone, seed, phantom.SIDE)
    near = cv2.dilate((added > 0).astype(np.uint8), np.ones((7, 7))) > 0
    assert 0.01 < near.mean() < 0.3
    in_cxr = ill.cxr - normal.cxr
    in_soft = ill.soft - normal.soft
    for change in (in_cxr, in_soft):
        assert change[added > 0.3].mean() > 0.03
        assert np.abs(change[~near]).max() < 0.01
    assert in_cxr[added > 0.3].mean() == pytest.approx(in_soft[added > 0.3].mean(), rel=0.25)
    assert np.corrcoef(in_cxr[near], in_soft[near])[0, 1] > 0.8


def assert_same(one, other):
    for a, b in ((one.cxr, other.cxr), (one.soft, other.soft), (one.mask, other.mask)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_twins_are_what_is_simulated_with_and_without_lesions():
    ill, normal = phantom.simulate_twins(3, 96)
    assert_same(ill, phantom.simulate(3, 96, True))
    assert_same(normal, phantom.simulate(3, 96))


def test_lesions_are_put_into_pairs_of_a_ct_too(monkeypatch):
    index = np.arange(96)
    inside = np.hypot(index[:, None] - 48, index[None, :] - 48) < 30
    water = np.where(inside, 8, 20).astype(np.float32)  # cm, as the next two
    bone = (0.5 * (index[:, None] // 8 % 2) * inside).astype(np.float32)
    lung = np.where(inside, 15, 0).astype(np.float32)
    monkeypatch.setattr(ct, "integrals", lambda *_: (water, bone, lung))
    ill, normal = ct.simulate_twins(None, 1, 96)
    assert_same(ill, ct.simulate(None, 1, 96, True))
    assert_same(normal, ct.simulate(None, 1, 96))
    added, _ = lesions.draw(normal.mask, bone, 1, phantom.SIDE)
    thick = added > 0.5
    assert thick.any() and (ill.soft - normal.soft)[thick].mean() > 0.01 and (ill.cxr - normal.cxr)[thick].mean() > 0.01


def test_a_folder_with_lesions_holds_twins(tmp_path):
    names = folder.names(7, True)
    assert names == ["7", "7_normal"] and folder.names(7, False) == ["7"]
    folder.simulate_patient(tmp_path, 0, 96, True, folder.Job(7, None))
    for part in lists.FOLDERS:
        assert sorted(path.stem for path in (tmp_path / part).iterdir()) == names


def test_a_simulation_without_lesions_is_not_continued_with_them(tmp_path):
    settings = config.parse("", ("simulate",), ["simulate.count=1"]).simulate
    folder.simulate(tmp_path, settings, 64)
    with pytest.raises(UserError, match="lesions False, asked is lesions True"):
        folder.simulate(tmp_path, dataclasses.replace(settings, lesions=True), 64)


def test_twins_are_recognised_only_if_all_have_one():
    assert lists.with_twins(["1", "1_normal", "2_normal", "2"]) == ["1", "2"]
    assert lists.with_twins(["1", "2"]) == [] and lists.with_twins(["1", "1_normal", "2"]) == []


def test_batches_hold_each_patients_own_twin():
    latents = {
        name: {"cxr": torch.full((1, 2, 2), number), "soft": torch.full((1, 2, 2), -number)}
        for name, number in {"1": 1.0, "1_normal": 10.0, "2_normal": 20.0, "2": 2.0}.items()
    }
    source = datasets.LatentSource(latents)
    assert source.names == ["1 (cxr)", "2 (cxr)"]
    (batch,) = source.batches([[1, 0]])
    assert {name: stack[:, 0, 0, 0].tolist() for name, stack in batch.items()} == {
        "cxr": [2, 1],
        "soft": [-2, -1],
        "twin_cxr": [20, 10],
        "twin_soft": [-20, -10],
    }


def test_twins_are_augmented_alike(tmp_path):
    """The same images under both names stay the same; the next patient's change in another way."""
    pair = phantom.simulate(2, 64)
    for name in ("1", "1_normal", "2", "2_normal"):
        for kind, pixels in {"CXR": pair.cxr, "BS": pair.soft, "Mask": pair.mask.astype(np.float32)}.items():
            images.write(tmp_path / kind / f"{name}.png", pixels)
    changes = augmentation(flip=True, rotate=8, scale=0.1, contrast=0.2, gamma=0.2, noise=0.05, bone=0.5)
    latents = datasets.cached_latents(
        lambda batch: batch,
        "key",
        lists.find_pairs(tmp_path),
        32,
        True,
        tmp_path / "latents",
        4,
        augmentation=changes,
        version="0/0",
    )
    for variant in datasets.WHOLE + datasets.MASKED:
        assert torch.equal(latents["1"][variant], latents["1_normal"][variant])
        assert not torch.allclose(latents["1"][variant], latents["2"][variant], atol=0.01)


# --- The loss ---------------------------------------------------------------------------------------------------------


class Drawn:
    """The noise source of an objective, in a fixed order."""

    def __init__(self, count):
        self.count, self.random = count, torch.Generator().manual_seed(0)

    def normal(self, name, *shape):
        return torch.randn(self.count, *shape, generator=self.random)

    def integers(self, name, high):
        return torch.randint(high, (self.count,), generator=self.random)


def objective_on(answer, **options):
    """(what is minimised, what is logged) for two patients with a lesion of height 1 in the soft tissue and in the CXR.

    answer(z_t, cxr, t) -> the estimated clean latent.
    """
    alpha_bar = schedulers.scaled_linear()
    twin_soft = torch.zeros(2, 4, 16, 16)
    lesion = torch.zeros_like(twin_soft)
    lesion[..., 4:8, 8:12] = 1
    bone = torch.full_like(lesion, 0.5)
    batch = {"soft": lesion, "cxr": lesion + bone, "twin_soft": twin_soft, "twin_cxr": bone}

    def unet(x, t):
        z_t, cxr = x.chunk(2, 1)
        share = alpha_bar[t].view(-1, 1, 1, 1)
        return ((z_t - share.sqrt() * answer(z_t, cxr, t)) / (1 - share).sqrt()).repeat(1, 2, 1, 1)

    def snr_weight(t):  # makes the noise's squared error that of z_0
        return (1 - alpha_bar[t]) / alpha_bar[t]

    objective = losses.denoising_objective(alpha_bar, 0.0, snr_weight, condition="plain", **options)
    losses_of, logged = objective({"unet": unet}, batch, Drawn(2))
    return float(losses_of["unet"]), {name: float(value) for name, value in logged.items()}


def test_the_lesion_loss_is_what_of_the_lesion_was_taken_for_bone():
    share_of_lesion = 16 / 256
    loss, logged = objective_on(lambda z_t, cxr, t: cxr - 0.5, lesion_weight=3.0)
    assert loss == pytest.approx(0, abs=1e-6)  # the truth
    loss, logged = objective_on(lambda z_t, cxr, t: 0.7 * (cxr - 0.5), lesion_weight=3.0)
    assert logged["lesions"] == pytest.approx(0.3**2 * share_of_lesion, rel=1e-3)
    assert loss == pytest.approx(logged["loss"] + 3 * logged["lesions"], rel=1e-5)


@pytest.mark.parametrize("kept", (0.0, 0.5, 1.0))
def test_an_estimator_pays_for_the_share_of_the_lesion_that_it_ignores_and_nothing_else(kept):
    """The lesion is 1 high on 16 of 256 pixels; where `kept` is 0 the estimator has not seen it."""
    expected = (1 - kept) ** 2 * 16 / 256
    loss, logged = objective_on(lambda z_t, cxr, t: kept * (cxr - 0.5), lesion_weight=4.0, least_timestep=100)
    assert logged["lesions"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    # the patient's own error is the same, and that of the twin, who has no lesion, is 0
    assert loss == pytest.approx(expected / 2 + 4 * expected, rel=1e-3, abs=1e-6)


def some_latents(seed):
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_twins", (False, True))
def test_without_a_lesion_weight_the_loss_is_that_of_the_noise_to_the_bit(has_twins):
    alpha_bar = schedulers.squared_cosine()
    batch = {"soft": some_latents(0), "cxr": some_latents(1)}
    if has_twins:
        batch |= {"twin_soft": some_latents(2), "twin_cxr": some_latents(3)}

    def unet(x, t):
        return torch.tanh(x) * (1 + t / 1000)[:, None, None, None]

    def weight(t):
        return 1 + t / 500

    minimised, logged = losses.denoising_objective(alpha_bar, 0.1, weight, condition="plain")(
        {"unet": unet}, batch, Drawn(3)
    )

    # the published loss, of patients and twins as one batch
    noise = Drawn(3)
    t = noise.integers("timestep", 1000)
    eps = schedulers.offset_noise(noise.normal("noise", 4, 8, 8), noise.normal("offset", 4, 1, 1), 0.1)
    z_0 = batch["soft"]
    cxr = batch["cxr"]
    if has_twins:
        z_0 = torch.cat([z_0, batch["twin_soft"]])
        cxr = torch.cat([cxr, batch["twin_cxr"]])
        t = torch.cat([t, t])
        eps = torch.cat([eps, eps])
    z_t = schedulers.add_noise(z_0, eps, alpha_bar[t])
    expected = losses.noise_loss(unet(torch.cat([z_t, cxr], 1), t), eps, weight(t))
    assert torch.equal(minimised["unet"], expected) and torch.equal(logged["loss"], expected)


def test_bone_left_in_a_patient_and_his_twin_alike_costs_nothing_in_the_lesion_loss():
    _, logged = objective_on(lambda z_t, cxr, t: cxr, lesion_weight=3.0)
    assert logged["lesions"] == pytest.approx(0, abs=1e-6) and logged["loss"] == pytest.approx(0.25, rel=1e-3)


def test_timesteps_start_where_they_are_told_to():
    seen = []

    def answer(z_t, cxr, t):
        seen.append(t)
        return cxr

    objective_on(answer, least_timestep=990)
    assert seen[0].min() >= 990 and torch.equal(seen[0][:2], seen[0][2:])  # a patient and his twin are noised alike


# --- Settings and scripts ---------------------------------------------------------------------------------------------


def test_a_lesion_weight_needs_twins(tmp_path):
    for kind in lists.FOLDERS:
        images.write(tmp_path / kind / "1.png", np.zeros((64, 64), np.float32))
    lists.write_list(tmp_path / "data_trainset.txt", ["1.png"])
    settings = config.parse(
        "",
        ("data", "train"),
        [f"data.root={tmp_path}", f"data.lists={tmp_path}", "data.name=data", "train.lesion_weight=40"],
    )
    with pytest.raises(UserError, match="train.lesion_weight=40 needs a twin .*simulate.lesions"):
        noise_estimator.train(settings, settings.ldm, pipelines.BSLDM, masked=False, sampling={}, reads=())


@pytest.mark.slow
def test_patients_with_twins_through_the_scripts(chain):
    """Simulated, checked, split by patient, and trained on with the lesion loss."""
    places = ["data.root=runs/twins/data", "data.lists=runs/twins/lists"]
    run("dataSegmentation.py", *places, "simulate.lesions=true", "simulate.count=6", folder=chain)
    names = [path.stem for path in (chain / "runs" / "twins" / "data" / "CXR").iterdir()]
    assert len(names) == 12
    for part in lists.SETS:
        listed = lists.read_list(chain / "runs" / "twins" / "lists" / f"data_{part}.txt")
        assert listed and lists.with_twins(listed), f"{part} parts a patient from the twin"
    run(
        "ldm_train.py",
        *places,
        "runs=runs/twins",
        "vqgan.weights=runs/demo/vqgan/weights.safetensors",
        "train.lesion_weight=3",
        "train.least_timestep=500",
        folder=chain,
    )
    with (chain / "runs" / "twins" / "ldm" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    # With a prior an estimator begins with the CXR's latent, which holds most of a lesion, but not all of it.
    assert 0 < float(rows[0]["lesions"]) and 0 < float(rows[-1]["validation_lesions"])
