"""What an evaluation writes: results as their inputs are, several results of one image, DICOM, going on after a stop; what it refuses."""
import json
import shutil

import numpy as np
import pydicom
import pytest

from models import images, pipelines
from models.evaluation import record, run
from models.evaluation.cases import find_cases
from models.runtime.files import UserError
from models.simulate import phantom

SIZE = 64


class Function:
    """A function (cxr, names, masks, progress) as a method of evaluation."""

    def __init__(self, function, residual=False):
        self.function = function
        self.residual = residual
        self.compiled = False

    def __call__(self, *arguments):
        return self.function(*arguments)


def test_what_is_written_has_the_inputs_size_and_depth(networks, tmp_path):
    patient = phantom.simulate(1, 96)
    for name, pixels, bits in (("square", patient.cxr, 8), ("wide", patient.cxr[10:80], 16)):
        images.write(tmp_path / "CXR" / f"{name}.png", pixels, bits)
        images.write(tmp_path / "BS" / f"{name}.png", pixels * 0.9, bits)
    cases = find_cases(tmp_path / "CXR", tmp_path, None)
    assert [case.target.parent.name for case in cases] == ["BS", "BS"] and all(case.mask is None for case in cases)
    method = pipelines.GLLCM(*networks, steps=2)
    run.evaluate(method, cases, tmp_path / "out", size=SIZE, batch_size=2, about={"script": "x"})
    for name, shape, bits in (("square", (96, 96), 8), ("wide", (70, 96), 16)):
        result, panel = (images.read(tmp_path / "out" / folder / f"{name}.png") for folder in ("", "panels"))
        assert result.pixels.shape == shape and result.bits == bits and panel.pixels.shape == (shape[0], 4 * shape[1])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 2 and summary["seconds_per_image"].keys() == {"square", "wide"} and summary["script"] == "x"
    assert summary["seconds"] > 0 and not summary["seconds_after_warm_up"]  # there was one batch only
    assert 2 ** 27 < summary["peak_memory"] < 2 ** 36 and summary["peak_memory_of"] == "of the whole process"


