"""The comparison methods: sizes, losses, plateaus, and that each one trains, stops, goes on and evaluates."""

import json
import shutil
import sys

import numpy as np
import pydicom
import pytest
import torch
import yaml
from conftest import ROOT, run_script
from image_files import make_dicom

from models import comparison, config, images, losses, pipelines, schedulers
from models.comparison import bs_diff, mca_net, resnet_bs, vae
from models.data import datasets, lists
from models.evaluation import operations
from models.runtime.files import UserError
from models.training import comparison as training
from models.training import interfaces, loop, rates
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

# published, or this project's autoencoder's (generator, discriminator)
COUNTS = {
    "gusarev": (1_096_289, None),
    "resnet_bs": (1_219_841, None),
    "mca_net": (23_134_176, 2_760_129),
    "kalisz": (193_377, None),
    "pix2pix": (54_408_385, 2_764_609),
    "plain_unet": (31_036_481, None),
    "vae": (38_343_945, None),
    "vq_vae": (38_329_605, None),
    "vqgan": (38_329_605, 2_763_585),
}
# the smallest form of each method, for images of 64 x 64; BS-Diff's attention would take most of the time there
SMALL = {
    "bs_diff": {"image_size": 32, "channels": [32, 32], "blocks": 1, "enhancer": [8, 8], "first_epochs": 1, "steps": 2},
    "gusarev": {"channels": [4, 4]},
    "kalisz": {"channels": [4, 4]},
    "mca_net": {"channels": [4, 4, 4, 4]},
    "pix2pix": {"channels": [4, 4, 4]},
    "plain_unet": {"channels": [4, 4]},
    "resnet_bs": {"channels": [4], "blocks": 1},
    "vae": {"channels": [4, 4], "blocks": 1},
    "vq_vae": {"channels": [4, 4], "blocks": 1},
    "vqgan": {"channels": [4, 4], "blocks": 1},
}


def parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def arguments(method: str, *further: str) -> list[str]:
    """The command line of a small training or evaluation of a method."""
    keys = [f"comparison.method={method}", f"comparison.{method}.image_size=64", f"comparison.{method}.ms_ssim=0"]
    for key, value in SMALL[method].items():
        keys.append(f"comparison.{method}.{key}={str(value).replace(' ', '')}")
    keys += [f"comparison.{method}.epochs=2", f"comparison.{method}.batch_size=2", "device=cpu", "train.sample_every=9"]
    return ["--profile", "demo", *keys, *further]


