"""Trees and lists of X-rays, faulty files, shares of a job array, size of results, codes in float32 under bf16."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch

from models import images, pipelines
from models.data import inputs
from models.evaluation import cases, record, record_lines, run, shards
from models.evaluation import results as results_of_one
from models.evaluation.cases import find_cases
from models.evaluation.reading import Reader
from models.evaluation.results import Form, Output
from models.runtime import checkpoint
from models.runtime.files import UserError

SIZE = 32


class Darker:
    residual = False
    compiled = False

    def __call__(self, cxr, names, masks, progress):
        return cxr * 0.5


@pytest.fixture
def tree(tmp_path):
    """Six X-rays in three folders, the same name in two of them, and links that lead in a circle."""
    random = np.random.default_rng(0)
    for name in ("a", "p1/a", "p1/s1/b", "p2/a", "p2/c", "p10/d"):
        images.write(tmp_path / "in" / f"{name}.png", random.random((SIZE, SIZE)), 16)
    (tmp_path / "in" / "p1" / "up").symlink_to(tmp_path / "in")
    return tmp_path


def evaluate(tree, output="out", shard=None, skip=True, batch=1, form=None):
    cases = find_cases(tree / "in", tree, None)
    own = cases if shard is None else shards.shard_cases(cases, batch, *shard)
    opened = record.Record(Output.at(tree / output, len(cases)), {"image_size": SIZE}, own, shard)
    reader = Reader(shards.batches_left(opened, batch), skip_faulty=skip, remedy="leave them out")
    reader.preload()
    return run.evaluate(Darker(), opened, batch_size=batch, reader=reader, form=form)


def results(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_tree_is_walked_without_circles_and_results_mirror_it(tree, capsys):
    names = ["a", "p1/a", "p1/s1/b", "p2/a", "p2/c", "p10/d"]
    assert list(find_cases(tree / "in", tree, None)[i].name for i in range(6)) == names
    assert "a link to a folder above it" in capsys.readouterr().err
    evaluate(tree, "in/results")  # in the tree itself: not an input of the next run
    assert (tree / "in/results/p1/s1/b.png").is_file() and (tree / "in/results/panels/p1/s1/b.png").is_file()
    assert [case.name for case in find_cases(tree / "in", tree, None)] == names
    (tree / "in/p2/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png have the same name but for the ending"):
        find_cases(tree / "in", tree, None)


def test_a_link_to_a_folder_above_the_top_does_not_lead_into_the_tree_again(tree, capsys):
    images.write(tree / "beside" / "e.png", np.eye(SIZE))
    (tree / "in" / "p10" / "all").symlink_to(tree)
    names = [case.name for case in find_cases(tree / "in", tree, None)]
    assert names == ["a", "p1/a", "p1/s1/b", "p2/a", "p2/c", "p10/d", "p10/all/beside/e"]
    assert f"{tree}/in/p10/all/in (a link to a folder above it)" in capsys.readouterr().err


def test_folders_without_links_are_listed_and_not_asked(tree, monkeypatch):
    """Two questions to the file system for each of a hundred thousand folders would take seconds."""
    (tree / "in" / "p1" / "up").unlink()
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *rest, **more: (asked.append(path), stat(path, *rest, **more))[1])
    assert len(inputs.find_tree(tree / "in")) == 6 and asked == []


def test_lists_hold_relative_and_absolute_paths(tree):
    path = tree / "in" / "list.txt"
    path.write_text("p1/a.png\np2/a\n")
    assert list(inputs.read_paths(path, tree)) == ["p1/a", "p2/a"]
    path.write_text(f"{tree}/in/p1/s1/b.png\n{tree}/in/p1/a.png\n")
    assert list(inputs.read_paths(path, tree)) == ["s1/b", "a"]
    path.write_text("p1/a.png\np1/gone.png\n")
    with pytest.raises(UserError, match="does not hold: p1/gone.png"):
        inputs.read_paths(path, tree)


def test_truth_lies_below_bs_as_the_xray_below_cxr(tmp_path):
    for folder in ("CXR", "BS"):
        images.write(tmp_path / folder / "p1" / "a.png", np.eye(SIZE))
    (case,) = find_cases(tmp_path, tmp_path, None)  # of a data folder CXR/ alone
    assert case.name == "CXR/p1/a" and case.target == tmp_path / "BS" / "p1" / "a.png"


def test_faulty_files_are_named_and_the_rest_is_done(tree, capsys):
    (tree / "in/p2/c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*c\.png"):
        evaluate(tree, skip=False)
    (tree / "in/p1/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 X-rays cannot be read \(listed above\); leave them out"):
        evaluate(tree, skip=False)
    told = capsys.readouterr().err
    assert "fault: cannot read" in told and "p1/a.png: the file is empty" in told and "p2/c.png" in told
    assert not (tree / "out").exists()  # before the work
    images.write(tree / "in/p1/a.png", images.read(tree / "in/p2/a.png").pixels)
    summary = evaluate(tree)
    assert list(summary["failed"]) == ["p2/c"] and summary["images"] == 5
    assert run.say_failed(summary["failed"]) == 1 and run.say_failed({}) == 0


def test_a_file_that_vanishes_midway_is_a_fault(tree):
    cases = find_cases(tree / "in", tree, None)
    (tree / "in/p2/c.png").unlink()
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    summary = run.evaluate(Darker(), opened, batch_size=1, reader=Reader([[case] for case in cases], skip_faulty=True))
    assert list(summary["failed"]) == ["p2/c"] and summary["images"] == 5


def test_each_xray_is_decoded_once(tree, monkeypatch):
    read = []
    original = images.read
    monkeypatch.setattr(images, "read", lambda path, *rest: (read.append(str(path)), original(path, *rest))[1])
    evaluate(tree)
    assert len(read) == len(set(read)) == 6


def test_the_shares_of_an_array_are_one_process_to_the_bit(tree):
    (tree / "in/p2/c.png").write_bytes(b"")
    whole = evaluate(tree, "whole", batch=2)
    for number in (2, 1):
        evaluate(tree, shard=(number, 3), batch=2)
    assert not (tree / "out" / "summary.json").exists()
    cases = find_cases(tree / "in", tree, None)
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    _, missing = opened.merge()
    assert missing == ["p2/c", "p10/d"] and opened.shards_of(missing, 2) == ["3/3"]
    evaluate(tree, shard=(3, 3), batch=2)
    merged, missing = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases).merge()
    assert missing == [] and merged["failed"] == whole["failed"]
    assert json.loads((tree / "out" / "summary.json").read_text()) == merged
    assert list(merged["seconds_per_image"]) == list(whole["seconds_per_image"])
    assert results(tree / "out") == results(tree / "whole") and not list((tree / "out").glob("unfinished*"))


def test_shares_that_are_none_are_refused():
    assert shards.parse_shard("3/431") == (3, 431) and shards.parse_shard(None) is None
    for text in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(UserError, match=f"eval.shard={text} is neither a share"):
            shards.parse_shard(text)


def test_an_unchanged_xray_is_not_read_to_go_on(tree, monkeypatch):
    evaluate(tree, shard=(1, 1))
    digests = []
    monkeypatch.setattr(checkpoint, "digest", lambda path: digests.append(path) or "other")
    cases = find_cases(tree / "in", tree, None)
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    assert len(opened.done) == 6 and digests == []
    os.utime(tree / "in/a.png", ns=(0, 0))
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    assert len(opened.done) == 5 and len(digests) == 1


@pytest.mark.parametrize("few", [0, 3])
def test_going_on_asks_once_for_each_file_and_lists_each_folder_once(tree, few, monkeypatch):
    monkeypatch.setattr(results_of_one, "FEW", few)
    evaluate(tree, shard=(1, 1))
    asked = []
    listed = []
    stat = os.stat
    scandir = os.scandir
    monkeypatch.setattr(os, "stat", lambda path, *rest, **more: (asked.append(str(path)), stat(path, *rest, **more))[1])
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), scandir(path))[1])
    cases = find_cases(tree / "in", tree, None)
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    assert len(opened.done) == 6
    xrays = [path for path in asked if path.endswith(".png")]
    assert sorted(xrays) == sorted(case.file for case in cases)
    assert len(listed) == len(set(listed)) and not [path for path in listed if "snapshots" in path]


def test_a_slow_file_system_is_asked_by_many_threads_and_answers_the_same(tree, monkeypatch):
    (tree / "in").rename(tree / "CXR")
    (tree / "BS").mkdir()
    shutil.copy(tree / "CXR/a.png", tree / "BS/a.png")
    xrays = find_cases(tree / "CXR", tree, None)
    (tree / "CXR/p2/c.png").unlink()
    one = cases.stamps_and_numbers(xrays)
    monkeypatch.setattr(cases, "SLOW_ANSWER", 0)
    monkeypatch.setattr(cases, "ASKED_TOGETHER", 1)
    asking = set()
    ask = cases._ask_for
    monkeypatch.setattr(cases, "_ask_for", lambda *asked: (asking.add(threading.current_thread()), ask(*asked))[1])
    assert cases.stamps_and_numbers(xrays) == one
    assert threading.main_thread() in asking and len(asking) > 1
    stamps, numbers = one
    assert stamps["p2/c"] == "" and stamps["a"] == cases.stamp_of(os.stat(tree / "CXR/a.png"))
    assert numbers == {os.stat(path).st_ino for path in tree.rglob("*.png")}


def test_what_is_taken_of_a_record_is_what_its_json_says(tmp_path):
    """Most lines are read by their text, which must not take a torn line for a whole one, or letters for others."""
    entry = record_lines.Entry("0123456789abcdef", 1e-05, True, {}, "1124.179598")
    notes = {"psnr": 31.5, "ssim": float("inf")}
    trees = [{"about": {"date": "now"}}, {"writing": ["p1/a", "p1/b"]}, {"writing": ["c"]}, {"writing": ['"]}\n']}]
    for name in ("p1/a", "p1/b", "c", "ä", 'a"b', "back\\slash", '", "stamp": "9'):
        trees += [{"writing": [name]}, {"name": name, **entry._asdict()}]
    changed = entry._replace(stamp="1.2/3.4", notes=notes)
    trees += [{"name": "c", **changed._asdict()}, {"failed": "d", "reason": '"name": "d"'}, {"costs": {"x": 1}}]
    lines = [json.dumps(tree) for tree in trees]
    torn = json.dumps({"name": "torn", **entry._asdict()})
    lines += [torn[:cut] for cut in range(1, len(torn))]
    path = tmp_path / "unfinished_3of4_0.jsonl"
    path.write_text("\n\n".join(lines))

    whole = [tree for tree in trees if "content" in tree]
    read = record_lines.read(path)
    assert read.stamps == {tree["name"]: tree["stamp"] for tree in whole}
    assert read.others == {'"]}\n'}
    assert read.names == {"p1/a", "p1/b", "c", '"]}\n', "ä", 'a"b', "back\\slash", '", "stamp": "9'}
    assert read.entries == {tree["name"]: record_lines.Entry(*list(tree.values())[1:]) for tree in whole}
    assert (read.about, read.costs, read.shards) == ({"date": "now"}, {"x": 1}, 4)
    assert read.failed == {"d": '"name": "d"'}


def test_to_go_on_no_entry_is_made_before_the_first_image(tree, monkeypatch):
    """The objects of 100 000 would take half a second; those of the summary are made at the end."""
    evaluate(tree, shard=(1, 1))
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(text), loads(text))[1])
    cases = find_cases(tree / "in", tree, None)
    opened = record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)
    assert len(opened.done) == 6 and not [text for text in parsed if '"content"' in text]
    assert list(opened.finish({})["seconds_per_image"]) == [case.name for case in cases]


@pytest.mark.parametrize("few", [0, 3])  # images of a folder that are asked for one by one; of more it is listed
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_result_that_is_an_input_by_another_name_is_refused(tree, link, few, monkeypatch):
    monkeypatch.setattr(results_of_one, "FEW", few)
    evaluate(tree, shard=(1, 1))
    (tree / "out" / "p1" / "a.png").unlink()
    link(tree / "in" / "p2" / "c.png", tree / "out" / "p1" / "a.png")
    cases = find_cases(tree / "in", tree, None)
    with pytest.raises(UserError, match=r"out/p1/a\.png is an input of this run"):
        record.Record(Output.at(tree / "out", 6), {"image_size": SIZE}, cases)


def test_names_are_in_natural_order_whatever_their_digits():
    names = ["b10.png", "b9.png", "a100.png", "b09.png", "10", "9a", "c", "b1_2", "b1_10", "\u0663.png", "2.png"]
    for count in range(1, len(names) + 1):
        assert images.in_natural_order(names[:count]) == sorted(sorted(names[:count]), key=images.natural)
    same = [f"p{number:03}.png" for number in (7, 120, 13)]
    assert images.in_natural_order(same) == sorted(same, key=images.natural) == ["p007.png", "p013.png", "p120.png"]


def test_results_may_be_small_of_8_bits_and_without_panels(tree):
    evaluate(tree, form=Form(size=16, bits=8, panels=False))
    result = images.read(tree / "out" / "p1" / "a.png")
    assert result.pixels.shape == (16, 16) and result.bits == 8 and not (tree / "out" / "panels").exists()
    mean = images.read(tree / "in" / "p1" / "a.png").pixels.reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(result.pixels - (0.25 + mean / 2)).max() < 0.6 / 255  # half of it on [-1, 1], area average, 8 bits


def test_on_a_cpu_the_encoder_decides_the_codes_in_float32(networks):
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = pipelines.BSLDM(*networks)
    rounded = pipelines.BSLDM(*networks, precision="bf16")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = rounded.encode(x)
    with torch.inference_mode():
        assert torch.equal(found, exact.encode(x))
