"""What an evaluation writes of its X-rays: results as their inputs are, several results of one image, DICOM; notes on
the inputs and refusals of them. test_results_folder.py is about the folder that it writes into."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from evaluating import SIZE, Function, evaluate, read_summary
from PIL import Image

from models import images, pipelines
from models.evaluation import reading, results, run
from models.evaluation.cases import find_cases
from models.evaluation.reading import Reader
from models.evaluation.results import software
from models.evaluation.summary import median_time, peak_memory
from models.runtime.files import UserError
from models.simulate import phantom


def check(cases, **keywords):
    """Read X-rays as a run does before its work."""
    Reader([[case] for case in cases], **keywords).preload()


@pytest.mark.slow
def test_what_is_written_has_the_inputs_size_and_depth(networks, tmp_path):
    patient = phantom.simulate(1, 96)
    for name, pixels, bits in (("square", patient.cxr, 8), ("wide", patient.cxr[10:80], 16)):
        images.write(tmp_path / "CXR" / f"{name}.png", pixels, bits)
        images.write(tmp_path / "BS" / f"{name}.png", pixels * 0.9, bits)
    cases = find_cases(tmp_path / "CXR", tmp_path, None)
    assert [case.target.parent.name for case in cases] == ["BS", "BS"]
    assert [case.mask for case in cases] == [None, None]
    method = pipelines.GLLCM(*networks, steps=2)
    evaluate(method, cases, tmp_path / "out", batch_size=2, about={"script": "x"})
    for name, shape, bits in (("square", (96, 96), 8), ("wide", (70, 96), 16)):
        result = images.read(tmp_path / "out" / f"{name}.png")
        assert result.pixels.shape == shape
        assert result.bits == bits
        panel = images.read(tmp_path / "out" / "panels" / f"{name}.png")
        _, width = shape
        assert panel.pixels.shape[1] == 4 * width  # CXR, result, truth, difference

    summary = read_summary(tmp_path / "out")
    assert summary["script"] == "x"
    assert summary["images"] == 2
    assert summary["seconds_per_image"].keys() == {"square", "wide"}
    assert summary["seconds"] > 0
    assert not summary["seconds_after_warm_up"]  # there was one batch only
    assert 2**27 < summary["peak_memory"] < 2**36
    assert summary["peak_memory_of"] == "of the whole process"


@pytest.mark.slow
@pytest.mark.parametrize("residual", [True, False])
def test_a_residual_result_keeps_the_detail_of_the_input(tmp_path, residual):
    """A method that darkens the upper half by 0.1: at four times its size the residual form is that to the bit depth,
    the other is blurred."""
    side = 4 * SIZE
    fine_detail = 0.05 * np.random.default_rng(0).standard_normal((side, side))
    pixels = np.clip(phantom.simulate(1, side).cxr + fine_detail, 0.15, 0.9)
    images.write(tmp_path / "scan.png", pixels, 16)

    def darker(cxr, names, masks, progress):
        cxr[:, :, : SIZE // 2] -= 0.2
        return cxr

    evaluate(Function(darker, residual), find_cases(tmp_path / "scan.png", tmp_path, None), tmp_path / "out")
    change = images.read(tmp_path / "out" / "scan.png").pixels - pixels
    # not beside the border between the halves, which is as sharp as the network's pixels
    upper = change[: side // 2 - 12]
    lower = change[side // 2 + 12 :]
    upper_is_exact = np.abs(upper + 0.1).mean() < 2e-4
    lower_is_exact = np.abs(lower).mean() < 2e-4
    assert upper_is_exact == residual
    assert lower_is_exact == residual


def test_what_a_run_costs(networks):
    count = sum(p.numel() for network in networks for p in network.parameters())
    assert pipelines.BSLDM(*networks, steps=9).describe() == {"sampler": "DDPM", "steps": 9, "parameters": count}
    assert pipelines.BSLDM(*networks, steps=9, sampler="ddim").describe()["sampler"] == "DDIM"
    assert pipelines.GLLCM(*networks, steps=4).describe()["sampler"] == "LCM"
    found = median_time([9.0, 1.0, 3.0, 2.0], [1.0, 3.0, 2.0]) | peak_memory()
    assert found["seconds"] == 2
    assert found["seconds_after_warm_up"]


@pytest.mark.slow
def test_several_results_of_an_image_give_their_mean_and_deviation(networks, tmp_path):
    """Whatever the batch size; the first result is the one that is drawn alone."""
    for seed, shape in ((1, slice(None)), (2, slice(10, 80))):
        images.write(tmp_path / "in" / f"{seed}.png", phantom.simulate(seed, SIZE).cxr[shape], 16)
    cases = find_cases(tmp_path / "in", tmp_path, None)
    method = pipelines.BSLDM(*networks, steps=2, sampler="ddim", seed=3)
    for batch_size in (1, 2, 8):
        evaluate(method, cases, tmp_path / f"out{batch_size}", batch_size=batch_size, samples=3)

    # the three samples of each image by the method itself, in [0, 1]
    samples = {}
    for case in cases:
        cxr = images.to_network(images.read(case.path).pixels, SIZE)[None]
        draw_names = (case.name, f"{case.name}/sample 1", f"{case.name}/sample 2")
        samples[case.name] = [images.to_unit(method(cxr, [name])[0, 0].double().numpy()) for name in draw_names]
    deviations = {name: np.std(several, axis=0, ddof=1) for name, several in samples.items()}
    assert deviations["1"].mean() > 1e-3

    for batch_size in (1, 2, 8):
        out = tmp_path / f"out{batch_size}"
        whites = read_summary(out)["deviation_white"]
        for name, several in samples.items():
            deviation = images.read(out / "deviation" / f"{name}.png")
            height, _ = deviation.pixels.shape
            top = (SIZE - height) // 2
            rows = slice(top, top + height)  # of the square, without its padding
            assert deviation.bits == 16
            assert deviation.pixels.max() == 1  # readable in a viewer
            assert np.allclose(whites[name] * deviation.pixels, deviations[name][rows], atol=2e-5)
            mean = images.read(out / f"{name}.png").pixels
            expected_mean = np.mean(several, axis=0)[rows]
            assert np.allclose(mean, np.clip(expected_mean, 0, 1), atol=2e-5)
            overlay = images.read(out / "overlays" / f"{name}.png")
            assert overlay.pixels.std() > 0.05
    mean_deviation = read_summary(tmp_path / "out8")["mean_deviation"]
    assert mean_deviation["1"] == pytest.approx(deviations["1"].mean(), rel=1e-3)

    evaluate(method, cases, tmp_path / "alone", batch_size=2)
    assert not (tmp_path / "alone" / "deviation").exists()
    alone = images.read(tmp_path / "alone" / "1.png").pixels
    assert np.allclose(alone, np.clip(samples["1"][0], 0, 1), atol=2e-5)


@pytest.mark.slow
def test_masks_of_some_images_only_and_a_result_that_does_not_depend_on_its_batch(networks, tmp_path):
    for seed in (1, 2):
        images.write(tmp_path / "CXR" / f"{seed}.png", phantom.simulate(seed, SIZE).cxr)
    images.write(tmp_path / "Mask" / "1.png", np.eye(SIZE)[::-1] + np.eye(SIZE))
    cases = find_cases(tmp_path / "CXR", tmp_path, None)
    assert [case.mask is None for case in cases] == [False, True]
    for batch_size in (1, 2):
        method = pipelines.GLLCM(*networks, steps=2, fusion="alpha")
        evaluate(method, cases, tmp_path / f"out{batch_size}", batch_size=batch_size)
    for name in ("1.png", "2.png"):
        in_batches_of_1 = images.read(tmp_path / "out1" / name).pixels
        in_batches_of_2 = images.read(tmp_path / "out2" / name).pixels
        assert np.abs(in_batches_of_1 - in_batches_of_2).max() <= 1.01 / 255


def test_dicom_in_dicom_out_on_request(networks, tmp_path):
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / "scan.dcm")
    before = (tmp_path / "scan.dcm").read_bytes()
    method = pipelines.BSLDM(*networks, steps=1, sampler="ddim")
    cases = find_cases(tmp_path / "scan.dcm", tmp_path, None)
    evaluate(method, cases, tmp_path / "out", dicom=True)
    original = images.read(tmp_path / "scan.dcm")
    result = images.read(tmp_path / "out" / "dicom" / "scan.dcm")
    assert result.bits == original.bits
    assert result.pixels.shape == original.pixels.shape

    # the same as in the PNG, but that what the window cuts keeps its values, so that the window can be opened
    in_window = (original.pixels > 0) & (original.pixels < 1)
    assert in_window.mean() > 0.9
    window_width = pydicom.dcmread(tmp_path / "scan.dcm").WindowWidth
    png = images.read(tmp_path / "out" / "scan.png").pixels
    assert np.allclose(result.pixels[in_window], png[in_window], atol=0.51 / (window_width - 1))
    dataset = pydicom.dcmread(tmp_path / "out" / "dicom" / "scan.dcm")
    assert dataset.SeriesDescription == "bone-suppressed, not for diagnosis"
    assert (tmp_path / "scan.dcm").read_bytes() == before
    evaluate(method, cases, tmp_path / "plain")
    assert not (tmp_path / "plain" / "dicom").exists()
    broken = pydicom.dcmread(tmp_path / "scan.dcm")
    del broken.SOPInstanceUID
    broken.save_as(tmp_path / "broken.dcm")
    cases = find_cases(tmp_path / "broken.dcm", tmp_path, None)
    run.require_dicom(cases)
    with pytest.raises(UserError, match="broken.dcm has no SOPInstanceUID"):
        check(cases, dicom=True)  # before anything runs


@pytest.mark.slow
def test_few_bits_stay_few_and_the_range_can_be_forced(networks, tmp_path, capsys):
    """12 bits in 16, as research exports are: said once for all images, and the results are 12 bits in 16 too."""
    method = pipelines.BSLDM(*networks, steps=1, sampler="ddim")
    (tmp_path / "in").mkdir()
    for seed in range(3):
        levels = np.rint(phantom.simulate(seed, SIZE).cxr * 4095).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / "in" / f"{seed}.png")
    (tmp_path / "in" / "other.heic").touch()
    for limits, name in (("auto", "auto"), ((0, 4095), "same"), ("container", "whole")):
        cases = find_cases(tmp_path / "in", tmp_path, None, limits)
        evaluate(method, cases, tmp_path / name, batch_size=2)
        notes = [line for line in capsys.readouterr().err.splitlines() if "read as" in line]
        if limits == "auto":
            (note,) = notes
            assert "0.png and 2 more: no grey value is above 4095 of 65535" in note
        else:
            assert not notes

    def levels_of(name: str) -> np.ndarray:
        return cv2.imread(str(tmp_path / name / "1.png"), cv2.IMREAD_UNCHANGED)

    assert levels_of("auto").dtype == np.uint16
    assert 1000 < levels_of("auto").max() <= 4095
    assert np.array_equal(levels_of("auto"), levels_of("same"))
    assert not np.array_equal(levels_of("auto"), levels_of("whole"))


def test_images_of_other_kinds_in_a_folder_are_named(tmp_path, capsys):
    images.write(tmp_path / "a.png", phantom.simulate(0, SIZE).cxr)
    (tmp_path / "other.heic").touch()
    find_cases(tmp_path, tmp_path, None)
    assert "other.heic" in capsys.readouterr().err


def test_software_of_dicom_results_names_what_changes_them_and_no_places():
    about = {
        "method": "GL-LCM",
        "weights": {"a.safetensors": "12ab"},
        "settings": {"steps": 1, "eval": {"input": "x", "seed": 0}},
    }
    first = software(about)
    assert first[0] == "GL-LCM" and "weights 12ab" in first
    elsewhere = {**about, "settings": {"steps": 1, "eval": {"input": "y", "seed": 0}}}
    otherwise = {**about, "settings": {"steps": 2, "eval": {"input": "x", "seed": 0}}}
    assert software(elsewhere) == first
    assert software(otherwise) != first
    assert all(len(text) <= 64 for text in first)


def test_dark_bones_are_noted(tmp_path, capsys):
    patient = phantom.simulate(3, 128)
    images.write(tmp_path / "right.png", patient.cxr)
    images.write(tmp_path / "wrong.png", 1 - patient.cxr)
    check(find_cases(tmp_path, tmp_path, None))
    reported = capsys.readouterr().err
    assert "bones look dark in" in reported
    assert "wrong.png" in reported
    assert "right.png" not in reported


def test_what_is_hardly_an_xray_is_noted(tmp_path, capsys):
    patient = phantom.simulate(3, 128)
    images.write(tmp_path / "cxr.png", patient.cxr)
    images.write(tmp_path / "mask.png", patient.mask)
    images.write(tmp_path / "tiny.png", patient.cxr[40:42, 40:60])
    images.write(tmp_path / "dark.png", patient.cxr * 0.03)
    check(find_cases(tmp_path, tmp_path, None))
    reported = capsys.readouterr().err
    assert "tiny.png: hardly an X-ray: it is only 20 x 2 pixels" in reported
    assert "mask.png: hardly an X-ray: nearly all of it is black or white" in reported
    assert "dark.png: hardly an X-ray: its grey values span" in reported
    assert "cxr.png" not in reported


def test_a_truth_that_declares_no_range_is_read_as_its_xray(tmp_path, capsys):
    patient = phantom.simulate(3, 128)
    for folder, pixels in (("CXR", patient.cxr), ("BS", patient.soft / patient.soft.max() / 4.5)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.rint(pixels * 4095).astype(np.uint16)).save(tmp_path / folder / "a.png")
    check(find_cases(tmp_path / "CXR", tmp_path, None))
    assert "BS/a.png is read as 10 bits, but" in capsys.readouterr().err
    case = find_cases(tmp_path / "CXR", tmp_path, None, (0, 4095))[0]
    assert 0.2 < reading.load(case).target.max() < 0.25
    check([case])
    assert "read as" not in capsys.readouterr().err
    images.write(tmp_path / "BS" / "a.png", patient.soft)  # 8 bits, which say theirs
    assert np.abs(reading.load(case).target - patient.soft).max() < 0.01


def test_bad_inputs_are_named_before_anything_runs(tmp_path):
    pixels = phantom.simulate(0, 64).cxr
    images.write(tmp_path / "CXR" / "a.png", pixels)
    with pytest.raises(UserError, match="neither an image, nor a folder"):
        find_cases(tmp_path / "none.png", tmp_path, None)
    images.write(tmp_path / "masks" / "a.png", np.ones((32, 64)))
    with pytest.raises(UserError, match="64 x 32.*64 x 64"):
        check(find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks"))
    images.write(tmp_path / "CXR" / "b.png", np.full((64, 64), 0.5))
    with pytest.raises(UserError, match="b.png.*same"):
        check(find_cases(tmp_path / "CXR" / "b.png", tmp_path, None))
    with pytest.raises(UserError, match="no mask for b"):
        images.write(tmp_path / "masks" / "a.png", np.ones((64, 64)))
        images.write(tmp_path / "CXR" / "b.png", pixels)
        find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks")
    (tmp_path / "CXR" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="b.png"):
        check(find_cases(tmp_path / "CXR", tmp_path, None))


def test_a_panel_has_titles_above_its_images():
    pixels = np.full((90, 120), 0.25)
    panel = results.panel({"CXR": pixels, "result": pixels})
    row_of_images = panel[-90:]
    assert row_of_images.shape == (90, 240)
    assert (row_of_images == 0.25).all()
    titles = panel[:-90]
    left_title = titles[:, :120]
    right_title = titles[:, 120:]
    assert left_title.max() > 0.6
    assert right_title.max() > 0.6
    assert not np.array_equal(left_title, right_title)
    large = results.panel({"x": np.zeros((2000, 2000))})
    assert len(large) > 2000 + 60  # letters grow with the images


def test_bars_of_steps_are_for_terminals(tmp_path, capsys):
    """In a log each would leave a line with escape codes for every image."""

    def steps(cxr, names, masks, progress):
        for _ in progress(range(3)):
            pass
        return cxr

    images.write(tmp_path / "a.png", phantom.simulate(1, SIZE).cxr)
    cases = find_cases(tmp_path / "a.png", tmp_path, None)
    evaluate(Function(steps), cases, tmp_path / "out")
    assert "step" not in capsys.readouterr().err


@pytest.mark.slow
def test_one_evaluation_imports_neither_scores_nor_plots():
    code = (
        "import sys, models.evaluation.run; "
        "print(sorted({'matplotlib', 'scipy.stats', 'models.scores'} & sys.modules.keys()))"
    )
    root = Path(run.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
