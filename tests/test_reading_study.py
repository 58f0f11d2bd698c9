"""The reading study: what the readers' folder tells (nothing), a study read to the end in a browser, the tables."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import chromium, drag, grey, open_page, settle

from models.evaluation.findings import Finding
from models.reading import answers, folder, statistics
from models.reading.answers import Mark
from models.runtime.files import UserError

NAMES = ["ill", 'h"<b>ä', "well"]
SHAPE = (60, 80)
LESION = (30.0, 20.0)  # of the image "ill", x and y
METHOD = "BS <x>"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three CXRs and their soft tissue: flat but for a lesion and, in the CXR, stripes of bone that do not compress."""
    root = tmp_path_factory.mktemp("study")
    random = np.random.default_rng(0)
    for name in NAMES:
        soft = np.full(SHAPE, 0.4)
        if name == "ill":
            soft[15:26, 25:36] = 0.6
        noisy = np.clip(soft + 0.2 * random.random(SHAPE), 0, 1)
        for part, pixels in (("CXR", noisy), (METHOD, soft)):
            (root / part).mkdir(exist_ok=True)
            cv2.imwrite(str(root / part / f"{name}.png"), np.rint(pixels * 65535).astype(np.uint16))
    (root / "truth.csv").write_text("image,x,y,diameter,label\nill,30,20,10,mass\nnot read,5,5,3,mass\n")
    return root


@pytest.fixture
def run(run_here, data, tmp_path):
    """reading_study.py in a folder of the test's own."""

    def run_study(task: str, *changes: str) -> tuple[int, str, str]:
        return run_here(
            "reading_study.py",
            task,
            f"study.cxr={data / 'CXR'}",
            f'study.results=["{data / METHOD}"]',
            f"study.output={tmp_path / 'out'}",
            "study.readers=2",
            "study.least_reach=3",
            *changes,
        )

    return run_study


# --- The readers' folder ----------------------------------------------------------------------------------------------


