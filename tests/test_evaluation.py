"""What an evaluation writes: results as their inputs are, several results of one image, DICOM, going on after a stop;
what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from models import images, pipelines
from models.evaluation import reading, record, results, run
from models.evaluation.cases import find_cases
from models.evaluation.reading import Reader
from models.evaluation.results import Output, software
from models.evaluation.summary import median_time, peak_memory, recorded_names
from models.runtime.files import UserError
from models.simulate import phantom

SIZE = 64


def evaluate(method, cases, output, *, batch_size=1, about=None, **keywords):
    """A run into a folder, as the scripts do it."""
    place = Output.at(output, len(cases))
    facts = {"image_size": SIZE, **(about or {})}
    opened = record.Record(place, facts, cases)
    return run.evaluate(method, opened, batch_size=batch_size, **keywords)


def read_summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def check(cases, **keywords):
    """Read X-rays as a run does before its work."""
    Reader([[case] for case in cases], **keywords).preload()


class Function:
    """A function (cxr, names, masks, progress) as a method of evaluation."""

    def __init__(self, function, residual=False):
        self.function = function
        self.residual = residual
        self.compiled = False

    def __call__(self, *arguments):
        return self.function(*arguments)


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
    assert found["seconds"] == 2 and found["seconds_after_warm_up"]


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


@pytest.mark.slow
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

    def go(stop=None, steps=1):
        nonlocal stop_at
        ran.clear()
        stop_at = stop
        return evaluate(
            Function(stopped),
            cases,
            tmp_path / "out",
            measure=mean,
            about={"settings": {"steps": steps}, "date": str(len(ran))},
        )

    with pytest.raises(KeyboardInterrupt):
        go("2")
    assert ran == ["0", "1", "2"]
    assert not (tmp_path / "out" / "summary.json").exists()
    images.write(tmp_path / "in" / "1.png", phantom.simulate(9, SIZE).cxr)  # another image by now
    summary = go()
    assert ran == ["1", "2", "3"]
    assert "1 of 4 images" in capsys.readouterr().err
    assert summary == read_summary(tmp_path / "out")
    assert list(summary["seconds_per_image"]) == list("0123")
    assert not list((tmp_path / "out").glob("unfinished*"))
    assert sorted(summary["mean"]) == list("0123")
    for name in "0123":
        cxr = images.to_network(images.read(tmp_path / "in" / f"{name}.png").pixels, SIZE)
        assert summary["mean"][name] == mean(cxr, None)["mean"]
    go()
    assert ran == list("0123")  # a run that has ended is made anew
    with pytest.raises(KeyboardInterrupt):
        go("2")
    go(steps=2)
    assert ran == list("0123")
    with pytest.raises(KeyboardInterrupt):
        go("2")
    with open(tmp_path / "out" / "unfinished_0.jsonl", "r+") as file:  # killed while it wrote a line
        lines = file.read()
        file.truncate(len(lines) - 20)
    go()
    assert ran == list("123")


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


def darker(cxr, names, masks, progress):
    return cxr - 0.1


@pytest.fixture
def xrays(tmp_path):
    """X-rays a and b in data/CXR, with soft tissue in data/BS and a mask of a in data/Mask."""
    for seed, name in ((1, "a"), (2, "b")):
        patient = phantom.simulate(seed, SIZE)
        images.write(tmp_path / "data" / "CXR" / f"{name}.png", patient.cxr)
        images.write(tmp_path / "data" / "BS" / f"{name}.png", patient.soft)
    images.write(tmp_path / "data" / "Mask" / "a.png", np.eye(SIZE))
    return tmp_path


def files_below(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_no_result_takes_the_place_of_an_xray_a_truth_a_mask_or_anybodys_file(xrays):
    cases = find_cases(xrays / "data" / "CXR", xrays, None)
    (xrays / "mine" / "panels").mkdir(parents=True)
    (xrays / "mine" / "panels" / "b.png").write_bytes(b"somebody's")
    (xrays / "linked").mkdir()
    (xrays / "linked" / "a.png").symlink_to(xrays / "data" / "CXR" / "a.png")
    (xrays / "noted").mkdir()
    (xrays / "noted" / "summary.json").write_text("[]")
    before = files_below(xrays)
    for folder, message in (
        ("data/CXR", "CXR/a.png is an input"),
        ("data/BS", "BS/a.png is an input"),
        ("data/Mask", "Mask/a.png is an input"),
        ("data/../data/CXR", "is an input"),
        ("linked", "linked/a.png is an input"),
        ("mine", "panels/b.png is there already"),
        ("noted", "summary.json is there already"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(Function(darker), cases, xrays / folder)
    assert files_below(xrays) == before
    # results of an earlier run as inputs: known to be the script's own, and read all the same
    evaluate(Function(darker), cases, xrays / "out")
    with pytest.raises(UserError, match="out/a.png is an input"):
        evaluate(Function(darker), find_cases(xrays / "out", xrays, None), xrays / "out")
    # what the record names is replaced; what lies there beside is not
    evaluate(Function(darker), cases, xrays / "out")
    images.write(xrays / "data" / "CXR" / "c.png", phantom.simulate(3, SIZE).cxr)
    (xrays / "out" / "c.png").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="out/c.png is there already"):
        evaluate(Function(darker), find_cases(xrays / "data" / "CXR", xrays, None), xrays / "out")


def test_a_killed_run_knows_the_files_that_it_had_begun(xrays, monkeypatch):
    """Killed between a result and its line in the record: the file is the script's own, and made again."""
    cases = find_cases(xrays / "data" / "CXR", xrays, None)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record.Record, "add", killed)
        evaluate(Function(darker), cases, xrays / "out")
    assert (xrays / "out" / "a.png").is_file()
    evaluate(Function(darker), cases, xrays / "out")
    assert (xrays / "out" / "b.png").is_file()