@pytest.mark.parametrize("residual", [True, False])
def test_a_residual_result_keeps_the_detail_of_the_input(tmp_path, residual):
    """A method that darkens the upper half by 0.1: at four times its size the residual form is that to the bit depth, the other is blurred."""
    pixels = np.clip(phantom.simulate(1, 4 * SIZE).cxr + 0.05 * np.random.default_rng(0).standard_normal((4 * SIZE,) * 2), 0.15, 0.9)
    images.write(tmp_path / "scan.png", pixels, 16)

    def darker(cxr, names, masks, progress):
        cxr[:, :, :SIZE // 2] -= 0.2
        return cxr

    run.evaluate(Function(darker, residual), find_cases(tmp_path / "scan.png", tmp_path, None), tmp_path / "out", size=SIZE, batch_size=1,
                        about={})
    wrong = images.read(tmp_path / "out" / "scan.png").pixels - pixels
    far = 2 * SIZE - 12, 2 * SIZE + 12  # not beside the border between the halves, which is as sharp as the network's pixels
    assert (np.abs(wrong[:far[0]] + 0.1).mean() < 2e-4) == residual and (np.abs(wrong[far[1]:]).mean() < 2e-4) == residual


def test_what_a_run_costs(networks):
    count = sum(p.numel() for network in networks for p in network.parameters())
    assert pipelines.BSLDM(*networks, steps=9).describe() == {"sampler": "DDPM", "steps": 9, "parameters": count}
    assert pipelines.BSLDM(*networks, steps=9, sampler="ddim").describe()["sampler"] == "DDIM"
    assert pipelines.GLLCM(*networks, steps=4).describe()["sampler"] == "LCM"
    found = record.cost([9.0, 1.0, 3.0, 2.0], [1.0, 3.0, 2.0])
    assert found["seconds"] == 2 and found["seconds_after_warm_up"]


def test_several_results_of_an_image_give_their_mean_and_deviation(networks, tmp_path):
    """Whatever the batch size; the first result is the one that is drawn alone."""
    for seed, shape in ((1, slice(None)), (2, slice(10, 80))):
        images.write(tmp_path / "in" / f"{seed}.png", phantom.simulate(seed, SIZE).cxr[shape], 16)
    cases = find_cases(tmp_path / "in", tmp_path, None)
    method = pipelines.BSLDM(*networks, steps=2, sampler="ddim", seed=3)
    for batch_size in (1, 2, 8):
        run.evaluate(method, cases, tmp_path / f"out{batch_size}", size=SIZE, batch_size=batch_size, about={}, samples=3)
    drawn = []
    for case in cases:
        cxr = images.to_network(images.read(case.path).pixels, SIZE)[None]
        drawn.append([method(cxr, [name])[0, 0].double().numpy() / 2 for name in (case.name, f"{case.name}/sample 1", f"{case.name}/sample 2")])
    assert np.std(drawn[0], axis=0).mean() > 1e-3
    for case, results in zip(cases, drawn):
        for batch_size in (1, 2, 8):
            deviation = images.read(tmp_path / f"out{batch_size}" / "deviation" / f"{case.name}.png")
            expected = np.std(results, axis=0, ddof=1)
            shape = deviation.pixels.shape
            rows = slice((SIZE - shape[0]) // 2, (SIZE - shape[0]) // 2 + shape[0])
            assert deviation.bits == 16 and np.allclose(deviation.pixels, np.clip(expected[rows], 0, 1), atol=2e-5)
            mean = images.read(tmp_path / f"out{batch_size}" / f"{case.name}.png").pixels
            assert np.allclose(mean, np.clip(np.mean(results, 0)[rows] + 0.5, 0, 1), atol=2e-5)
            assert images.read(tmp_path / f"out{batch_size}" / "overlays" / f"{case.name}.png").pixels.std() > 0.05
    summary = json.loads((tmp_path / "out8" / "summary.json").read_text())
    assert summary["mean_deviation"]["1"] == pytest.approx(np.std(drawn[0], axis=0, ddof=1).mean(), rel=1e-3)
    run.evaluate(method, cases, tmp_path / "alone", size=SIZE, batch_size=2, about={})
    assert not (tmp_path / "alone" / "deviation").exists()
    first = images.read(tmp_path / "alone" / "1.png").pixels
    assert np.allclose(first, np.clip(drawn[0][0] + 0.5, 0, 1), atol=2e-5)


def test_masks_of_some_images_only_and_a_result_that_does_not_depend_on_its_batch(networks, tmp_path):
    for seed in (1, 2):
        images.write(tmp_path / "CXR" / f"{seed}.png", phantom.simulate(seed, SIZE).cxr)
    images.write(tmp_path / "Mask" / "1.png", np.eye(SIZE)[::-1] + np.eye(SIZE))
    cases = find_cases(tmp_path / "CXR", tmp_path, None)
    assert [case.mask is None for case in cases] == [False, True]
    for batch_size in (1, 2):
        method = pipelines.GLLCM(*networks, steps=2, fusion="alpha")
        run.evaluate(method, cases, tmp_path / f"out{batch_size}", size=SIZE, batch_size=batch_size, about={})
    for name in ("1.png", "2.png"):
        one, two = (images.read(tmp_path / folder / name).pixels for folder in ("out1", "out2"))
        assert np.abs(one - two).max() <= 1.01 / 255


def test_after_a_stop_the_same_call_goes_on(networks, tmp_path, capsys):
    for seed in range(4):
        images.write(tmp_path / "in" / f"{seed}.png", phantom.simulate(seed, SIZE).cxr)
    method = pipelines.BSLDM(*networks, steps=1, sampler="ddim")
    cases = find_cases(tmp_path / "in", tmp_path, None)
    ran = []
    stop_at = None

    def stopped(cxr, names, masks, progress):
        ran.extend(names)
        if stop_at in names:
            raise KeyboardInterrupt
        return method(cxr, names, masks, progress)

    def mean(cxr, result):
        return {"mean": round(float(cxr.mean()), 6)}

    def evaluate(stop=None, settings="x"):
        nonlocal stop_at
        ran.clear()
        stop_at = stop
        return run.evaluate(Function(stopped), cases, tmp_path / "out", size=SIZE, batch_size=1, measure=mean,
                            about={"settings": settings, "date": str(len(settings))})

    with pytest.raises(KeyboardInterrupt):
        evaluate("2")
    assert ran == ["0", "1", "2"] and not (tmp_path / "out" / "summary.json").exists()
    images.write(tmp_path / "in" / "1.png", phantom.simulate(9, SIZE).cxr)  # another image by now
    summary = evaluate()
    assert ran == ["1", "2", "3"] and "1 of 4 images" in capsys.readouterr().err
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["seconds_per_image"]) == list("0123") and not list((tmp_path / "out").glob("unfinished*"))
    assert summary["mean"] == {name: round(float(images.to_network(images.read(tmp_path / "in" / f"{name}.png").pixels, SIZE).mean()), 6)
                               for name in "0123"}
    evaluate()
    assert ran == list("0123")  # a run that has ended is made anew
    with pytest.raises(KeyboardInterrupt):
        evaluate("2")
    evaluate(settings="other settings")
    assert ran == list("0123")
    with pytest.raises(KeyboardInterrupt):
        evaluate("2")
    (tmp_path / "out" / "unfinished_0.json").write_text('{"identity": ')
    evaluate()
    assert ran == list("0123")


def test_dicom_in_dicom_out_on_request(networks, tmp_path):
    from pydicom.data import get_testdata_file
    shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / "scan.dcm")
    before = (tmp_path / "scan.dcm").read_bytes()
    method = pipelines.BSLDM(*networks, steps=1, sampler="ddim")
    arguments = {"size": SIZE, "batch_size": 1, "about": {}}
    cases = find_cases(tmp_path / "scan.dcm", tmp_path, None)
    run.evaluate(method, cases, tmp_path / "out", **arguments, dicom=True)
    result, original = images.read(tmp_path / "out" / "dicom" / "scan.dcm"), images.read(tmp_path / "scan.dcm")
    assert result.bits == original.bits and result.pixels.shape == original.pixels.shape
    assert np.allclose(result.pixels, images.read(tmp_path / "out" / "scan.png").pixels, atol=2e-5)
    assert pydicom.dcmread(tmp_path / "out" / "dicom" / "scan.dcm").SeriesDescription == "bone-suppressed, not for diagnosis"
    assert (tmp_path / "scan.dcm").read_bytes() == before
    run.evaluate(method, cases, tmp_path / "plain", **arguments)
    assert not (tmp_path / "plain" / "dicom").exists()
    images.write(tmp_path / "scan.png", original.pixels)
    with pytest.raises(UserError, match="eval.dicom=true, but none of the 1 images is a DICOM file"):
        run.evaluate(method, find_cases(tmp_path / "scan.png", tmp_path, None), tmp_path / "out", **arguments, dicom=True)
    broken = pydicom.dcmread(tmp_path / "scan.dcm")
    del broken.SOPInstanceUID
    broken.save_as(tmp_path / "broken.dcm")
    with pytest.raises(UserError, match="broken.dcm has no SOPInstanceUID"):
        images.write_dicom(tmp_path / "x.dcm", original.pixels, tmp_path / "broken.dcm", "x")