def test_the_readers_folder_tells_nothing(run, tmp_path):
    assert run("make")[0] == 0
    reading = tmp_path / "out" / "reading"
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    paths = sorted((reading / "images").iterdir())
    assert [path.stem for path in paths] == list(key["images"]) and len(paths) == 6

    # one size and one date, although noise compresses far worse than a flat image; no chunk but the pixels'
    assert len({path.stat().st_size for path in paths}) == 1
    assert {path.stat().st_mtime for path in reading.rglob("*")} == {folder.DATE}
    for path in paths:
        content = path.read_bytes()
        names = []
        place = 8
        while place < len(content):
            length = int.from_bytes(content[place : place + 4], "big")
            names.append(content[place + 4 : place + 8])
            place += length + 12
        assert set(names) == {b"IHDR", b"IDAT", b"IEND"}

    # neither the page nor a name on the disk says a kind, a patient or where anything came from
    page = (reading / "index.html").read_text()
    held = page.split('id="data">')[1].split("</script>")[0]
    for word in [METHOD, "CXR", *NAMES, str(tmp_path)]:
        assert json.dumps(word)[1:-1] not in held and word not in held
    assert {path.name for path in reading.iterdir()} == {"index.html", "images"}

    # the pixels are those of the sources, 8 bits
    for image_id, shown in key["images"].items():
        pixels = cv2.imread(str(reading / "images" / f"{image_id}.png"), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint8 and (len(np.unique(pixels)) > 20) == (shown["kind"] == "CXR")


def test_the_same_command_gives_the_same_folder_and_another_study_is_refused(run, tmp_path):
    assert run("make")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run("make")[0] == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    status, _, told = run("make", "study.seed=1")
    assert status == 2 and "another study" in told and "study.output=" in told
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_mistakes_end_in_one_line(run, run_here, data, tmp_path):
    for changes, words in (
        (("study.results=nowhere",), "no folder nowhere"),
        (("data.patient=(.)$", "study.images=" + str(tmp_path / "one.txt")), "two patients"),
    ):
        (tmp_path / "one.txt").write_text("ill\nwell\n")
        status, _, told = run("make", *changes)
        assert status == 2 and words in told and len(told.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
    status, _, told = run("score")
    assert status == 2 and "reading_study.py make" in told
    status, _, told = run_here("reading_study.py")
    assert status == 2 and "make or score" in told
    # somebody's own files
    (tmp_path / "out" / "reading").mkdir(parents=True)
    status, _, told = run("make")
    assert status == 2 and "no record says" in told


def test_no_two_images_in_a_row_are_of_one_patient_and_rounds_are_balanced():
    for seed in range(40):
        random = np.random.default_rng(seed)
        names = [f"{number}" for number in range(9)]
        patient_of = {name: str(int(name) // 2) for name in names}  # two images each, one patient with one
        kinds = ["CXR", "a", "b"][: 2 + seed % 2]
        order = folder.draw_order(names, kinds, patient_of, random)
        assert sorted(order) == sorted((name, kind) for name in names for kind in kinds)
        owners = [patient_of[name] for name, _ in order]
        assert all(first != second for first, second in zip(owners, owners[1:]))
        for start in range(0, len(order), len(names)):
            block = order[start : start + len(names)]
            assert len({name for name, _ in block}) == len(names)
            counts = [sum(kind == each for _, each in block) for kind in kinds]
            assert max(counts) - min(counts) <= 1
    with pytest.raises(UserError, match="in a row"):
        folder.draw_order(["1", "2", "3"], ["CXR", "a"], {"1": "p", "2": "p", "3": "q"}, np.random.default_rng(0))


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_marks_are_matched_to_the_nearest_lesion_within_reach():
    lesions = [Finding("x", 10, 10, 8), Finding("x", 20, 10, 8), Finding("x", 90, 90, 2)]
    marks = [Mark(12, 10, 2), Mark(9, 9, 5), Mark(16.5, 10, 3), Mark(50, 50, 4), Mark(93, 90, 1)]
    matched = answers.match(marks, lesions, answers.Reach(1.0, 3.0))
    # two marks on the first lesion count once; 3 pixels are more than the radius of the third, but within least_reach
    assert matched.by_lesion == statistics.Counts(3, 1, 0) and matched.ratings == (5, 3, 1) and matched.false == 4
    assert matched.by_image == statistics.Counts(1, 0, 0)
    strict = answers.match(marks, lesions, answers.Reach(0.5, 0.0))
    assert strict.found == (True, False, False) and strict.by_lesion == statistics.Counts(1, 3, 2)
    nothing = answers.match([], [], answers.Reach(1, 1))
    assert nothing.by_image == statistics.Counts() and nothing.false == answers.UNMARKED


def test_mcnemar_kappa_and_afroc_are_those_of_the_books():
    # 6 against 1: 2 (C(7, 0) + C(7, 1)) / 2^7
    a = [True] * 6 + [False] + [True, False]
    b = [False] * 6 + [True] + [True, False]
    assert statistics.mcnemar(a, b) == (6, 1, pytest.approx(2 * (1 + 7) / 128))
    assert math.isnan(statistics.mcnemar([True], [True])[2])

    # observed [[2, 1, 0], [0, 1, 0], [1, 0, 1]]: Σ w O = 1 + 4 = 5; margins (3, 1, 2) and (3, 2, 1):
    # Σ w E = (1 (3 2 + 1 3 + 1 1 + 2 2) + 4 (3 1 + 2 3)) / 6 = (14 + 36) / 6
    first = [1, 1, 1, 2, 3, 3]
    second = [1, 1, 2, 2, 1, 3]
    assert statistics.weighted_kappa(first, second, [1, 2, 3]) == pytest.approx(1 - 5 / (50 / 6))
    assert statistics.weighted_kappa(first, first, [1, 2, 3]) == 1
    assert math.isnan(statistics.weighted_kappa([2, 2], [2, 2], [1, 2, 3]))

    # lesions 5, 3 and one unmarked; images 3 and one unmarked: 5 beats both; 3 ties and beats; unmarked loses and ties
    unmarked = answers.UNMARKED
    assert statistics.afroc_area([5, 3, unmarked], [3, unmarked]) == pytest.approx((2 + 1.5 + 0.5) / 6)


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = statistics.interval(400, lambda places: values[places].mean(1), np.random.default_rng(1))
    reach = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.01) and high == pytest.approx(
        values.mean() + reach, abs=0.01
    )
    assert all(map(math.isnan, statistics.interval(1, lambda places: np.zeros(len(places)), np.random.default_rng(0))))


# --- Scoring ----------------------------------------------------------------------------------------------------------


def write_answers(key: dict, reader: str, place: Path, **changes) -> dict:
    """A reader who rates soft tissue best, finds the lesion on it alone and sees a false one on a healthy CXR."""
    given = {}
    for image_id, shown in key["images"].items():
        is_soft = shown["kind"] != "CXR"
        marks = []
        if shown["image"] == "ill" and is_soft:
            marks.append({"x": LESION[0] + 0.5, "y": LESION[1] + 0.5, "width": 0, "height": 0, "confidence": 5})
        if shown["image"] == "well" and not is_soft:
            marks.append({"x": 5, "y": 5, "width": 4, "height": 4, "confidence": 2})
        ratings = {"vessels": 3, "airways": 2, "bone": 3} if is_soft else {"vessels": 2, "airways": 2, "bone": 1}
        given[image_id] = {**ratings, "marks": marks, "none": not marks, "seconds": 20.0 if is_soft else 30.0}
    tree = {"study": key["study"], "reader": reader, "experience": 6, "answers": given, **changes}
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{reader}.json").write_text(json.dumps(tree))
    return tree


def test_tables_of_two_readers(run, data, tmp_path):
    run("make")
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    place = tmp_path / "out" / "answers"
    write_answers(key, "1", place)
    second = write_answers(key, "2", place, experience=None)
    # the second reader differs in one rating, and leaves one image unread
    unread = next(each for each, shown in key["images"].items() if shown == {"image": "well", "kind": METHOD})
    rated = next(each for each, shown in key["images"].items() if shown == {"image": "ill", "kind": METHOD})
    del second["answers"][unread]
    second["answers"][rated]["vessels"] = 1
    (place / "2.json").write_text(json.dumps(second))
    status, shown, told = run("score", f"study.truth={data / 'truth.csv'}")
    assert status == 1 and "reader 2: 1 of 6 images are not read" in told
    assert "Lung vessel visibility" in shown

    rows = list(csv.DictReader((tmp_path / "out" / "reading.csv").open()))
    assert len(rows) == 11
    hit = next(row for row in rows if row["image"] == "ill" and row["kind"] == METHOD and row["reader"] == "2")
    assert (hit["vessels"], hit["tp"], hit["fp"], hit["fn"], hit["seconds"]) == ("1", "1", "0", "0", "20.0")
    for suffix in ("txt", "md", "tex"):
        assert (tmp_path / "out" / f"reading.{suffix}").stat().st_size > 1000
    assert r"BS \textless{}x\textgreater{}" in (tmp_path / "out" / "reading.tex").read_text()

    status, _, told = run("score", "study.truth=" + str(data / "none.csv"))
    assert status == 2 and "cannot read the findings" in told


def test_answers_that_cannot_be_scored_are_refused(run, tmp_path):
    run("make")
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    place = tmp_path / "out" / "answers"
    for changes, words in (
        ({"study": "other"}, "another study"),
        ({"answers": {"nobody": {}}}, "does not know: nobody"),
        ({"answers": 3}, "no file of a reader's answers"),
    ):
        write_answers(key, "1", place, **changes)
        status, _, told = run("score")
        assert status == 2 and words in told and len(told.strip().splitlines()) == 1
    tree = write_answers(key, "1", place)
    (place / "copy.json").write_text(json.dumps(tree))
    status, _, told = run("score")
    assert status == 2 and "second file of reader 1" in told


# --- In a browser -----------------------------------------------------------------------------------------------------


def read_image(page, shown: dict) -> None:
    """Read the image on the screen, as `write_answers` does, by keys and pointer."""
    is_soft = shown["kind"] != "CXR"
    for rating in "323" if is_soft else "221":
        page.keyboard.press(f"Digit{rating}")
    stage = page.locator("#stage").bounding_box()
    place = page.evaluate("viewer.geometry(viewer.panes[0])")

    def on_screen(x: float, y: float) -> tuple[float, float]:
        return stage["x"] + place["left"] + x * place["scale"], stage["y"] + place["top"] + y * place["scale"]

    if shown["image"] == "ill" and is_soft:
        page.click("#tool-mark")
        page.mouse.click(*on_screen(LESION[0] + 0.5, LESION[1] + 0.5))
        page.select_option(".marks select", "5")
    elif shown["image"] == "well" and not is_soft:
        page.click("#tool-mark")
        drag(page, on_screen(3, 3), on_screen(7, 7))
        page.select_option(".marks select", "2")
    else:
        page.keyboard.press("n")


@pytest.mark.slow
def test_a_study_of_six_images_is_read_to_the_end_and_scored(run, data, tmp_path):
    run("make")
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    order = key["orders"]["2"]
    with chromium() as browser:
        page = open_page(browser, tmp_path / "out" / "reading" / "index.html", accept_downloads=True)
        assert page.inner_text("#total") == "6"
        page.select_option("#reader", "2")
        page.fill("#experience", "11")
        page.click("#begin")
        settle(page)

        # window and level work here too; every image begins with the file's own
        middle = grey(page, 0.5, 0.9)
        page.keyboard.press("i")
        assert abs(grey(page, 0.5, 0.9) - (255 - middle)) < 2
        # nobody goes on with something left to say
        page.keyboard.press("Enter")
        assert "lung vessel visibility" in page.inner_text("#lacking") and "1 of 6" in page.inner_text("#where")

        for number, image_id in enumerate(order[:3]):
            assert f"{number + 1} of 6" in page.inner_text("#where") and page.evaluate("viewer.inverted") == (
                number == 0
            )
            read_image(page, key["images"][image_id])
            page.click("#next")
        # closed and opened again: the browser has kept the answers, and the fourth image comes
        page.reload()
        page.select_option("#reader", "2")
        page.click("#begin")
        assert "4 of 6" in page.inner_text("#where")
        for image_id in order[3:]:
            read_image(page, key["images"][image_id])
            page.click("#next")
        assert page.locator("#end").is_visible()
        with page.expect_download() as download:
            page.click("#save-end")
        assert download.value.suggested_filename == "answers_2.json"
        place = tmp_path / "out" / "answers"
        place.mkdir()
        download.value.save_as(place / "answers_2.json")
        assert page.faults == []

    written = json.loads((place / "answers_2.json").read_text())
    assert written["complete"] and written["experience"] == 11 and set(written["answers"]) == set(order)
    assert all(0 < answer["seconds"] < 300 for answer in written["answers"].values())

    # scored, and compared with a table by hand: of one lesion the CXR shows none and has a false mark, soft tissue one
    status, _, told = run("score", f"study.truth={data / 'truth.csv'}")
    assert status == 1 and told.strip() == "reader 1: no file of answers"
    text = (tmp_path / "out" / "reading.txt").read_text()
    reader = "reader 2 (11 years)"
    by_hand = {
        "Lung vessel visibility": ("2.000", "3.000"),
        "Airway visibility": ("2.000", "2.000"),
        "Degree of bone suppression": ("1.000", "3.000"),
    }
    lines = text.splitlines()
    for title, (on_cxr, on_soft) in by_hand.items():
        rows = [line for line in lines if line.startswith(title) and "[" in line]
        assert [row.split(" [")[0].split()[-1] for row in rows] == [on_cxr, on_soft]
    table = text.split("Lesions found")[1].split("Images told")[0].splitlines()
    rows = [line for line in table if line.startswith(reader)]
    # TP, FP, FN, precision, recall, F1
    assert rows[0].split("CXR")[1].split()[:4] == ["0", "1", "1", "0.000"]
    assert rows[1].split(METHOD)[1].split()[:4] == ["1", "0", "0", "1.000"]
    area = next(line for line in text.split("AFROC curve")[1].splitlines() if line.startswith(reader))
    # CXR: the unmarked lesion ties with one healthy image and loses to the other; soft tissue: it beats both
    assert "0.250 [" in area and "1.000 [" in area
