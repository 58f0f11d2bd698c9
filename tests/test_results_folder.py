"""The folder that an evaluation writes into: whose files it holds, going on after a stop, results of other settings."""

from pathlib import Path

import numpy as np
import pytest
from evaluating import SIZE, Function, darker, evaluate, read_summary

from models import images, pipelines
from models.evaluation import record
from models.evaluation.cases import find_cases
from models.evaluation.results import Output
from models.evaluation.summary import recorded_names
from models.runtime.files import UserError
from models.simulate import phantom


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
    assert list(summary["seconds_per_image"]) == ["b"]
    assert summary["results_of_earlier_runs"] == ["a"]
    assert sorted(recorded_names(summary)) == ["a", "b"]
    # other settings on all of them: nothing of the first is left, not even what this run does not write
    evaluate(Function(darker), both, xrays / "out", about=same, samples=2)
    assert (xrays / "out" / "deviation" / "a.png").is_file()
    other = {**first, "settings": {"steps": 2}}
    summary = evaluate(Function(darker), both, xrays / "out", about=other)
    assert not (xrays / "out" / "deviation" / "a.png").exists()
    assert "results_of_earlier_runs" not in summary


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
    assert (xrays / "result.png").is_file()
    assert (xrays / "result_files" / "panels" / "a.png").is_file()
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