def small(method: str, *further: str) -> config.ComparisonMethod:
    """A method's section, small."""
    return getattr(config.parse("", ("comparison",), arguments(method, *further)).comparison, method)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with eight pairs: the soft tissue is a ramp, and the bone one bright bar."""
    folder = tmp_path_factory.mktemp("comparison")
    names = [f"{i}.png" for i in range(8)]
    rng = np.random.default_rng(0)
    for name in names:
        soft = np.clip(np.linspace(0.2, 0.6, 64)[None] + rng.normal(0, 0.01, (64, 64)), 0, 1)
        cxr = soft.copy()
        cxr[20:28] += 0.2
        images.write(folder / "runs/demo/data/BS" / name, soft)
        images.write(folder / "runs/demo/data/CXR" / name, cxr)
    (folder / "runs/demo/lists").mkdir()
    for part, chosen in (("train", names[:5]), ("val", names[5:6]), ("test", names[6:])):
        (folder / f"runs/demo/lists/data_{part}set.txt").write_text("\n".join(chosen))
    return folder


def test_every_method_of_the_room_is_tested_here():
    assert set(SMALL) == set(comparison.METHODS) == set(COUNTS) | {"bs_diff"}


@pytest.mark.parametrize("method", COUNTS)
def test_a_method_is_built_at_its_published_size(method):
    with torch.device("meta"):
        network = comparison.build(method)
        judge = network.discriminator(64)
    assert parameters(network) == COUNTS[method][0]
    assert (parameters(judge) if judge else None) == COUNTS[method][1]
    # config.yaml says the same as the class
    section = getattr(config.parse("", ("comparison",), []).comparison, method)
    with torch.device("meta"):
        assert training.build(method, section).settings == network.settings


def test_bs_diff_has_its_published_size():
    with torch.device("meta"):
        network = comparison.build("bs_diff")
    assert parameters(network.unet) == 220_237_762
    assert parameters(network.enhancer) == pytest.approx(34_449_889, rel=0.005)


@pytest.mark.parametrize("method", [name for name in SMALL if name != "bs_diff"])
def test_a_network_keeps_the_size_and_every_weight_gets_a_gradient(method):
    torch.manual_seed(0)
    network = training.build(method, small(method))
    noise = interfaces.Noise(0, 0, 2, [0, 1], torch.device("cpu"))
    cxr = 0.5 * noise.normal("cxr", 1, 64, 64)
    soft, latent = network(cxr, noise.normal)
    assert soft.shape == cxr.shape and latent.shape == ()
    (soft.square().mean() + latent).backward()
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert learnt and all(parameter.grad is not None for parameter in learnt)


@pytest.mark.slow
@pytest.mark.parametrize("method", comparison.METHODS)
def test_a_method_trains_stops_goes_on_and_evaluates(data, method, monkeypatch):
    """Stopped after its first steps and started again it ends with the weights of an unbroken run, to the bit."""
    for runs in ("whole", "stopped"):
        line = arguments(method, f"runs={runs}", "data.root=runs/demo/data", "data.lists=runs/demo/lists")
        if runs == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(loop.Trainer, "end_epoch", stop_after(loop.Trainer.end_epoch))
                with pytest.raises(Stopped):
                    run_script("comparison_train.py", *line, "train.save_every=0", folder=data)
        status, _, told = run_script("comparison_train.py", *line, folder=data)
        assert status == 0 and ("going on from" in told) == (runs == "stopped"), told
    weights = [data / runs / "comparison" / method / "weights.safetensors" for runs in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    line = [*arguments(method, "runs=whole", "data.root=runs/demo/data", "eval.input=runs/demo/lists/data_testset.txt")]
    status, out, told = run_script("comparison_eval.py", *line, folder=data)
    assert status == 0 and comparison.find(method).title in out, told
    folder = data / "whole" / "comparison_eval" / method
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == 2 and summary["operations"] > 0 and summary["group"] == comparison.find(method).group
    assert images.read(folder / "6.png").pixels.shape == (64, 64) and (folder / "panels" / "6.png").is_file()


class Stopped(BaseException):
    """As kill -9 would: nothing runs after it."""


def stop_after(end_epoch):
    def stop(trainer):
        if trainer.progress.step > 0:
            raise Stopped
        end_epoch(trainer)

    return stop


def test_processes_share_the_results_of_bs_diffs_first_stage(data, tmp_path, monkeypatch):
    """Each draws every second image and waits; then all read all, as one process draws them."""
    further = ["data.root=runs/demo/data", "data.lists=runs/demo/lists", "comparison.bs_diff.image_size=16"]
    line = arguments("bs_diff", *further)
    settings = config.parse("", ("comparison", "data", "train", "precision"), line)
    section = settings.comparison.bs_diff
    monkeypatch.chdir(data)
    pairs, _ = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    torch.manual_seed(0)
    network = training.build("bs_diff", section)

    def wait():
        raise Stopped

    def results(folder: str):
        run = training.Run(
            settings,
            section,
            (),
            tmp_path / folder,
            pairs,
            {},
            None,
            None,
            torch.device("cpu"),  # type: ignore
        )
        return training.first_results(pairs, run, network, "digest")

    alone = results("alone")
    monkeypatch.setattr(training.processes, "tidy", lambda *_: None)
    monkeypatch.setattr(training.processes, "world_size", lambda: 2)
    monkeypatch.setattr(training.processes, "rank", lambda: 1)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training.processes, "barrier", wait)
        results("shared")
    assert len(list((tmp_path / "shared").rglob("*.npy"))) == len(pairs) // 2
    monkeypatch.setattr(training.processes, "rank", lambda: 0)
    monkeypatch.setattr(training.processes, "barrier", lambda: None)
    shared = results("shared")
    assert all(torch.equal(shared[name]["cxr"], latents["cxr"]) for name, latents in alone.items())


@pytest.mark.parametrize(
    "method, changes, words",
    [
        ("pix2pix", ["comparison.pix2pix.image_size=60"], "is not a multiple of 8"),
        ("mca_net", ["comparison.mca_net.image_size=16"], "is too small for this network, which needs 32 pixels"),
        ("gusarev", ["comparison.gusarev.ms_ssim=1"], "is too small for MS-SSIM, which needs 161 pixels"),
        ("gusarev", ["comparison.gusarev.blocks=2"], "no network of comparison.gusarev: .*blocks"),
        ("gusarev", ["comparison.gusarev.mse=0"], "weighs no term that compares"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(tmp_path, method, changes, words):
    further = [f"runs={tmp_path}", "data.root=nowhere", *changes]
    settings = config.parse("", ("comparison",), arguments(method, *further))
    with pytest.raises(UserError, match=words):
        training.train(settings, ("comparison",))
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_named_in_one_line(data):
    status, _, told = run_script("comparison_eval.py", *arguments("vae", "runs=none"), folder=data)
    assert status == 2 and "comparison_train.py comparison.method=vae" in told
    assert len([line for line in told.strip().splitlines() if not line.startswith("note:")]) == 1


def test_a_method_is_evaluated_in_shares_on_dicom_and_on_inserted_nodules(data):
    """As the other evaluations: two shares and their merge leave what one run leaves."""
    for name in ("a", "b", "c"):
        levels = np.random.default_rng(ord(name)).integers(500, 3500, (64, 64)).astype(np.uint16)
        (data / "dicom").mkdir(exist_ok=True)
        make_dicom(data / "dicom" / f"{name}.dcm", levels, StudyInstanceUID="1.2", PatientID="a", PatientName="a")
    network = comparison.build("kalisz", channels=(4, 4))
    network.notes = {"image_size": 64}
    network.save(data / "kalisz.safetensors")
    hounsfield = np.full((8, 8, 8), 50, np.int16)
    np.savez(data / "nodules.npz", cube_hu=hounsfield, cube_mask=np.ones_like(hounsfield))

    def evaluate(output: str, *further: str) -> str:
        keys = [
            "comparison.weights=kalisz.safetensors",
            "eval.input=dicom",
            "eval.batch_size=2",
            f"eval.output={output}",
        ]
        line = ["--profile", "demo", "comparison.method=kalisz", *keys, "device=cpu", "eval.dicom=true", *further]
        status, out, told = run_script("comparison_eval.py", *line, folder=data)
        assert status == 0, told
        return out

    shown = evaluate("alone", "eval.nodules=nodules.npz", "eval.inserted=2")
    written = (data / "alone" / "insertion.txt").read_text()
    assert "Kalisz & Marczyk" in written and written in shown
    for shard in ("1/2", "2/2", "merge"):
        evaluate("shares", f"eval.shard={shard}")

    def results(output: str) -> dict[str, bytes]:
        files = [*(data / output).glob("*.png"), *(data / output).glob("panels/*.png")]
        found = {str(path.relative_to(data / output)): path.read_bytes() for path in files}
        for path in (data / output).glob("dicom/*.dcm"):
            dataset = pydicom.dcmread(path)  # as a whole it differs, since it says when it was made
            assert "Kalisz & Marczyk" in dataset.SoftwareVersions
            found[path.name] = dataset.PixelData
        return found

    assert len(results("alone")) == 9 and results("alone") == results("shares")
    summaries = [json.loads((data / output / "summary.json").read_text()) for output in ("alone", "shares")]
    assert summaries[0]["images"] == summaries[1]["images"] == 3
    assert summaries[0]["parameters"] == summaries[1]["parameters"]


def test_another_method_is_a_file_and_a_section():
    """The settings of the methods are those of the folder's files, and each is in config.yaml."""
    tree = yaml.safe_load((ROOT / "config.yaml").read_text())
    files = {path.stem for path in (ROOT / "models" / "comparison").glob("*.py")} - {"__init__", "base"}
    sections = {key for key, value in tree["comparison"].items() if isinstance(value, dict)}
    assert files == set(comparison.METHODS) == sections


