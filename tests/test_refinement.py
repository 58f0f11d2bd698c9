"""The refinement of results: what is unlike lines, what goes back into the X-ray, and how its network is trained."""

import numpy as np
import pytest
import torch
from golden_draws import SHARED

from models import config, images, pipelines, refinement
from models.evaluation import insertion
from models.refinement import (
    ADDED,
    CORRECTED,
    FINDER_SIZE,
    LINE_SIZE,
    BoneRefiner,
    unlike_lines,
)
from models.runtime.files import UserError
from tools import refiner_estimates, train_refiner

WIDTHS = (8, 8)  # of a small refiner


@pytest.fixture
def refiner():
    torch.manual_seed(0)
    return BoneRefiner(WIDTHS, WIDTHS).eval()


def no_lungs(cxr: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(cxr, dtype=torch.bool)


def rib_and_nodule(angle: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A straight rib of 12 mm and a nodule of 15 mm on it, float32 (512, 512) each; 400 mm a side."""
    y, x = np.mgrid[:512, :512] * 400 / 512 - 200
    across = -x * np.sin(angle) + y * np.cos(angle)
    rib = 0.05 * np.exp(-((across / 6) ** 4))
    nodule = 0.03 * np.exp(-((x**2 + y**2) / 7.5**2))
    return rib.astype(np.float32), nodule.astype(np.float32)


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[None, None]


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3, 2.5])
def test_ribs_are_like_lines_and_a_nodule_on_one_is_not(angle):
    rib, nodule = rib_and_nodule(angle)
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))  # a line ends at the image's edge
    assert unlike_lines(as_batch(rib))[inside].abs().max() < 0.12 * rib.max()
    found = unlike_lines(as_batch(rib + nodule))[0, 0, LINE_SIZE // 2, LINE_SIZE // 2]
    assert found > 0.6 * nodule.max()


def test_what_is_unlike_lines_scales_with_the_bone_and_does_not_depend_on_its_batch():
    bones = torch.cat([as_batch(layer) for layer in rib_and_nodule()])
    together = unlike_lines(bones)
    assert together.shape == (2, 1, LINE_SIZE, LINE_SIZE)
    assert torch.allclose(together[1:], unlike_lines(bones[1:]), atol=1e-6)
    assert torch.allclose(unlike_lines(2 * bones), 2 * together, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 13])
def test_the_median_by_exchanges_is_the_median(count):
    samples = list(torch.rand(count, 5, 7, generator=torch.Generator().manual_seed(count)))
    expected = torch.stack(samples).median(0).values
    assert torch.equal(refinement._median(samples), expected)


def test_a_gate_of_one_and_nothing_else_gives_the_result_as_it_is(refiner):
    refiner.corrector.out.bias.data.view(3, -1)[2] = -100  # no share of what is unlike lines
    cxr = torch.rand(2, 1, 96, 64) * 2 - 1
    soft = (cxr - 0.1).clamp(-1, 1)
    assert torch.allclose(refiner.refine(cxr, soft, no_lungs(cxr)), soft, atol=1e-6)


def test_a_gate_of_zero_gives_its_share_of_the_xray_back_and_black_stays(refiner):
    bias = refiner.corrector.out.bias.data.view(3, -1)
    bias[0] = -100
    bias[2] = -100
    cxr = torch.rand(1, 1, 64, 64) * 2 - 1
    cxr[..., :8] = -1
    soft = torch.full_like(cxr, -0.5)
    refined = refiner.refine(cxr, soft, no_lungs(cxr))
    assert torch.allclose(refined[..., 8:], torch.lerp(soft, cxr, CORRECTED)[..., 8:], atol=1e-6)
    assert torch.equal(refined[..., :8], soft[..., :8])


def test_what_is_found_goes_back_in_the_lungs_alone(refiner):
    refiner.corrector.out.bias.data.view(3, -1)[2] = -100
    refiner.finder.out.bias.data.fill_(0.4)
    cxr = torch.zeros(1, 1, 64, 64)
    soft = torch.full_like(cxr, -0.2)  # nothing of this bone is unlike lines
    lungs = no_lungs(cxr)
    lungs[..., :32] = True
    change = images.to_unit(refiner.refine(cxr, soft, lungs)) - images.to_unit(soft)
    assert torch.allclose(change[..., :30], torch.tensor(0.4 * ADDED), atol=1e-6)
    assert torch.allclose(change[..., 34:], torch.tensor(0.0), atol=1e-6)


def test_the_finder_sees_what_the_corrector_says(refiner):
    torch.nn.init.normal_(refiner.finder.out.weight, std=0.1)
    cxr, bone, unlike, no_bone = torch.rand(4, 1, 1, 64, 64)
    found = refiner.find(cxr, bone, unlike, no_bone)
    assert found.shape == (1, 1, 64, 64)
    assert not torch.allclose(found, refiner.find(cxr, bone, unlike, 0 * no_bone), atol=1e-4)


@pytest.mark.parametrize("side", [256, 320])
def test_what_is_no_bone_at_any_size(refiner, side):
    for answer, value in zip(refiner.corrector.out.bias.data.view(3, -1), (0.5, 0.2, 1.5)):
        answer.fill_(value)  # the same everywhere: gate, addition, share
    cxr, bone = torch.rand(2, 1, 1, side, side)
    unlike = unlike_lines(bone)
    gate, share = 2 * torch.sigmoid(torch.tensor(0.5)), torch.sigmoid(torch.tensor(0.5))
    coarse = refinement.enlarge(refinement.enlarge(unlike, (256, 256)), (side, side))
    expected = (1 - gate) * bone - 0.2 * ADDED + share * coarse
    assert torch.allclose(refiner.no_bone(cxr, bone, unlike), expected, atol=1e-5)


def test_it_computes_in_float32_under_autocast(refiner):
    torch.nn.init.normal_(refiner.corrector.out.weight, std=0.1)
    cxr = torch.rand(1, 1, 64, 64) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        cast = refiner.refine(cxr, cxr - 0.1, no_lungs(cxr))
    assert cast.dtype == torch.float32
    assert torch.equal(cast, refiner.refine(cxr, cxr - 0.1, no_lungs(cxr)))


def test_its_weights_are_read_back_and_others_refused(refiner, networks, tmp_path):
    refiner.save(tmp_path / "refiner.safetensors")
    again = BoneRefiner.load(tmp_path / "refiner.safetensors")
    assert again.settings == {"widths": WIDTHS, "finder_widths": WIDTHS}
    for name, tensor in refiner.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    networks[1].save(tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match="holds the weights of ConditionalUNet, not of BoneRefiner"):
        BoneRefiner.load(tmp_path / "unet.safetensors")


def test_a_pipeline_refines_before_its_strength_counts(refiner, networks):
    cxr = torch.rand(1, 1, 64, 64) * 2 - 1
    options = {"steps": 2, "sampler": "ddim"}
    plain = pipelines.BSLDM(*networks, **options)
    refined = pipelines.BSLDM(*networks, refiner=refiner, strength=0.5, **options)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    expected = torch.lerp(cxr, refiner.refine(cxr, plain(cxr, ["a"]), torch.from_numpy(mask)[None, None]), 0.5)
    assert torch.allclose(refined(cxr, ["a"], [mask]), expected, atol=1e-6)
    assert refined.describe()["parameters"] - plain.describe()["parameters"] == sum(
        parameter.numel() for parameter in refiner.parameters()
    )


def test_the_setting_names_the_weights_and_a_missing_file_is_one_line():
    settings = config.parse("", (), ["--profile", "small"])
    assert pipelines.GLLCM.from_settings(settings).refiner is not None
    settings = config.parse("", (), ["--profile", "small", "eval.refiner=null"])
    assert pipelines.GLLCM.from_settings(settings).refiner is None
    settings = config.parse("", (), ["--profile", "small", "eval.refiner=nowhere.safetensors"])
    with pytest.raises(UserError, match="no weights at nowhere.safetensors"):
        pipelines.GLLCM.from_settings(settings)


@pytest.mark.parametrize("name", ["../refiner.safetensors", 3, ""])
def test_a_header_leads_to_a_file_beside_it_and_nowhere_else(name, tmp_path):
    path = tmp_path / "unet.safetensors"
    assert pipelines.Pipeline.find_refiner({"refiner": "a.safetensors"}, path) == tmp_path / "a.safetensors"
    assert pipelines.Pipeline.find_refiner({}, path) is None
    with pytest.raises(UserError, match="names no file as its refiner"):
        pipelines.Pipeline.find_refiner({"refiner": name}, path)


@pytest.mark.slow
@pytest.mark.parametrize("method", [pipelines.BSLDM, pipelines.GLLCM])
def test_the_shipped_refiner_keeps_more_of_real_nodules(method):
    if not (SHARED / "szch").is_dir():
        pytest.skip(f"no real pairs in {SHARED / 'szch'}")
    settings = config.parse("", (), ["--profile", "small", "eval.strength=1.0"])
    refining = method.from_settings(settings)
    plain = method.from_settings(settings, refiner_path=None)
    cxr, soft = (
        images.resize(images.read(SHARED / "szch" / folder / "0.png").pixels, (512, 512)) for folder in ("CXR", "BS")
    )
    mask = cxr > 0.15  # roughly: it only says where nodules may go
    nodules = insertion.read_nodules(SHARED / "nodules" / "nodules.npz")[:4]
    kept = []
    for pipeline in (plain, refining):
        rows = insertion.test(insertion.of_pipeline(pipeline, mask), cxr, "0", nodules, mask, soft)
        kept.append(insertion.summary(rows)["median"])
    assert kept[1] > kept[0] + 0.05


# --- its training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def estimates(tmp_path, monkeypatch):
    """Files of three small patients, one of them for validation."""
    monkeypatch.setattr(train_refiner, "SIZE", 16)
    monkeypatch.setattr(train_refiner, "FINDER_SIZE", 32)
    monkeypatch.setattr(train_refiner, "STEPS_AN_EPOCH", 2)
    monkeypatch.setattr(train_refiner, "BoneRefiner", lambda: BoneRefiner(WIDTHS, WIDTHS))
    g = np.random.default_rng(0)
    files = []
    for number in (0, 1, train_refiner.TEST_EVERY // 2):
        path = tmp_path / f"0_{number}.npz"
        np.savez(path, layers=g.random((3, 4, 32, 32)).astype(np.float16), mask=g.random((32, 32)) < 0.5)
        files.append(path)
    return files


def test_training_goes_on_to_the_bit(estimates, tmp_path, monkeypatch):
    whole = train_refiner.train(estimates, train_refiner.plan_of(4), tmp_path / "whole", None, device="cpu")
    # stopped after the first of two epochs
    stop = RuntimeError("killed")
    end_epoch = train_refiner.Trainer.end_epoch

    def killed(trainer):
        end_epoch(trainer)
        trainer.save()
        raise stop

    monkeypatch.setattr(train_refiner.Trainer, "end_epoch", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train_refiner.train(estimates, train_refiner.plan_of(4), tmp_path / "parts", None, device="cpu")
    monkeypatch.setattr(train_refiner.Trainer, "end_epoch", end_epoch)
    parts = train_refiner.train(estimates, train_refiner.plan_of(4), tmp_path / "parts", None, device="cpu")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name
    for network in (parts.corrector, parts.finder):
        assert any(not torch.equal(tensor, torch.zeros_like(tensor)) for tensor in network.out.parameters())

    with pytest.raises(UserError, match="batch"):  # other steps than those that were taken
        train_refiner.train(estimates, train_refiner.plan_of(4, batch=3), tmp_path / "parts", None, device="cpu")


class Answers:
    """A refiner that says that `share` of the estimated bone is none, and finds `found` (2 B, 1, S, S)."""

    def __init__(self, found: torch.Tensor, share: float = 0.0):
        self.found = found
        self.share = share

    def no_bone(self, cxr, bone, unlike):
        return self.share * bone

    def find(self, cxr, bone, unlike, no_bone):
        return self.found


def test_the_objective_charges_what_lesions_lose(estimates):
    batch = next(train_refiner.Samples(estimates, 2).batches([[0, 1]]))
    batch["mask"] = torch.ones_like(batch["mask"])
    cxr = torch.rand(2, 1, 1, 32, 32).expand(2, 2, 1, 32, 32)
    lesion = torch.zeros(2, 2, 1, 32, 32)
    lesion[:, 0, :, 10:20, 10:20] = 0.1
    with_lesion = cxr + lesion
    zero = torch.zeros_like(with_lesion)
    numbers = torch.from_numpy(train_refiner.number_lesions(lesion[0, 0, 0].numpy()))
    batch["numbers"] = numbers.expand(2, 32, 32)

    def charged(bone: torch.Tensor, found: torch.Tensor, share: float = 0.0) -> dict[str, float]:
        batch["layers"] = torch.cat([with_lesion, with_lesion, bone, zero], dim=2)
        _, logged = train_refiner.objective({"refiner": Answers(found.flatten(0, 1), share)}, batch, None)
        return {name: float(value) for name, value in logged.items()}

    # bone that takes nothing, all, and half of the lesion; nothing is found
    none = charged(zero, zero)
    assert (none["lesions"], none["kept"]) == pytest.approx((0, 1), abs=1e-6)
    assert none["missed"] == none["false"] == 0 and none["median"] == pytest.approx(1, abs=1e-5)
    every = charged(lesion, zero)
    assert every["lesions"] > 0 and every["kept"] == pytest.approx(0, abs=1e-5)
    assert every["slope"] == pytest.approx(1, abs=1e-4) and every["missed"] > 0 and every["false"] == 0
    half = charged(0.5 * lesion, zero)
    assert half["kept"] == pytest.approx(0.5, abs=1e-5) and half["median"] == pytest.approx(0.5, abs=1e-4)

    # what was taken is found, where it is and where there is nothing
    found = charged(lesion, lesion)
    assert (found["missed"], found["slope"]) == pytest.approx((0, 0), abs=1e-4) and found["false"] == 0
    # a corrector that gives half of it back leaves the rest to find: CORRECTED of its answer counts
    rest = charged(lesion, (1 - 0.5 * CORRECTED) * lesion, share=0.5)
    assert (rest["missed"], rest["slope"]) == pytest.approx((0, 0), abs=1e-4)
    everywhere = charged(lesion, lesion[:, :1].expand_as(lesion))
    assert everywhere["false"] == pytest.approx(every["missed"]) and everywhere["slope"] == pytest.approx(1, abs=1e-4)


def test_shares_kept_are_those_of_the_insertion_test_lesion_by_lesion():
    y, x = np.mgrid[:96, :96]
    disc = [0.05 * np.exp(-(((x - at) ** 2 + (y - 40) ** 2) / 30)) for at in (25, 70)]
    added = (disc[0] + disc[1]).astype(np.float32)
    numbers = train_refiner.number_lesions(added)
    assert numbers[40, 25] != numbers[40, 70] and set(np.unique(numbers)) == {0, numbers[40, 25], numbers[40, 70]}
    kept = 0.9 * disc[0] + 0.4 * disc[1] + 0.01  # a change of brightness all over is no loss
    tensors = [torch.from_numpy(array.astype(np.float32)) for array in (added, kept)]
    shares = train_refiner.shares_kept(*tensors, torch.from_numpy(numbers))
    assert sorted(shares.tolist()) == pytest.approx([0.4, 0.9], abs=0.01)
    assert insertion.slope(kept, disc[1]) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("side", [3, 17])
def test_the_local_mean_is_that_of_a_square(side):
    x = torch.rand(2, 1, 40, 24, generator=torch.Generator().manual_seed(side))
    square = torch.nn.functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
    assert torch.allclose(train_refiner._local_mean(x, side), square, atol=1e-6)


def test_specks_are_no_lesions():
    added = np.zeros((64, 64), np.float32)
    assert not train_refiner.number_lesions(added).any()
    added[10, 10] = 0.01
    assert not train_refiner.number_lesions(added).any()
    added[30:40, 30:40] = 0.01
    numbers = train_refiner.number_lesions(added)
    assert numbers[35, 35] > 0 and numbers[35, 45] == numbers[35, 35] and numbers[10, 10] == 0


def test_samples_are_functions_of_their_number(estimates):
    first, again = (train_refiner.Samples(estimates, 2).sample(5) for _ in range(2))
    other = train_refiner.Samples(estimates, 2).sample(6)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 4, 32, 32) and first[1].shape == (1, 32, 32)
    assert first[2] in train_refiner.LESION_WEIGHTS.values()


def test_estimates_of_another_size_are_refused(estimates, monkeypatch):
    monkeypatch.setattr(train_refiner, "FINDER_SIZE", 64)
    with pytest.raises(UserError, match="0_0.npz is 32 pixels wide, not 64"):
        train_refiner.Samples(estimates, 2)


def test_an_estimate_has_all_layers_of_one_patient(networks, tmp_path):
    g = np.random.default_rng(1)
    for name in ("cxr", "soft"):
        images.write(tmp_path / f"{name}.png", g.random((64, 64)).astype(np.float32), 16)
    images.write(tmp_path / "mask.png", np.ones((64, 64), np.float32), 8)
    pair = (tmp_path / "cxr.png", tmp_path / "soft.png", tmp_path / "mask.png")
    settings = config.parse("", (), ["--profile", "small"])
    method = pipelines.BSLDM(*networks, steps=1, sampler="ddim", image_size=64)
    cxr, soft, lungs = refiner_estimates.read_changed(pair, "0/a", settings.augment, 64)
    layers = refiner_estimates.estimate(cxr, soft, lungs, "0/a", method)
    assert layers.shape == (4, FINDER_SIZE, FINDER_SIZE) and layers.dtype == np.float16 and lungs.shape == (64, 64)
    assert np.array_equal(layers, refiner_estimates.estimate(cxr, soft, lungs, "0/a", method))
    unlike = unlike_lines(torch.from_numpy(layers[2].astype(np.float32))[None, None])
    enlarged = torch.nn.functional.interpolate(unlike, layers.shape[1:], mode="bilinear")[0, 0].numpy()
    assert np.abs(enlarged - layers[3]).max() < 2e-2


def test_drawn_nodules_are_compact_faint_in_the_lungs_and_alike_in_both_images():
    rib, _ = rib_and_nodule()
    soft = np.full_like(rib, 0.5)
    lungs = np.zeros(rib.shape, bool)
    lungs[100:400, 60:440] = True
    added = []
    for key in "abc":
        cxr, with_nodules = refiner_estimates.add_nodules(soft + rib, soft, lungs, key)
        assert np.allclose(cxr - (soft + rib), with_nodules - soft, atol=1e-6)
        added.append(with_nodules - soft)
    assert np.array_equal(added[0], refiner_estimates.add_nodules(soft + rib, soft, lungs, "a")[1] - soft)
    for image in added:
        changed = image > 0.003
        assert not changed[:60].any() and not changed[440:].any()  # a nodule of 3 cm reaches 20 pixels out of the lungs
        assert 0.002 < changed.mean() < 0.08 and 0.01 < image.max() < 0.2 and image.min() > -1e-6


def test_a_folder_without_twins_is_one_line(tmp_path):
    for folder in ("CXR", "BS"):
        (tmp_path / folder).mkdir()
        images.write(tmp_path / folder / "0.png", np.random.default_rng(0).random((64, 64)).astype(np.float32), 8)
    with pytest.raises(UserError, match="holds no twins"):
        refiner_estimates.estimates(tmp_path, tmp_path / "estimates")