def test_dark_bones_are_noted(tmp_path, capsys):
    patient = phantom.simulate(3, 128)
    images.write(tmp_path / "right.png", patient.cxr)
    images.write(tmp_path / "wrong.png", 1 - patient.cxr)
    find_cases(tmp_path, tmp_path, None)
    told = capsys.readouterr().err
    assert "bones look dark in" in told and "wrong.png" in told and "right.png" not in told


def test_bad_inputs_are_named_before_anything_runs(tmp_path):
    pixels = phantom.simulate(0, 64).cxr
    images.write(tmp_path / "CXR" / "a.png", pixels)
    with pytest.raises(UserError, match="neither an image, nor a folder"):
        find_cases(tmp_path / "none.png", tmp_path, None)
    images.write(tmp_path / "masks" / "a.png", np.ones((32, 64)))
    with pytest.raises(UserError, match="64 x 32.*64 x 64"):
        find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks")
    images.write(tmp_path / "CXR" / "b.png", np.full((64, 64), 0.5))
    with pytest.raises(UserError, match="b.png.*same"):
        find_cases(tmp_path / "CXR" / "b.png", tmp_path, None)
    with pytest.raises(UserError, match="no mask for b"):
        images.write(tmp_path / "masks" / "a.png", np.ones((64, 64)))
        images.write(tmp_path / "CXR" / "b.png", pixels)
        find_cases(tmp_path / "CXR", tmp_path, tmp_path / "masks")
    (tmp_path / "CXR" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="b.png"):
        find_cases(tmp_path / "CXR", tmp_path, None)