TOY = '''"""One 3 x 3 convolution, whose result is what is taken away."""

from torch import nn

from .base import UNIVERSAL, Translator, no_latent_loss


class Toy(Translator):
    title = "A toy"
    group = UNIVERSAL

    def __init__(self, channels=(1,)):
        super().__init__()
        self.settings = dict(channels=channels)
        self.layer = nn.Conv2d(1, channels[0], 3, padding=1)

    def forward(self, cxr, draw=None):
        soft = cxr - self.layer(cxr)
        return soft, no_latent_loss(soft)


METHOD = Toy
'''
TOY_SECTION = """
  toy:                                # this test's
    image_size: 64                    # side of the images, pixels
    channels: [1]                     # width
    mse: 1.0                          # weight of the squared error
    epochs: 2                         # passes over the training images
    batch_size: 2                     # images per step
    learning_rate: 1.0e-2             # Adam
    milestones: []                    # epochs at which the learning rate falls
    gamma: 1.0                        # factor of each fall
    average: 0.0                      # decay of the weight average; 0: none
    start: null                       # weights that a new training starts from
"""


def test_another_method_trains_and_evaluates_from_its_file_and_its_section_alone(data, monkeypatch):
    copy = data / "copy"
    shutil.copytree(ROOT / "models", copy / "models", ignore=shutil.ignore_patterns("__pycache__"))
    scripts = ("comparison_train.py", "comparison_eval.py")
    for script in scripts:
        shutil.copy(ROOT / script, copy)
    (copy / "models" / "comparison" / "toy.py").write_text(TOY)
    written = (ROOT / "config.yaml").read_text()
    (copy / "config.yaml").write_text(written.replace("\n  vae: ", f"{TOY_SECTION}  vae: ", 1))

    # the settings are made of the folder's files when they are imported, so the copy is imported in their place
    for module in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(copy)
    for script in scripts:
        line = ["--profile", "demo", "comparison.method=toy", "device=cpu"]
        status, _, told = run_script(str(copy / script), *line, folder=data)
        assert status == 0, told
    for module in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[module]  # the copies; monkeypatch puts the others back

    summary = json.loads((data / "runs/demo/comparison_eval/toy/summary.json").read_text())
    assert (summary["method"], summary["group"], summary["images"]) == ("A toy", "Universal Method", 2)
    assert summary["parameters"] == 10 and summary["operations"] == 2 * 9 * 64 * 64


