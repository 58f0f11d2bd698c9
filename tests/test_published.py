"""What the published projects do, by the profiles, and the folders that their users have, as they lie."""

import io
import sys
import types
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run_script
from golden_draws import draw, fill
from PIL import Image
from safetensors.torch import load_file

from models import config, fusion, images, pipelines, scores, settings_file
from models.data import checks, convert, datasets, inputs, lists
from models.evaluation import results
from models.runtime import checkpoint
from models.runtime.files import UserError
from models.simulate import phantom
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN, PatchDiscriminator

SIZE = 64


def profile(name: str) -> config.Settings:
    return config.parse("", (), ["--profile", name])


@pytest.fixture(scope="module")
def patients():
    return [phantom.simulate(seed, SIZE) for seed in range(4)]


def write_pairs(folder, patients, mask_size=None, masked=False):
    """CXR/, BS/ and Mask/ of some patients as <number>.png."""
    for number, patient in enumerate(patients):
        images.write(folder / "CXR" / f"{number}.png", patient.cxr)
        images.write(folder / "BS" / f"{number}.png", patient.soft)
        mask = patient.mask.astype(np.float32)
        if mask_size:
            mask = images.resize_mask(patient.mask, mask_size).astype(np.float32)
        images.write(folder / "Mask" / f"{number}.png", mask)
        if masked:
            images.write(folder / "Masked_CXR" / f"{number}.png", patient.cxr * patient.mask)
            images.write(folder / "Masked_BS" / f"{number}.png", patient.soft * patient.mask)


# --- Profiles ---------------------------------------------------------------------------------------------------------


def test_the_profile_bsldm_trains_the_autoencoder_as_its_script():
    section = profile("bsldm").vqgan
    loss = section.loss
    assert (loss.pixel, loss.ms_ssim, loss.perceptual, loss.adversarial) == ("l1", 0, 0.001, 0.01)
    assert section.milestones == ()  # constant rates
    assert (section.learning_rate, section.discriminator_learning_rate) == (1e-4, 5e-4)
    assert (section.network.codes, section.masked, section.epochs) == (256, False, 1000)