@pytest.mark.slow
def test_results_of_other_settings_do_not_mix_in_a_folder(xrays):
    both = find_cases(xrays / "data" / "CXR", xrays, None)
    settings = {"steps": 1, "eval": {"input": "a.png", "strength": 0.8}}
    first = {"method": "x", "settings": settings, "weights": {"w": "123"}}
    evaluate(Function(darker), both[:1], xrays / "out", about=first)
    for changed, words in (
        ({"settings": {"steps": 1, "eval": {"strength": 0.1}}}, "eval.strength was 0.8, now 0.1"),
        ({"weights": {"w": "456"}}, "other weights"),
        ({"method": "y"}, "method was x, now y"),
    ):
        with pytest.raises(UserError, match=f"results of other settings .{words}.: a;.*eval.output="):
            evaluate(Function(darker), both[1:], xrays / "out", about={**first, **changed})
    # the same settings on another image, from another place: both are this method's
    moved = {"steps": 1, "eval": {"input": "b.png", "strength": 0.8}}
    same = {**first, "settings": moved, "weights": {"moved/w": "123"}}
    summary = evaluate(Function(darker), both[1:], xrays / "out", about=same)
    assert list(summary["seconds_per_image"]) == ["b"] and summary["results_of_earlier_runs"] == ["a"]
    assert sorted(recorded_names(summary)) == ["a", "b"]
    # other settings on all of them: nothing of the first is left, not even what this run does not write
    evaluate(Function(darker), both, xrays / "out", about=same, samples=2)
    assert (xrays / "out" / "deviation" / "a.png").is_file()
    other = {**first, "settings": {"steps": 2}}
    summary = evaluate(Function(darker), both, xrays / "out", about=other)
    assert not (xrays / "out" / "deviation" / "a.png").exists() and "results_of_earlier_runs" not in summary


