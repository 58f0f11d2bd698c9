"""Scores and files of many images: what goes in comes out, in little memory."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from models import images
from models.evaluation import pictures, scoring
from models.evaluation.score_table import FileTable, Listing, ScoreTable

KEYS = [f"score {number}" for number in range(20)]


def row_of(number: int) -> dict:
    return {
        "untouched CXR": {key: number + place / 7 for place, key in enumerate(KEYS)},
        "method": {key: -number * place / 3 for place, key in enumerate(KEYS)},
    }


def test_rows_and_series_are_what_was_added():
    rows = {f"image {number}": row_of(number) for number in range(5)}
    rows["image 3"]["method"]["score 2"] = math.inf
    table = ScoreTable.of(rows)
    assert dict(table) == rows and list(table) == list(rows) and table.methods == ["untouched CXR", "method"]
    expected = [row["method"]["score 2"] for row in rows.values()]
    assert table.series("method", "score 2").tolist() == expected
    # a series that was asked for does not hinder further images, nor change with them
    series = table.series("method", "score 1")
    table.add("another", row_of(9))
    assert len(series) == 5 and len(table) == 6 and table["another"] == row_of(9)


def test_a_row_without_a_score_is_refused_and_leaves_the_table_as_it_was():
    table = ScoreTable.of({"a": row_of(1)})
    incomplete = row_of(2)
    del incomplete["method"][KEYS[-1]]
    with pytest.raises(KeyError, match=KEYS[-1]):
        table.add("b", incomplete)
    table.add("c", row_of(3))
    assert dict(table) == {"a": row_of(1), "c": row_of(3)}


def test_memory_is_that_of_the_numbers():
    count = 3000
    folder = {f"{number:06}": Path("/data/CXR") / f"{number:06}.png" for number in range(count)}
    listing = Listing.of(folder)
    tracemalloc.start()
    table = ScoreTable()
    files = FileTable(Path("/data/CXR"), Path("/data/BS"), None, {"method": Path("/runs/method")})
    for number, name in enumerate(listing.endings):
        table.add(name, row_of(number))
        files.add(name, ".png", ".png", None, [".png"])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 40 numbers of 8 bytes, and two entries of a dictionary; as dictionaries and paths both take 4000
    assert taken < 800 * count


def test_files_are_found_by_the_endings_of_their_names(tmp_path):
    for part in ("CXR", "BS", "Mask", "one", "two"):
        (tmp_path / part).mkdir()
    for file in ("CXR/a.b.png", "BS/a.b.TIF", "one/a.b.bmp", "two/a.b.png", "CXR/c.png", "BS/c.png", "one/c.png"):
        (tmp_path / file).touch()
    (tmp_path / "two" / "c.jpg").touch()
    (tmp_path / "Mask" / "c.png").touch()
    cxr, target, masks, one, two = (
        Listing.of(images.find(tmp_path / part)) for part in ("CXR", "BS", "Mask", "one", "two")
    )
    files, faults = scoring._match(cxr, target, masks, {"one": one, "two": two}, ["c", "a.b", "d"])
    assert list(files) == ["c", "a.b"] and faults == [
        "d is not scored: no prediction of one, no prediction of two, no CXR, no truth"
    ]
    assert files["a.b"].cxr == tmp_path / "CXR" / "a.b.png" and files["a.b"].target == tmp_path / "BS" / "a.b.TIF"
    assert files["a.b"].mask is None and files["c"].mask == tmp_path / "Mask" / "c.png"
    assert files["a.b"].predictions == {"one": tmp_path / "one" / "a.b.bmp", "two": tmp_path / "two" / "a.b.png"}
    assert files["c"].predictions["two"] == tmp_path / "two" / "c.jpg"


def test_a_box_plot_of_many_images_draws_some_of_them_with_the_extremes(monkeypatch):
    drawn = []

    def keep(figure):
        axis = figure.axes[0]
        drawn.extend(line.get_ydata() for line in axis.lines if line.get_marker() == ".")
        return b""

    monkeypatch.setattr(pictures, "png", keep)
    few = np.random.default_rng(0).normal(size=50)
    many = np.random.default_rng(1).permutation(np.arange(5 * pictures.MOST_POINTS))
    pictures.boxes([{"PSNR": {"few": few, "many": many}}])
    assert np.array_equal(drawn[0], few)
    assert len(drawn[1]) == pictures.MOST_POINTS and drawn[1].min() == 0 and drawn[1].max() == many.max()
