"""What an ablation calls: folders to values, the tables' numbers, tests, costs, pictures."""

import json
import math
import re
import tracemalloc

import numpy as np
import pytest
import torch

from models import images, scores
from models.evaluation import pictures, report, report_numbers, report_tables, scoring, statistics
from models.evaluation.score_table import ScoreTable
from models.runtime.files import UserError

SIDE = 64
COUNT = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders CXR/, BS/, Mask/ and predictions good/ and a_b%/ of images 0..6; the first is the nearer to the truth, in
    0 the nearest."""
    root, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    for name in range(COUNT):
        soft = 0.2 + 0.5 * rng.random((SIDE, SIDE))
        bone = np.zeros_like(soft)
        bone[10:30] = 0.25
        lungs = np.zeros_like(soft)
        lungs[8:50, 10:54] = 1
        for part, pixels in (
            ("CXR", soft + bone),
            ("BS", soft),
            ("Mask", lungs),
            ("good", soft + 0.02 * (name + 1) * bone),
            ("a_b%", soft + 0.5 * bone * (1 + 0.1 * name)),
        ):
            images.write(root / part / f"{name}.png", pixels, 8 if part == "Mask" else 16)
    return root


@pytest.fixture(scope="module")
def scored(folders, lpips):
    return scoring.score_folders(
        {"good": folders / "good", "a_b%": folders / "a_b%"},
        folders / "CXR",
        folders / "BS",
        masks=folders / "Mask",
        size=SIDE,
    )


def test_the_record_is_json_and_writing_it_takes_little_memory(tmp_path):
    columns = [column.key for column in scoring.Scored(ScoreTable(), {}, [], SIDE, 0, 1).columns]
    values = {}
    for number in range(400):
        row = {key: number + place / 7 for place, key in enumerate(columns)}
        values[f'{number} "ä"'] = {"untouched CXR": {**row, "PSNR": math.inf}, "method\n": {**row, "BSR": math.nan}}
    scored = scoring.Scored(ScoreTable.of(values), {}, [], SIDE, 0, 1)
    tree = {"settings": "x", "cost": {"m": {"seconds": [1.5, math.nan]}}}
    tracemalloc.start()
    report.write_record(tmp_path / "a.json", tree, scored)
    report.write_csv(tmp_path / "a.csv", scored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 800 * len(values)  # the text of an image alone is longer
    expected = json.dumps(report._finite({**tree, "images": values}), indent=1, allow_nan=False)
    assert (tmp_path / "a.json").read_text() == expected
    assert len((tmp_path / "a.csv").read_text().splitlines()) > 2 * len(values)


@pytest.mark.slow
def test_values_are_those_of_each_image_and_threads_are_given_back(scored, folders, lpips):
    for name in ("0", "4"):
        cxr, soft, pred = (images.read(folders / part / f"{name}.png").pixels for part in ("CXR", "BS", "a_b%"))
        inside = images.read_mask(folders / "Mask" / f"{name}.png")
        assert scored.values[name]["a_b%"] == pytest.approx(
            scores.score(cxr, soft, {"x": pred}, lpips, inside)["x"], rel=1e-6, nan_ok=True
        )
    assert (
        list(scored.values) == [str(i) for i in range(COUNT)]
        and scored.masked == COUNT
        and scored.resized == 0
        and not scored.faults
    )
    assert torch.get_num_threads() == 1  # conftest's


@pytest.mark.slow
def test_a_gpus_way_through_the_network_gives_the_same(scored, folders, monkeypatch):
    class FromOneThread(scores.Lpips):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.device = torch.device("meta")  # not "cpu": the scores wait for the main thread

        def against(self, *arguments):
            self.device = torch.device("cpu")
            return super().against(*arguments)

    monkeypatch.setattr(scores, "Lpips", FromOneThread)
    again = scoring.score_folders({"good": folders / "good"}, folders / "CXR", folders / "BS", size=SIDE)
    assert again.series("good", "LPIPS") == pytest.approx(scored.series("good", "LPIPS")) and again.masked == 0


def test_images_are_read_a_few_ahead_and_no_more():
    begun, taken = [], []
    for future in scoring._ahead(begun.append, range(40)):
        future.result()
        taken.append(len(begun))
        assert len(begun) <= len(taken) + 2 * torch.get_num_threads()
    assert begun == list(range(40))


def test_tables_hold_means_and_spreads_and_mark_the_best(scored):
    summary = report_numbers.summarise(scored)
    tables = report_tables.quality_tables(scored, summary)
    assert [table.title for table in tables] == list(scored.groups) and "Scores inside the lungs" in scored.groups
    psnr = scored.series("good", "PSNR")
    assert tables[0].headings[3] == "PSNR (dB) ↑" and tables[0].rows[1][3] == f"{psnr.mean():.3f} ± {psnr.std():.3f}"
    assert [row[0] for row in tables[0].rows] == [scores.REFERENCE, "good", "a_b%"]
    assert {place for table in tables for place in table.best} == {
        (1, j) for j in range(1, 7)
    }  # of an error the smaller is the better
    low, high = summary["good"]["MSE"]["low"], summary["good"]["MSE"]["high"]
    assert low < scored.series("good", "MSE").mean() < high
    assert f"[{1000 * low:.3f}, {1000 * high:.3f}]" in report_tables.interval_table(scored, summary).rows[1][2]


def test_the_best_is_marked_where_the_table_shows_a_tie_but_never_alone_or_undefined():
    bsr, mse, psnr, _ = scores.PUBLISHED

    def best(column, untouched, **methods):
        """Places in {method: a value, or one for each image}."""
        of_methods = {scores.REFERENCE: untouched, **methods}
        values = {}
        for i in range(3):
            values[str(i)] = {name: {column.key: np.broadcast_to(row, 3)[i]} for name, row in of_methods.items()}
        scored = scoring.Scored(ScoreTable.of(values), {}, [], SIDE, 0, 0)
        summary = {name: {column.key: statistics.describe(scored.series(name, column.key))} for name in of_methods}
        return report_tables._best(scored, column, summary)

    assert best(bsr, 0.5, a=0.9, b=0.900000001, c=math.nan) == [1, 2]
    assert best(bsr, 0.5, a=0.9) == [] and best(bsr, 0.5, a=math.nan, b=math.nan) == []
    # not below what doing nothing scores, nor level with it
    assert best(bsr, 0.95, a=0.9, b=0.8) == [] and best(bsr, 0.9, a=0.9, b=0.8) == []
    assert best(mse, 0.01, a=0.02, b=0.03) == [] and best(mse, 0.01, a=0.02, b=0.001) == [2]
    assert best(bsr, math.nan, a=0.9, b=0.8) == [1]
    # results that equal the truth are the best; where only some do, the means are over different images
    assert best(psnr, 20, a=15.7, b=math.inf) == [2] and best(psnr, 20, a=33, b=[math.inf, 20, 21]) == []
    assert best(psnr, math.inf, a=math.inf, b=math.inf) == []


def test_results_that_all_equal_the_truth_have_an_infinite_psnr_in_the_table():
    column = scores.PUBLISHED[2]
    assert report_tables._mean_and_spread(np.array([math.inf, math.nan]), {"count": 0}, column) == "∞"
    assert report_tables._mean_and_spread(np.array([math.nan, math.nan]), {"count": 0}, column) == "—"


def test_paired_tests_are_corrected_over_the_pairs_of_a_score(scored, folders):
    tests = report_numbers.compare_methods(scored)
    pairs = [(scores.REFERENCE, "good"), (scores.REFERENCE, "a_b%"), ("good", "a_b%")]
    assert len(tests) == 3 * len(scored.columns) and [(test["a"], test["b"]) for test in tests[:3]] == pairs
    of_mse = [test for test in tests if test["score"] == "MSE"]
    assert [test["p"] for test in of_mse] == pytest.approx([2 / 2**COUNT] * 3)
    assert [test["p_holm"] for test in of_mse] == pytest.approx([6 / 2**COUNT] * 3)
    values = {name: {**rows, "third": rows["good"]} for name, rows in scored.values.items()}
    three = report_numbers.compare_methods(scoring.Scored(ScoreTable.of(values), scored.files, [], SIDE, 0, COUNT))
    of_mse = {(test["a"], test["b"]): test for test in three if test["score"] == "MSE"}
    assert len(of_mse) == 6 and math.isnan(of_mse.pop(("good", "third"))["p"])
    assert [test["p_holm"] for test in of_mse.values()] == pytest.approx(
        [10 / 2**COUNT] * 5
    )  # the undefined one does not count


def test_costs_come_from_the_evaluations_summaries(tmp_path):
    told = {
        "method": "GL-LCM",
        "sampler": "LCM",
        "steps": 50,
        "parameters": 436_900_000,
        "operations": 68_200_000_000_000,
        "seconds": 8.54,
        "seconds_after_warm_up": True,
        "peak_memory": 3 * 2**30,
        "peak_memory_of": "allocated on the GPU",
        "device": "NVIDIA X",
        "precision": "bf16",
        "batch_size": 2,
    }
    for name, summary in (
        ("new", told),
        ("old", {"method": "BS-LDM"}),
        ("other", {"seconds": 1.0, "parameters": 9985}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    found = report_numbers.costs({name: tmp_path / name for name in ("new", "old", "other", "absent")})
    table = report_tables.cost_table(found)
    assert table.rows == [
        ["new", "LCM", "50", "436.9 M", "68.2", "8.54", "3.00 GiB"],
        ["other", "—", "—", "0.010 M", "—", "1.00", "—"],
    ]
    assert (
        table.notes[2] == "new: NVIDIA X, bf16, batches of 2, memory allocated on the GPU"
        and "other: its only batch was timed" in table.notes[-1]
    )


@pytest.mark.slow
def test_files(scored, folders, tmp_path):
    shown = report.write(scored, tmp_path, {"good": folders / "good"})
    assert (
        "Scores as published" in shown
        and "95 %" not in shown
        and "95 % intervals" in (tmp_path / "metrics.txt").read_text()
    )
    latex = (tmp_path / "metrics.tex").read_text()
    assert latex.count(r"\begin{table}") == 6 and r"a\_b\%" in latex and "a_b%" not in latex
    assert len(set(re.findall(r"\\label\{(.*?)\}", latex))) == 6
    assert len(re.findall(r"^\*\*.*\*\*$", (tmp_path / "metrics.md").read_text(), re.M)) == 6
    sizes = {path.name: images.read(path).pixels.shape for path in tmp_path.glob("*.png")}
    assert sizes.keys() == {"metrics.png", "comparison.png", "examples_good.png", "examples_a_b_.png"}
    assert all(width == pictures.PAGE * pictures.DPI for _, width in sizes.values())


@pytest.mark.slow
def test_tables_replace_no_file_but_their_own(scored, folders, tmp_path):
    (tmp_path / "comparison.png").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="comparison.png is there already.*metrics.output="):
        report.write(scored, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.png"]
    (tmp_path / "comparison.png").unlink()
    report.write(scored, tmp_path)
    report.write(scored, tmp_path)  # over its own
    with pytest.raises(UserError, match="examples_other.png is there already"):
        (tmp_path / "examples_other.png").write_bytes(b"somebody's")
        report.refuse_foreign(tmp_path, ["good", "other"], [], "metrics.output")
    with pytest.raises(UserError, match="metrics.png is an input"):
        report.refuse_foreign(tmp_path, ["good"], [tmp_path / "metrics.png"], "metrics.output")
    (tmp_path / "metrics.json").write_text("[1]")  # somebody's own, so the rest is not known to be ours
    with pytest.raises(UserError, match="metrics.txt is there already"):
        report.refuse_foreign(tmp_path, ["good"], [], "metrics.output")


def test_there_is_no_report_of_more_images_than_a_browser_can_list(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_pictures", lambda *_: None)
    monkeypatch.setattr(report, "MOST_IMAGES", COUNT - 1)
    (tmp_path / "report.html").touch()  # of an earlier run, whose numbers are not these
    (tmp_path / "metrics.json").write_text('{"summary": {}}')
    report.write(scored, tmp_path)
    assert not (tmp_path / "report.html").exists() and "no report.html" in capsys.readouterr().err


def test_best_median_and_worst_are_by_mse(scored):
    def extremes_of(*names):
        chosen = ScoreTable.of({name: scored.values[name] for name in names})
        return report_numbers.extremes(scoring.Scored(chosen, scored.files, [], SIDE, 0, 0), "good")

    assert report_numbers.extremes(scored, "good") == {"best": "0", "median": "3", "worst": "6"}
    assert extremes_of("4", "2") == {"best": "2", "worst": "4"}
    assert extremes_of("4") == {"best": "4"}


def test_faults_end_before_a_network_is_built(folders, monkeypatch):
    monkeypatch.setattr(scores, "Lpips", lambda *_: pytest.fail("built"))
    with pytest.raises(UserError, match="nothing to score.*9 is not scored: no prediction of good, no CXR, no truth"):
        scoring.score_folders({"good": folders / "good"}, folders / "CXR", folders / "BS", names=["9"], size=SIDE)
    with pytest.raises(UserError, match="metrics.size=31 is too small"):
        scoring.score_folders({"good": folders / "good"}, folders / "CXR", folders / "BS", size=31)
    with pytest.raises(UserError, match="no folder .*none; set metrics.masks"):
        scoring.score_folders(
            {"good": folders / "good"}, folders / "CXR", folders / "BS", masks=folders / "none", size=SIDE
        )
    with pytest.raises(UserError, match="names the row of the CXR"):
        scoring.score_folders({scores.REFERENCE: folders / "good"}, folders / "CXR", folders / "BS", size=SIDE)


@pytest.mark.slow
def test_quality_against_cost_is_drawn(tmp_path):
    points = {
        "GL-LCM": [pictures.Point(8.5, 33.3, 33.0, 33.6, "50"), pictures.Point(0.5, 31.0, label="4")],
        "BS-LDM": [pictures.Point(84.6, 31.9)],
    }
    report.quality_against_cost(points, tmp_path / "cost.png")
    drawn = images.read(tmp_path / "cost.png").pixels
    report.quality_against_cost({**points, "BS-LDM": [pictures.Point(84.6, 33.3)]}, tmp_path / "other.png")
    assert drawn.std() > 0.05 and not np.array_equal(drawn, images.read(tmp_path / "other.png").pixels)


def test_a_logarithmic_axis_has_labels_at_its_main_ticks_only(monkeypatch):
    monkeypatch.setattr(pictures, "png", lambda figure: figure.axes[0].xaxis.get_ticklabels(minor=True))
    points = [pictures.Point(steps, 20 + steps / 10) for steps in (2, 5, 10, 25, 50)]
    assert not any(label.get_text() for label in pictures.trade_off({"DDPM": points}, "steps", "PSNR (dB)"))


def test_titles_of_many_columns_do_not_run_into_each_other(monkeypatch):
    monkeypatch.setattr(pictures, "png", lambda figure: figure)
    titles = ["CXR", "Gusarev et al.", "MCA-Net", "ResNet-BS", "Kalisz & Marczyk", *map(str, range(7)), "truth"]
    figure = pictures.side_by_side([{title: np.zeros((8, 8)) for title in titles}])
    figure.draw_without_rendering()
    places = [axis.title.get_window_extent() for axis in figure.axes]
    assert len(places) == len(titles)
    assert all(left.x1 < right.x0 for left, right in zip(places, places[1:]))


def test_confidence_is_what_the_table_says():
    assert statistics.CONFIDENCE == 0.95


def test_groups_and_ablations_stand_as_in_the_papers(scored, tmp_path):
    """Universal methods before task-specific ones; GL-LCM's guidances beside each other, in the paper's order."""
    methods = scored.methods[1:]
    summary = report_numbers.summarise(scored)
    groups = {methods[0]: "Task-Specific Method", methods[1]: "Universal Method"}
    table = report_tables.quality_tables(scored, summary, groups)[0]
    assert [row[0] for row in table.rows] == [scored.methods[0], methods[1], methods[0]]
    assert table.groups == {1: "Universal Method", 2: "Task-Specific Method"}
    plain = report_tables.quality_tables(scored, summary)[0]
    by_method = {row[0]: {j for i, j in table.best if table.rows[i] is row} for row in table.rows}
    assert by_method == {row[0]: {j for i, j in plain.best if plain.rows[i] is row} for row in plain.rows}

    folders = {}
    for method, guidance in zip(methods, ("leg", "vanilla")):
        folders[method] = tmp_path / guidance
        folders[method].mkdir()
        settings = {"guidance": guidance, "fusion": "poisson", "eval": {"output": guidance}}
        (folders[method] / "summary.json").write_text(json.dumps({"settings": settings}))
    [ablation] = report_tables.ablation_tables(scored, summary, folders)
    assert [row[0] for row in ablation.rows] == ["Vanilla Guidance", "LEG"]
    assert ablation.headings == ["guidance", "PSNR (dB) ↑", "LPIPS ↓"]