def test_a_stop_among_other_settings_goes_on_and_keeps_what_it_has_done(xrays):
    cases = find_cases(xrays / "data" / "CXR", xrays, None)
    evaluate(Function(darker), cases, xrays / "out", about={"settings": {"steps": 1}})
    ran = []

    def stopped(cxr, names, masks, progress):
        if ran == ["a"] and names == ["b"]:
            ran.append("stop")
            raise KeyboardInterrupt
        ran.extend(names)
        return cxr - 0.2

    with pytest.raises(KeyboardInterrupt):
        evaluate(Function(stopped), cases, xrays / "out", about={"settings": {"steps": 2}})
    # of the first settings
    assert not (xrays / "out" / "summary.json").exists()
    assert not (xrays / "out" / "b.png").exists()
    evaluate(Function(stopped), cases, xrays / "out", about={"settings": {"steps": 2}})
    assert ran == ["a", "stop", "b"]
    # back to the first settings: an entry that the second run has overwritten counts for nothing
    summary = evaluate(Function(darker), cases, xrays / "out", about={"settings": {"steps": 1}})
    assert summary["settings"] == {"steps": 1}
    cxr = images.read(cases[0].path).pixels
    result = images.read(xrays / "out" / "a.png").pixels
    darkened = np.clip(cxr - 0.05, 0, 1)  # 0.1 of the network's range is 0.05 of the file's
    assert np.abs(result - darkened).max() < 0.01


def test_the_record_grows_by_a_line_and_is_never_written_anew(xrays):
    """A run over 100 000 images would otherwise spend hours on its record."""
    cases = find_cases(xrays / "data" / "CXR", xrays, None)
    file = xrays / "out" / "unfinished_0.jsonl"
    seen = []

    def watch(cxr, names, masks, progress):
        seen.append((file.stat().st_ino, file.read_bytes()))
        return cxr

    evaluate(Function(watch), cases, xrays / "out")
    (inode_before, before), (inode_after, after) = seen
    assert inode_before == inode_after
    assert after.startswith(before)
    assert b'"name": "a"' not in before
    assert b'"name": "a"' in after


def test_a_place_that_cannot_be_written_is_refused_before_the_work(xrays):
    cases = find_cases(xrays / "data" / "CXR", xrays, None)
    (xrays / "file").write_text("")
    for place in (xrays / "file", xrays / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(UserError, match=f"cannot write {place}"):
            record.Record(Output.at(place, 2), {"image_size": SIZE}, cases)  # which comes before the networks
    record.Record(Output.at(xrays / "new" / "deep", 2), {"image_size": SIZE}, cases)
    assert not (xrays / "new").exists()  # the question leaves nothing behind


def test_one_image_may_have_a_file_of_its_own(xrays):
    cases = find_cases(xrays / "data" / "CXR" / "a.png", xrays, None)
    evaluate(Function(darker), cases, xrays / "result.png")
    assert (xrays / "result.png").is_file() and (xrays / "result_files" / "panels" / "a.png").is_file()
    evaluate(Function(darker), cases, xrays / "result.png")  # its own, by the record beside it
    with pytest.raises(UserError, match="a.png is an input"):
        evaluate(Function(darker), cases, cases[0].path)
    with pytest.raises(UserError, match="one file, but there are 2 images"):
        Output.at(xrays / "result.png", 2)
    with pytest.raises(UserError, match="x.dcm is not a PNG.*name .*x.png"):
        Output.at(xrays / "x.dcm", 1)
    (xrays / "folder.png").mkdir()
    assert Output.at(xrays / "folder.png", 2).file is None


def test_two_images_of_one_result_are_refused(xrays):
    cases = find_cases(xrays / "data" / "CXR", xrays, None)
    with pytest.raises(UserError, match="several images would have the same result: a"):
        evaluate(Function(darker), [cases[0], cases[0]], xrays / "out")


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


def test_bars_of_steps_are_for_terminals(xrays, capsys):
    """In a log each would leave a line with escape codes for every image."""

    def steps(cxr, names, masks, progress):
        for _ in progress(range(3)):
            pass
        return cxr

    evaluate(Function(steps), find_cases(xrays / "data" / "CXR", xrays, None), xrays / "out")
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