def test_the_profile_gllcm_as_run_has_the_rates_that_its_script_really_had():
    """The script, played: two schedules that halve at their 200th step, both on the generator's optimiser, stepped
    after each batch."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    generator = torch.optim.Adam([parameter], lr=1e-4)
    discriminator = torch.optim.Adam([parameter], lr=5e-4)
    schedules = [torch.optim.lr_scheduler.MultiStepLR(generator, [200], gamma=0.5) for _ in range(2)]
    batches_of_two_epochs = 2 * 592 * 4 // 4
    for _ in range(batches_of_two_epochs):
        generator.step()
        for schedule in schedules:
            schedule.step()
    section = profile("gllcm_as_run").vqgan
    assert section.learning_rate == pytest.approx(generator.param_groups[0]["lr"], rel=1e-9)
    assert section.discriminator_learning_rate == discriminator.param_groups[0]["lr"]
    assert section.milestones == ()
    # everything else is the base
    base, other = (config.values(profile(name), ["vqgan", "lcm", "unet"]) for name in ("szch", "gllcm_as_run"))
    different = {key for key in base if base[key] != other[key] and not key.endswith("weights")}
    assert different == {"vqgan.learning_rate", "vqgan.milestones"}


def test_the_discriminator_starts_as_published():
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=32).requires_grad_(False)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 1000:
            assert abs(float(module.weight.std()) - 0.02) < 0.001 and abs(float(module.weight.mean())) < 0.001, name
        if isinstance(module, torch.nn.BatchNorm2d):
            assert abs(float(module.weight.mean()) - 1) < 0.01 and 0.012 < float(module.weight.std()) < 0.028, name


def test_source_marks_say_what_the_scripts_and_papers_have():
    marks = settings_file.read_meanings((ROOT / "config.yaml").read_text())
    assert "[G]" in marks["vqgan.loss.ms_ssim"] and "[B]" not in marks["vqgan.loss.ms_ssim"]
    assert "l1 [B, S]" in marks["vqgan.loss.pixel"]
    assert "[S]" not in marks["vqgan.milestones"] and "[S]" not in marks["vqgan.gamma"]
    assert "validation only" in marks["ldm.average"]
    assert marks["unet.condition"].endswith("scaled (times sqrt(alpha_bar_t)) [S], plain")
    for key in ("ldm.condition", "lcm.condition"):
        assert marks[key].endswith("plain [S], scaled")
    # what FACTS knows of each number: the words with the mark, or no mark at all where no script or paper has it
    known = {
        "vqgan.network.codes": "1024|codebook entries [G]; 256 in [B]",
        "vqgan.network.decay": "0.5|[S]; 0.99 is customary",
        "vqgan.loss.perceptual": "0.001|[S]",
        "vqgan.loss.adversarial": "0.01|[S]",
        "vqgan.masked": "True|[G]",
        "vqgan.epochs": "300|[G]; 1000 in [B]",
        "vqgan.learning_rate": "0.0001|generator [S]",
        "vqgan.discriminator_learning_rate": "0.0005|discriminator [S]",
        "vqgan.average": "0.0|",
        "ldm.sampler": "ddpm|ddpm [B]",
        "ldm.steps": "1000|[B]",
        "ldm.clip": "1.4|[B]",
        "ldm.clip_lag": "0|published numbers [S]",
        "ldm.offset_noise": "0.1|[B]",
        "ldm.learning_rate": "0.0002|[S]",
        "ldm.milestones": "(200, 400, 750, 1500)|[S]",
        "ldm.epsilon": "1e-08|",
        "lcm.guidance": "leg|leg [G], leg_shared, cfg [S]",
        "lcm.alpha": "3.0|[G]",
        "lcm.clip_global": "2.0|[S]",
        "lcm.clip_local": "3.5|[S]",
        "lcm.epsilon": "1e-06|[S]",
        "lcm.average": "0.0|weights that the script saves [S]",
        "lcm.milestones": "(300, 400, 500)|[S]",
        "augment.flip": "False|",
    }
    values = config.values(profile("szch"), [key.rsplit(".", 1)[0] for key in known])
    for key, expected in known.items():
        value, words = expected.split("|")
        assert str(values[key]) == value, key
        assert words in marks[key] if words else "[" not in marks[key], key


def test_the_demo_starts_from_the_shipped_autoencoder_and_gllcm_from_bsldm():
    settings = profile("demo")
    checkpoint.init_from(MLVQGAN(**asdict(settings.vqgan.network)), settings.vqgan.start)  # UserError if it did not fit
    assert settings.lcm.start == "runs/demo/ldm/weights.safetensors"
    assert settings.ldm.qkv_by_head == settings.lcm.qkv_by_head
    assert settings.unet.prior > 0 and settings.unet.condition == "plain" and settings.eval.residual


def test_the_readme_says_how_a_published_folder_is_used():
    text = (ROOT / "README.md").read_text()
    start = text.index("**A folder of the published projects**")
    commands = [line for line in text[start:].splitlines()[2:] if line.startswith("    ")][:5]
    assert sum("data.root=." in line for line in commands) == 4 and "cd BS-LDM" in commands[0]
    # numbers to publish: the setting and what bf16 costs, in one line
    assert any("precision=float32" in line and "bf16" in line and "44 dB" in line for line in text.splitlines())


def test_the_docs_have_the_table_of_the_three_pairings_with_its_command():
    text = (ROOT / "docs" / "condition.md").read_text()
    assert "    python tools/condition.py" in text and (ROOT / "tools" / "condition.py").is_file()
    for method in ("BS-LDM", "GL-LCM"):
        for pairing in ("scaled, then plain (published)", "scaled in both", "plain in both"):
            rows = [line for line in text.splitlines() if line.startswith(f"| {method} | {pairing} |")]
            assert len(rows) == 2, (method, pairing)  # two sets of patients
            assert all(row.count("±") == 4 for row in rows)


def test_the_fusion_ablation_is_not_said_to_be_the_papers():
    text = " ".join((ROOT / "docs" / "scores.md").read_text().split())
    assert "The fusion ablation is not:" in text and "worse than no fusion at all" in text

    # and why: the squared error of a mean is never above the larger of the two
    rng = np.random.default_rng(0)
    truth, whole, local = rng.uniform(0.2, 0.8, (3, 64, 64))
    mask = np.ones((64, 64), bool)
    fused = fusion.fuse(whole, local, mask, "alpha")
    assert scores.mse(truth, fused) < max(scores.mse(truth, whole), scores.mse(truth, local))


# --- Data as it lies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".IMG"])
def test_jsrt_as_kaggle_has_it(patients, tmp_path, suffix):
    source = tmp_path / "kaggle"
    for number, patient in enumerate(patients[:2]):
        name = f"JPCLN00{number + 1}"
        dark = 1 - patient.cxr
        if suffix == ".png":
            images.write(source / "JSRT" / "JSRT" / f"{name}.png", dark)
        else:
            (source / "JSRT").mkdir(parents=True, exist_ok=True)
            raw = images.resize(dark, (2048, 2048)) * 4095
            raw.astype(">u2").tofile(source / "JSRT" / f"{name}.IMG")
        images.write(source / "BSE_JSRT" / f"{name}.png", 1 - patient.soft)
        images.write(source / "augmented" / "source" / f"{name}.png", patient.cxr)  # Kaggle's copies: not read

    # as it lies it is no data folder, and the line says what to do
    with pytest.raises(UserError, match="holds JSRT with its soft tissue.*data.source=.*kaggle data.root="):
        lists.match(source)

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        convert.convert(source, tmp_path / "data", SIZE)
    assert "bones were dark and are bright now" in said.getvalue()
    pairs, lonely = lists.match(tmp_path / "data")
    assert sorted(pairs) == ["JPCLN001", "JPCLN002"] and not lonely
    for number, (cxr, soft, _) in enumerate(pairs.values()):
        # a 2048-pixel copy and back blurs a little
        assert np.abs(images.read(cxr).pixels - patients[number].cxr).mean() < 0.01
        assert np.abs(images.read(soft).pixels - patients[number].soft).mean() < 0.01


@pytest.mark.parametrize("mask_size", [(128, 128), (32, 32)])
def test_masks_of_another_size_than_their_cxr(patients, tmp_path, mask_size):
    write_pairs(tmp_path, patients[:1], mask_size)
    cxr, soft, mask = lists.find_pairs(tmp_path)["0"]
    assert checks.check_pair(cxr, soft, mask) == []
    found = images.read_mask_of(mask, (SIZE, SIZE))
    assert found.shape == (SIZE, SIZE) and np.mean(found != patients[0].mask) < 0.03
    masked = datasets.load((cxr, soft, mask), "masked_cxr", SIZE)[0].numpy()
    assert (masked[~found] == -1).all() and masked[found].mean() > -1

    # the published masks are squares whatever the CXR's shape: squeezed as it was
    tall = images.read_mask_of(mask, (2 * SIZE, SIZE))
    assert tall.shape == (2 * SIZE, SIZE) and np.mean(tall[::2] != found) < 0.05
    # another shape is another image's
    images.write(tmp_path / "wide.png", np.ones((20, 60), np.float32))
    with pytest.raises(UserError, match="wide.png is 60 x 20, but its X-ray 64 x 64"):
        images.read_mask_of(tmp_path / "wide.png", (SIZE, SIZE))


def test_lists_with_further_columns_and_lists_without_a_name(tmp_path):
    path = tmp_path / "train_set.txt"
    path.write_text("0.png\tBS/0.png\t0.93\n1.png \t x\n\n2\n")
    assert lists.list_path(tmp_path, "SZCH", "trainset") == path
    assert lists.read_list(path) == ["0", "1", "2"]
    with pytest.raises(UserError, match="cannot hold the name"):
        lists.write_list(tmp_path / "new.txt", ["a\tb.png"])

    # the test list without a name is found where the settings name the other
    write_pairs(tmp_path, [phantom.simulate(0, SIZE)])
    (tmp_path / "test_set.txt").write_text("0.png\t1\n")
    assert list(inputs.find_inputs(tmp_path / "SZCH_testset.txt", tmp_path)) == ["0"]
    # one with a name goes before it
    (tmp_path / "SZCH_trainset.txt").write_text("1\n")
    assert lists.list_path(tmp_path, "SZCH", "trainset").name == "SZCH_trainset.txt"


def test_masked_folders_are_said(patients, tmp_path, capsys):
    write_pairs(tmp_path, patients[:1])
    lists.match(tmp_path)
    assert "Masked" not in capsys.readouterr().err
    write_pairs(tmp_path, patients[:1], masked=True)
    lists.match(tmp_path)
    assert "Masked_CXR and Masked_BS in" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("nameless", [False, True])
def test_a_published_checkout_runs_where_it_lies(patients, tmp_path, nameless):
    """data.root=. data.lists=. data.name=SZCH, from the checks to the scores, on one epoch of tiny trainings."""
    write_pairs(tmp_path, patients, mask_size=(128, 128), masked=True)
    names = {"train": "0.png\n1.png\n2.png\t1\n", "test": "3.png\n"}
    for part, text in names.items():
        file = f"{part}_set.txt" if nameless else f"SZCH_{part}set.txt"
        (tmp_path / file).write_text(text)
    if not nameless:
        (tmp_path / "SZCH_valset.txt").write_text("2.png\n")
        (tmp_path / "SZCH_trainset.txt").write_text("0.png\n1.png\n")

    as_it_lies = [*TINY, "data.root=.", "data.lists=.", "data.name=SZCH", "vqgan.epochs=1", "lcm.epochs=1"]
    before = {path.name for path in tmp_path.iterdir()}
    for script in ("dataSegmentation.py", "vq-gan_train.py", "lcm_train.py", "batch_lcm_eval.py"):
        ended, shown, said = run_script(script, *as_it_lies, folder=tmp_path)
        assert ended == 0, f"{script}: {said}"
        assert script != "dataSegmentation.py" or "the lists are there already" in shown
    assert (tmp_path / "runs" / "demo" / "batch_lcm_eval" / "3.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {*before, "runs"}


# --- Results ----------------------------------------------------------------------------------------------------------


def test_a_trace_keeps_the_paths_and_the_steps_and_changes_nothing(networks, patients):
    cxr = torch.stack([images.to_network(patient.cxr, SIZE) for patient in patients[:2]])
    masks = np.stack([patient.mask for patient in patients[:2]])
    method = pipelines.GLLCM(*networks, steps=6, fusion="alpha")
    trace = pipelines.Trace(paths=True, snapshots=3)
    traced = method(cxr, ["a", "b"], masks, trace=trace)
    assert torch.equal(traced, method(cxr, ["a", "b"], masks))

    # the two paths are what the fusion fuses: their mean in the lungs, the global one outside
    assert trace.global_soft is not None and trace.local_soft is not None
    inside = torch.from_numpy(masks)[:, None]
    mean = (trace.global_soft + trace.local_soft) / 2
    torch.testing.assert_close(traced, torch.where(inside, mean, trace.global_soft), atol=1e-5, rtol=0)

    # of six steps every second, the last one among them, which is nearly the result
    assert list(trace.steps) == [2, 4, 6]
    assert torch.allclose(trace.steps[6], traced, atol=1e-2) and not torch.allclose(trace.steps[2], traced, atol=1e-2)

    # BS-LDM too; of one step there is one picture
    one = pipelines.Trace(snapshots=5)
    pipelines.BSLDM(*networks, steps=1, sampler="ddim")(cxr, ["a", "b"], trace=one)
    assert list(one.steps) == [1] and one.steps[1].shape == cxr.shape


def test_snapshots_are_a_row_and_an_animation(tmp_path):
    steps = {step: np.full((SIZE, SIZE), step / 10, np.float32) for step in (2, 4, 6, 8, 10)}
    results.write_snapshots(results.Output(tmp_path), "0", steps)
    row = images.read(tmp_path / "snapshots" / "0.png").pixels[-SIZE:]  # below the titles
    for place, pixels in enumerate(steps.values()):
        assert np.allclose(row[:, place * SIZE : (place + 1) * SIZE], pixels, atol=0.01)
    with Image.open(tmp_path / "snapshots" / "0.gif") as animation:
        assert animation.n_frames == 5
        for place, pixels in enumerate(steps.values()):
            animation.seek(place)
            assert abs(np.asarray(animation.convert("L")).mean() / 255 - pixels.mean()) < 0.01


@pytest.mark.slow
def test_paths_and_snapshots_lie_in_folders_of_their_own(chain, tmp_path):
    data = ["data.root=runs/demo/data", "data.lists=runs/demo/lists", f"eval.output={tmp_path / 'out'}"]
    asked = ["eval.paths=true", "eval.snapshots=5", "lcm.steps=10", "eval.batch_size=2"]
    ended, _, said = run_script("batch_lcm_eval.py", *TINY, *data, *asked, folder=chain)
    assert ended == 0, said
    names = sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    for folder in ("global", "local", "snapshots"):
        assert sorted(path.stem for path in (tmp_path / "out" / folder).glob("*.png")) == names
    for name in names:
        result, whole, local = (
            images.read(tmp_path / "out" / folder / f"{name}.png").pixels for folder in (".", "global", "local")
        )
        assert result.shape == whole.shape == local.shape and not np.array_equal(whole, local)
        with Image.open(tmp_path / "out" / "snapshots" / f"{name}.gif") as animation:
            assert animation.size == (SIZE, SIZE)

    # what is not there is refused before the work
    for script, words in (
        (["ldm_eval.py", "eval.paths=true"], "BS-LDM has one path"),
        (["batch_lcm_eval.py", "eval.snapshots=2", "eval.samples=2"], "say eval.samples=1"),
    ):
        ended, _, said = run_script(*script[:1], *TINY, *data, *script[1:], folder=chain)
        assert ended == 2 and words in said


# --- Cost and scores --------------------------------------------------------------------------------------------------


def test_parameters_count_the_lung_network_where_it_ran(networks):
    of_networks = sum(parameter.numel() for network in networks for parameter in network.parameters())
    of_lungs = sum(tensor.numel() for tensor in load_file(ROOT / "weights" / "lungs.safetensors").values())
    gllcm = pipelines.GLLCM(*networks)
    assert gllcm.describe(finds_lungs=True)["parameters"] == of_networks + of_lungs
    assert gllcm.describe()["parameters"] == of_networks
    assert pipelines.BSLDM(*networks).describe(finds_lungs=True)["parameters"] == of_networks


def test_the_published_count_is_explained():
    """U-Net and VQGAN, and the Dense-U-Net that found the published lungs."""
    with torch.device("meta"):
        ours = sum(p.numel() for network in (ConditionalUNet(), MLVQGAN()) for p in network.parameters())
    assert ours == 421_307_789 and ours + 15_544_770 == 436_852_559
    text = " ".join((ROOT / "docs" / "scores.md").read_text().split())
    assert "421,307,789" in text and "15,544,770" in text and "436.9 M" in text


def test_ssim_of_seven_and_mae_are_those_of_scikit_image():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(0)
    truth = images.resize(rng.uniform(0, 1, (9, 9)).astype(np.float32), (60, 48)).astype(np.float64)
    noisy = np.clip(truth + 0.05 * rng.standard_normal(truth.shape), 0, 1)
    assert scores.ssim_uniform(truth, noisy) == pytest.approx(
        structural_similarity(truth, noisy, data_range=1.0), abs=1e-9
    )
    assert scores.mae(truth, noisy) == pytest.approx(np.abs(truth - noisy).mean(), rel=1e-12)
    assert {"SSIM_uniform", "MAE"} <= {column.key for column in scores.BESIDE}


# --- Successors -------------------------------------------------------------------------------------------------------


def as_pickled_by_the_successor(network: torch.nn.Module, path) -> None:
    """Save an autoencoder as DeBoneDiT's script does: the whole module of MONAI's class VQVAE, not its tensors."""
    places = {
        "MLVQGAN": "generative.networks.nets.vqvae.VQVAE",
        "Stack": "generative.networks.nets.vqvae.Encoder",
        "ResidualUnit": "generative.networks.nets.vqvae.VQVAEResidualUnit",
        "Convolution": "monai.networks.blocks.convolutions.Convolution",
        "_Quantizer": "generative.networks.layers.vector_quantizer.VectorQuantizer",
        "Codebook": "generative.networks.layers.vector_quantizer.EMAQuantizer",
    }
    stand_ins: dict[str, type] = {}
    for place in places.values():
        module, name = place.rsplit(".", 1)
        stand_ins[place] = type(name, (torch.nn.Module,), {"__module__": module})

    def convert(ours: torch.nn.Module) -> torch.nn.Module:
        if isinstance(ours, torch.nn.ModuleList):
            return torch.nn.ModuleList(convert(child) for child in ours)
        if type(ours).__name__ not in places:
            return ours
        theirs = stand_ins[places[type(ours).__name__]]()
        for name, child in ours.named_children():
            theirs.add_module(name, convert(child))
        for name, tensor in ours.named_buffers(recurse=False):
            theirs.register_buffer(name, tensor)
        if type(ours).__name__ == "Codebook":
            theirs._decay, theirs._commitment_cost, theirs.num_embeddings = 0.5, 0.25, 1024
        return theirs

    with pytest.MonkeyPatch.context() as patch:
        for place, stand_in in stand_ins.items():
            names = place.split(".")
            for depth in range(1, len(names)):
                module = ".".join(names[:depth])
                if module not in sys.modules:
                    patch.setitem(sys.modules, module, types.ModuleType(module))
            patch.setattr(sys.modules[".".join(names[:-1])], names[-1], stand_in, raising=False)
        torch.save(convert(network), path)


def test_the_successors_autoencoder_loads(tmp_path):
    """DeBoneDiT pickles the whole VQVAE of 1024 codes and 4 channels; here a narrow one of that form."""
    ours = fill(MLVQGAN(channels=(8, 16, 32), residual_channels=24, codes=1024))
    as_pickled_by_the_successor(ours, tmp_path / "2025-01-01-SZCH-X-Rays-VQGAN1.pth")
    loaded = MLVQGAN.load(tmp_path / "2025-01-01-SZCH-X-Rays-VQGAN1.pth")
    assert loaded.settings == {**ours.settings, "decay": 0.5}
    image = draw("vqgan/image", (1, 1, 64, 64)).tanh()
    assert torch.equal(loaded(image)[0], ours(image)[0])
