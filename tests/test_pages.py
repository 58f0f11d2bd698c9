"""The pages of results, used in a browser as a person would use them, from the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, drag, grey, open_page, settle, until

from models import images, scores
from models.evaluation import index_page, report_page, results, scoring
from models.evaluation.findings import Finding
from models.evaluation.score_table import ImageFiles, ScoreTable
from models.evaluation.tables import Table
from models.runtime.files import write_text
from models.viewing import page as pages

CXR, RESULT, TRUTH = 140, 120, 110  # grey values of the test's images
SHAPE = (96, 128)
HOSTILE = '"a"\'<img src=x onerror=alert(1)>&amp;%41#Grün ä'
NAMES = ["plain", HOSTILE, "script<script>alert(2)<∕script>", "no truth"]
MANY = 5000


def flat(level: float) -> np.ndarray:
    return np.full(SHAPE, level / 255, np.float32)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def write_evaluation(folder: Path) -> Path:
    """Results and panels as an evaluation writes them; the first image has the best PSNR."""
    output = results.Output(folder)
    figures: dict[str, dict] = {}
    for number, name in enumerate(NAMES):
        scan = images.Picture(flat(CXR), 8, folder / "scan.png")
        target = None
        if name != "no truth":
            target = flat(TRUTH)
        noted = results.write_result(output, name, scan, flat(RESULT + number), target)
        for key, value in noted.items():
            figures.setdefault(key, {})[name] = value
    seconds = {name: 1.0 + number for number, name in enumerate(NAMES)}
    return index_page.write(output, {"method": "<b>BS-LDM</b>", "seconds_per_image": seconds, **figures})


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("pages") / "ünd & <b>")


def test_a_page_is_one_file_and_its_data_cannot_leave_their_element():
    content = pages.fill("results", {"title": "</title><script>", "name": "</script><!-- & \u2028", "x": float("nan")})
    text = content.decode()
    held = text.split('id="data">')[1].split("</script>")[0]
    assert "<" not in held and "&" not in held
    assert json.loads(held) == {"title": "</title><script>", "name": "</script><!-- & \u2028", "x": None}
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


def test_a_page_is_written_image_by_image_as_it_would_be_at_once(tmp_path):
    data = {"title": "&", "layers": [1, {"a": None}]}
    for count in (0, 1, 3):
        entries = [{"name": f"<{number}>", "values": [[float("inf")]]} for number in range(count)]
        write_text(tmp_path / "index.html", pages.pieces("results", data, iter(entries)))
        assert (tmp_path / "index.html").read_bytes() == pages.fill("results", {**data, "images": entries})


def test_links_are_percent_encoded_and_keep_their_folders():
    assert pages.link('a b/c#1?%41"<é>.png') == "a%20b/c%231%3F%2541%22%3C%C3%A9%3E.png"


def test_a_panel_without_truth_is_told_by_the_results_shape():
    for shape in ((100, 100), (100, 133), (133, 100), (64, 200)):
        for columns in (3, 4):
            panel = results.panel({str(number): np.zeros(shape) for number in range(columns)})
            size = (panel.shape[1], panel.shape[0])
            entry = index_page._panel_entry("x", size, (shape[1], shape[0]))
            assert len(entry["layers"]) == columns and (entry["height"], entry["width"]) == shape


def test_layers_that_few_images_have(tmp_path):
    """A deviation where several results were drawn; no layer of truth where no image has one."""
    output = results.Output(tmp_path)
    for name in ("a", "b"):
        results.write_result(output, name, images.Picture(flat(CXR), 8, tmp_path), flat(RESULT), None)
    images.write(tmp_path / "deviation" / "b.png", flat(9), 16)
    place = index_page.write(output, {"seconds_per_image": {"a": 1.0}, "results_of_earlier_runs": ["b", "deleted"]})
    data = json.loads(place.read_text().split('id="data">')[1].split("</script>")[0])
    assert [layer["title"] for layer in data["layers"]] == ["CXR", "result", "deviation"]
    assert [(entry["name"], entry.get("further"), entry["values"]) for entry in data["images"]] == [
        ("a", None, [[1.0]]),
        ("b", [2], [[None]]),
    ]


@pytest.mark.slow
def test_the_viewer_shows_windows_slides_and_subtracts(browser, evaluation):
    page = open_page(browser, evaluation)
    assert page.title() == "<b>BS-LDM</b>: ünd & <b>"

    # beside each other: CXR and result above, truth below
    page.click("#mode-grid")
    assert page.locator(".pane").count() == 3
    page.keyboard.press("3")  # the truth goes
    assert page.locator(".pane").count() == 2
    # two panes lie above each other or beside each other; the first is the CXR in both cases
    assert grey(page, 0.25, 0.25) == CXR and grey(page, 0.75, 0.75) == RESULT

    # slider: the CXR to the left of it, moved by its handle and by keys
    page.keyboard.press("s")
    assert grey(page, 0.3, 0.4) == CXR and grey(page, 0.7, 0.4) == RESULT
    handle = page.locator(".divider").bounding_box()
    stage = page.locator("#stage").bounding_box()
    middle = handle["y"] + handle["height"] / 2
    drag(page, (handle["x"] + handle["width"] / 2, middle), (stage["x"] + 0.8 * stage["width"], middle))
    assert grey(page, 0.7, 0.4) == CXR
    for _ in range(10):
        page.keyboard.press("ArrowLeft")  # two percent each
    assert grey(page, 0.7, 0.4) == RESULT and grey(page, 0.5, 0.4) == CXR

    # window: 100 pixels to the left make it 60 grey values narrower
    x, y = stage["x"] + 200, stage["y"] + 100
    drag(page, (x, y), (x - 100, y))
    assert "window 195, level 128" in page.inner_text("#status-window")
    seen = 127.5 + 255 * (RESULT - 127.5) / 195
    assert abs(grey(page, 0.7, 0.4) - seen) < 2
    page.keyboard.press("i")
    assert abs(grey(page, 0.7, 0.4) - (255 - seen)) < 2
    page.keyboard.press("r")
    assert grey(page, 0.7, 0.4) == RESULT

    # difference of CXR and result, twice; grey where there is none
    page.keyboard.press("d")
    assert abs(grey(page, 0.5, 0.5) - (127.5 + 2 * (CXR - RESULT))) < 3
    page.select_option("#front", label="CXR")
    assert abs(grey(page, 0.5, 0.5) - 127.5) < 3

    # blink
    page.select_option("#front", label="result")
    page.keyboard.press("b")
    seen_levels = {grey(page, 0.5, 0.5)}
    page.keyboard.press(" ")
    seen_levels.add(grey(page, 0.5, 0.5))
    assert seen_levels <= {CXR, RESULT}
    until(page, "!viewer.frontShown")
    until(page, "viewer.frontShown")
    assert page.faults == []
    page.close()


@pytest.mark.slow
def test_panes_zoom_and_move_in_step_and_findings_of_a_csv_are_drawn(browser, evaluation):
    page = open_page(browser, evaluation)
    before = page.locator(".cut").first.bounding_box()["width"]
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + 100, stage["y"] + 100)
    page.mouse.wheel(0, -500)
    until(page, "viewer.zoom > 2")
    widths = page.eval_on_selector_all(".cut", "(all) => all.map((each) => each.style.width + each.style.left)")
    assert len(widths) == 3 and len(set(widths)) == 1
    assert page.locator(".cut").first.bounding_box()["width"] > 2 * before
    page.keyboard.press("0")
    assert page.locator(".cut").first.bounding_box()["width"] == before

    # a CSV that the reader opens: VinDr's boxes, an ending, a comma in quotes
    csv = (
        'image_id,x_min,y_min,x_max,y_max,class_name\nplain.png,20,30,40,50,"<i>mass</i>, left"\nother,,,,,No finding\n'
    )
    page.set_input_files("#findings-file", {"name": "f.csv", "mimeType": "text/csv", "buffer": csv.encode()})
    page.wait_for_selector("circle.finding")
    assert page.locator("circle.finding").count() == 3
    assert page.locator(".overlay text").first.text_content() == "<i>mass</i>, left"
    pane, circle = (page.locator(part).first.bounding_box() for part in (".cut", "circle.finding"))
    scale = pane["width"] / SHAPE[1]
    assert circle["x"] + circle["width"] / 2 == pytest.approx(pane["x"] + 30.5 * scale, abs=1.5)
    page.keyboard.press("f")
    assert page.locator("circle.finding").count() == 0

    bad = {"name": "f.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"}
    page.set_input_files("#findings-file", bad)
    until(page, "document.getElementById('status-note').textContent.includes('has the columns')")
    assert page.faults == []
    page.close()


@pytest.mark.slow
def test_the_list_is_searched_and_sorted_and_no_name_does_harm(browser, evaluation):
    page = open_page(browser, evaluation)
    entries = page.locator(".entry .words div:first-child")
    assert entries.all_text_contents() == NAMES
    page.fill("#search", "GRÜN")
    assert entries.all_text_contents() == [HOSTILE] and page.inner_text("#count") == "1 of 4 images"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    settle(page)
    assert page.inner_text("#status-name") == HOSTILE
    assert page.eval_on_selector_all(".stage img", "(all) => all.every((each) => each.naturalWidth > 0)")
    assert page.eval_on_selector(".thumb", "(each) => each.complete && each.naturalWidth > 0")

    # by PSNR: results go away from the truth one by one; what has none stands last in both orders
    page.fill("#search", "")
    page.select_option("#sort", label="by PSNR (dB)")
    assert entries.all_text_contents() == [NAMES[2], NAMES[1], NAMES[0], NAMES[3]]
    page.click("#direction")
    assert entries.all_text_contents() == [NAMES[0], NAMES[1], NAMES[2], NAMES[3]]
    assert page.faults == []
    page.close()


@pytest.mark.slow
def test_five_thousand_images_cost_no_more_than_few(browser, tmp_path):
    entry = {"width": 4, "height": 4, "file": "x.png", "layers": [0, None], "strip": 0}
    entries = [{**entry, "name": f"image {number}", "values": [[number % 97]]} for number in range(MANY)]
    layers = [{"title": "CXR", "folder": ""}]
    methods = [{"title": "result", "layer": 0}]
    data = {"title": "many", "subtitle": "", "layers": layers, "panels": "", "methods": methods, "images": entries}
    data["scores"] = [pages.score("x", "x", 1, "larger")]
    (tmp_path / "index.html").write_bytes(pages.fill("results", data))
    page = open_page(browser, tmp_path / "index.html")
    assert page.locator(".entry").count() < 60
    page.keyboard.press("End")
    assert page.inner_text("#status-name") == f"image {MANY - 1}"
    page.wait_for_selector(f"#entry-{MANY - 1}[aria-selected=true]")
    page.select_option("#sort", "0")
    page.fill("#search", "4999")
    assert page.locator(".entry").count() == 1
    page.close()


# --- The report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    methods = [scores.REFERENCE, "<b>one</b>", "two"]
    columns = [*scores.PUBLISHED, *scores.BESIDE, *scores.BY_PLACE_AND_WIDTH]
    values = {}
    files = {}
    for number, name in enumerate(NAMES):
        for part, level in (("CXR", CXR), ("BS", TRUTH), ("one", RESULT), ("two", RESULT + 40)):
            images.write(folder / part / f"{number}.png", flat(level), 16)
        values[name] = {}
        for place, method in enumerate(methods):
            values[name][method] = {column.key: 10.0 * place + number for column in columns}
        predictions = {method: folder / part / f"{number}.png" for method, part in zip(methods[1:], ("one", "two"))}
        file = f"{number}.png"
        files[name] = ImageFiles(folder / "CXR" / file, folder / "BS" / file, None, predictions)
    values[NAMES[3]]["two"]["PSNR"] = float("inf")
    scored = scoring.Scored(ScoreTable.of(values), files, [], 64, 0, 0)
    table = Table("<i>Title</i>", ["method", "PSNR"], [["<b>one</b>", "1"], ["two", "2"]], {(1, 1)}, ["a note"])
    report_page.write(scored, folder / "out", [table], [Finding(HOSTILE, 31.5, 15.5, 20, "<u>x</u>")])
    # the page and its copies are all that it needs
    for part in ("CXR", "BS", "one", "two"):
        for path in (folder / part).iterdir():
            path.unlink()
    return folder / "out" / report_page.REPORT


@pytest.mark.slow
def test_a_dot_of_the_plot_leads_to_its_image(browser, report):
    page = open_page(browser, report)
    # PSNR first: a dot for each finite value
    assert page.evaluate("dots.length") == 3 * len(NAMES) - 1
    dot = page.evaluate("dots.find((dot) => dot.place === 1 && dot.method === 2)")
    plot = page.locator("#plot").bounding_box()
    page.mouse.click(plot["x"] + dot["x"], plot["y"] + dot["y"])
    settle(page)
    assert page.inner_text("#status-name") == HOSTILE and page.locator(".pane").count() == 4
    assert page.eval_on_selector_all(".stage img", "(all) => all.every((each) => each.naturalWidth === 64)")
    assert page.locator(".overlay text").first.text_content() == "<u>x</u>"
    captions = page.locator(".caption").all_text_contents()
    assert captions[2] == "<b>one</b>PSNR (dB) 11.000" and captions[3].endswith("21.000")

    # keys walk through the images by their score
    page.focus("#plot")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#status-name") == NAMES[2]

    # method against truth: the two layers are chosen by keys
    page.focus("#list")
    page.keyboard.press("d")
    page.keyboard.press("Shift+Digit2")
    page.keyboard.press("Digit3")
    assert abs(grey(page, 0.5, 0.5) - (127.5 + 2 * (TRUTH - RESULT))) < 3
    assert page.faults == []
    page.close()


@pytest.mark.slow
def test_tables_stand_in_the_report(browser, report):
    page = open_page(browser, report)
    page.keyboard.press("t")
    assert page.inner_text("#tables h2") == "<i>Title</i>" and page.inner_text("#tables td.best") == "2"
    assert page.locator("#tables tbody th").all_text_contents() == ["<b>one</b>", "two"]
    page.keyboard.press("t")
    assert page.locator("#stage").is_visible() and page.faults == []
    page.close()


def test_copies_are_of_eight_bits_and_in_the_images_own_shape(report):
    for column in ("cxr", "truth", "1", "2", "thumbs"):
        paths = sorted((report.parent / report_page.COPIES / column).iterdir())
        assert len(paths) == len(NAMES)
        picture = images.read(paths[0])
        assert picture.bits == 8 and picture.pixels.shape == ((72, 96) if column == "thumbs" else (48, 64))
    assert images.read(report.parent / report_page.COPIES / "cxr" / "000000.png").pixels.max() * 255 == CXR