def test_the_terms_of_the_loss_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    result, target = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 1, 32, 32)))
    section = small("resnet_bs", "comparison.resnet_bs.mse=1", "comparison.resnet_bs.ssim=1")
    unit = training.compare(result, target, section, 1, None)
    signed = training.compare(result, target, section, 2, None)
    difference = (result - target).numpy()
    assert float(signed["l1"]) == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert float(unit["l1"]) == pytest.approx(np.abs(difference).mean() / 2, rel=1e-5)
    assert float(unit["mse"]) == pytest.approx((difference**2).mean() / 4, rel=1e-5)
    assert set(unit) == {"l1", "mse", "ssim"}


def test_ssim_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (40, 40))
    y = np.clip(x + rng.normal(0, 0.2, x.shape), 0, 1)
    _, full = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
    )
    pair = [torch.from_numpy(image)[None, None] for image in (x, y)]
    assert float(losses.ssim(*pair, 1.0)) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


def test_the_kl_divergence_is_that_of_two_gaussians():
    mean = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)
    log_variance = torch.tensor([0.3, -0.7]).view(1, 2, 1, 1)
    own = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).sum()
    assert float(vae.kl_divergence(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)


def test_a_resnet_that_changes_nothing_gives_the_cxr_back():
    """Saturation is undone, also for what it cuts off."""
    network = resnet_bs.ResNetBS(channels=(1,), blocks=0, saturate=0.05)
    with torch.no_grad():
        for conv in (network.first, network.body[0], network.last):
            conv.weight.zero_()
            conv.weight[..., 1, 1] = 1
            conv.bias.zero_()
        network.body[0].weight.zero_()
    cxr = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(network(cxr)[0], cxr, atol=1e-5)


def test_mca_net_takes_the_bone_from_the_cxr():
    network = mca_net.MCANet(channels=(4, 4, 4, 4), predicts="bone")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    cxr = torch.zeros(1, 1, 32, 32)
    assert torch.equal(network(cxr)[0], cxr - 1)  # an output of 0 is a bone of half the grey scale
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    gradient = mca_net.gradients(ramp)
    assert torch.allclose(gradient[0, 0, :, 1:-1], torch.ones(8, 6)) and not gradient[0, 1].any()


def test_the_walk_without_new_noise_returns_the_predicted_image():
    truth = torch.full((1, 1, 4, 4), 0.25)
    alpha_bar = schedulers.squared_cosine()

    def perfect(x, t):
        noisy = x[:, :1]
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return (noisy - a.sqrt() * truth) / (1 - a).sqrt()

    noise = comparison.base.image_noise(0, ["a"], truth)
    for steps in (1, 5):
        assert torch.allclose(bs_diff.sample_predicted(perfect, truth, noise, steps), truth, atol=1e-2)


def test_rates_fall_on_plateaus_as_torchs_do():
    values = [5.0, 4.0, 4.5, 4.2, 4.1, 4.3, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0)
    rows = []
    for epoch, value in enumerate(values, 1):
        rows.append({"epoch": epoch, "loss": 0.0, "validation_loss": value})
        scheduler.step(value)
        # torch falls after more than its patience, so 1 there is 2 here
        assert 0.5 ** rates.plateaus(rows, 2) == optimizer.param_groups[0]["lr"], epoch


def test_shifted_moves_by_whole_pixels_and_fills_with_black():
    image = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    moved = datasets.shifted(image, 0.2, "a")
    assert moved.shape == image.shape and torch.equal(datasets.shifted(image, 0.0, "a"), image)
    found = [
        (down, right)
        for down in range(-4, 5)
        for right in range(-4, 5)
        if torch.equal(
            moved[:, max(down, 0) : 20 + min(down, 0), max(right, 0) : 20 + min(right, 0)],
            image[:, max(-down, 0) : 20 - max(down, 0), max(-right, 0) : 20 - max(right, 0)],
        )
    ]
    assert len(found) == 1 and (moved == -1).any() == (found[0] != (0, 0))


def test_operations_are_counted_as_by_hand():
    """Two for each of 25 weights at each pixel, of 1 -> 4 and 4 -> 1 channels; the walk of GL-LCM has three a step."""
    network = comparison.build("gusarev", channels=(4,))
    assert operations.of_translator(network, 64) == 2 * 25 * (4 + 4) * 64 * 64
    vqgan = MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)
    unet = ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))
    totals = [operations.of_pipeline(pipelines.BSLDM(vqgan, unet, steps=steps), 64) for steps in (1, 2, 3)]
    assert totals[2] - totals[1] == totals[1] - totals[0] > 0
    assert operations.estimates(pipelines.GLLCM(vqgan, unet, steps=5)) == 15
