"""Findings and the model observer against closed forms."""

import numpy as np
import pytest
from scipy.special import ndtr

from models import images
from models.evaluation import findings, findings_tables, observer
from models.runtime.files import UserError

SIZE = 256


# --- The observer -----------------------------------------------------------------------------------------------------


def test_channels_are_orthonormal():
    channels = observer.laguerre_gauss(121, 20.0)
    np.testing.assert_allclose(channels @ channels.T, np.eye(observer.CHANNELS), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("detectability", (0.8, 1.6))
def test_an_observer_on_white_noise_with_a_known_signal_reaches_its_theoretical_auc(detectability):
    """A signal inside the channels' span: the Hotelling observer is ideal, AUC = Phi(d' / sqrt(2))."""
    random = np.random.default_rng(5)
    channels = observer.laguerre_gauss(33, 10.0)
    signal = channels[0] + 0.5 * channels[1]
    signal *= detectability / np.linalg.norm(signal)
    count, groups = 4000, np.arange(4000) % 20
    noise = random.standard_normal((2, count, len(signal)), np.float32)
    scores = observer.cross_validate((noise[0] + signal) @ channels.T, noise[1] @ channels.T, groups, groups)
    assert observer.auc(*scores) == pytest.approx(ndtr(detectability / np.sqrt(2)), abs=0.02)


def test_cross_validation_finds_nothing_where_there_is_nothing():
    """Trained and tested on the same few patches the AUC would be far above 0.5."""
    random = np.random.default_rng(1)
    aucs = []
    for _ in range(30):
        present, absent = random.standard_normal((2, 20, 6))
        aucs.append(observer.auc(*observer.cross_validate(present, absent, np.arange(20) // 2, np.arange(20) // 2)))
    assert np.mean(aucs) < 0.6


def test_auc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(2)
    present, absent = random.integers(0, 6, 40), random.integers(0, 5, 30)
    pairs = (present[:, None] > absent).mean() + 0.5 * (present[:, None] == absent).mean()
    assert observer.auc(present, absent) == pytest.approx(pairs)


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_the_difference_and_is_0_for_the_same_scores():
    random = np.random.default_rng(3)
    groups = np.arange(120) // 4
    weak = random.standard_normal(120) + 0.5, random.standard_normal(120)
    strong = weak[0] + 1.5, weak[1]
    better = observer.compare(weak, strong, groups, groups)
    assert 0 < better.low < better.difference < better.high and better.difference == better.after - better.before
    same = observer.compare(weak, weak, groups, groups)
    assert same.low == same.difference == same.high == 0


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="image"):
        observer.cross_validate(np.zeros((3, 6)), np.zeros((3, 6)), np.zeros(3), np.zeros(3))


# --- Contrast ---------------------------------------------------------------------------------------------------------


def blob(size, x, y, diameter, height=0.2, ground=0.4):
    """An image of one disc with a sharp edge."""
    distance = np.hypot(np.arange(size)[None, :] - x, np.arange(size)[:, None] - y)
    return ground + height * (distance <= diameter / 2)


def test_contrast_of_a_disc_is_its_height():
    finding = findings.Finding("a", 100, 80, 30)
    assert findings.contrast(blob(SIZE, 100, 80, 30), finding)[0] == pytest.approx(0.2)


def test_contrast_to_noise_is_in_units_of_the_rings_deviation():
    random = np.random.default_rng(0)
    image = blob(SIZE, 120, 120, 60) + random.normal(0, 0.05, (SIZE, SIZE))
    assert findings.contrast(image, findings.Finding("a", 120, 120, 60))[1] == pytest.approx(0.2 / 0.05, rel=0.05)


def test_a_finding_outside_the_image_has_no_contrast():
    assert np.isnan(findings.contrast(np.zeros((50, 50)), findings.Finding("a", 500, 500, 10))).all()


def test_slope_on_the_target_is_what_the_result_keeps_of_it():
    random = np.random.default_rng(0)
    target = random.random((60, 60))
    assert findings.slope_on_target(0.7 * target + 0.1, target, findings.Finding("a", 30, 30, 20)) == pytest.approx(0.7)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_both_kinds_of_lists_are_read(tmp_path):
    (tmp_path / "points.csv").write_text("image,x,y,diameter,label\na.png,10,20,6,nodule\nb,30.5,40,12,\n")
    expected = [findings.Finding("a", 10, 20, 6, "nodule"), findings.Finding("b", 30.5, 40, 12)]
    assert findings.read(tmp_path / "points.csv") == expected
    (tmp_path / "vindr.csv").write_text(
        "image_id,class_name,rad_id,x_min,y_min,x_max,y_max\na,Nodule/Mass,R1,10,20,30,50\nb,No finding,R1,,,,\n"
    )
    assert findings.read(tmp_path / "vindr.csv") == [findings.Finding("a", 20, 35, 25, "Nodule/Mass")]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("image,x,y\na,1,2\n", "diameter"),
        ("image,x,y,diameter\na,1,two,3\n", "line 2"),
        ("image,x,y,diameter\na,1,2,0\n", "line 2"),
        ("image,x,y,diameter\n", "no finding"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, text, complaint):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        findings.read(tmp_path / "list.csv")


@pytest.fixture
def folders(tmp_path):
    """Four X-rays with two discs each under noise, results that halve the contrast, masks and a list; (folder,
    findings)."""
    random = np.random.default_rng(0)
    found, lungs = [], np.ones((SIZE, SIZE), np.float32)
    for number in range(4):
        left = (random.integers(40, 100), random.integers(40, 216))
        right = (random.integers(150, 216), random.integers(40, 216))
        places = [left, right]
        soft = 0.4 + sum(blob(SIZE, x, y, 16, ground=0) for x, y in places) + random.normal(0, 0.01, (SIZE, SIZE))
        found += [findings.Finding(str(number), float(x), float(y), 16) for x, y in places]
        for name, pixels in {"CXR": soft, "half": 0.5 * soft + 0.2, "BS": soft, "Mask": lungs}.items():
            images.write(tmp_path / name / f"{number}.png", pixels.astype(np.float32), 16)
    return tmp_path, found


def measured(folders, found, **keywords):
    return findings.measure({"half": folders / "half"}, folders / "CXR", found, masks=folders / "Mask", **keywords)


@pytest.mark.slow
def test_a_result_that_halves_everything_keeps_half_in_tables_and_files(folders):
    folder, found = folders
    result = measured(folder, found, target=folder / "BS")
    kept = [row.kept for row in result.rows["half"]]
    np.testing.assert_allclose(kept, 0.5, atol=2e-3)
    np.testing.assert_allclose([row.slope for row in result.rows["half"]], 0.5, atol=2e-3)
    untouched, half = result.rows[findings.UNTOUCHED][0], result.rows["half"][0]
    assert half.noise_after == pytest.approx(untouched.noise_before, rel=0.02)  # noise is halved as well

    contrasts, observers = findings_tables.tables(result)
    assert [row[1] for row in contrasts.rows] == ["1.000", "0.500"] and contrasts.rows[1][3] == "100 %"
    comparison = result.observers["half"]
    assert comparison.before > 0.95 and abs(comparison.difference) < 0.02  # an observer does not mind a scale

    text = findings_tables.write(result, folder / "out")
    assert "0.500" in text and (folder / "out" / "findings.txt").read_text() == text
    assert len((folder / "out" / "findings.csv").read_text().splitlines()) == 1 + 2 * len(found)
    assert images.read(folder / "out" / "findings.png").pixels.size


@pytest.mark.slow
def test_an_image_that_a_folder_lacks_is_named_and_the_rest_measured(folders):
    folder, found = folders
    (folder / "half" / "2.png").unlink()
    result = measured(folder, found)
    assert len(result.rows["half"]) == 6 and len(result.faults) == 1 and "half" in result.faults[0]
    assert all(np.isnan(row.slope) for row in result.rows["half"])
    alone = measured(folder, found[:2])  # two findings of one X-ray
    assert not alone.faults and "no model observer" in findings_tables.tables(alone)[0].notes[0]
    with pytest.raises(UserError, match="no finding"):
        measured(folder, [findings.Finding("elsewhere", 1, 1, 5)])


def test_what_cannot_be_measured_is_noted():
    """A finding smaller than a pixel, one outside the image, a faint one; the rest is measured without a word."""

    def notes(*rows):
        result = findings.Result({findings.UNTOUCHED: list(rows)})
        findings._note_unmeasured(result)
        return result.notes

    def row(image, diameter, x=30.5):
        finding = findings.Finding("a", x, 30.5, diameter)
        before, noise = findings.contrast(image, finding)
        return findings.Measured(finding, before, before, noise, noise, np.nan)

    plain = blob(SIZE, 30.5, 30.5, 20)
    assert notes(row(plain, 20)) == []
    small, faint = notes(row(plain, 0.4), row(plain, 20), row(plain, 9, x=9e9), row(np.zeros((SIZE, SIZE)), 20))
    assert "2 of 4 findings are not measured" in small and "0.4 pixels at (30.5, 30.5) in a" in small
    assert "1 of 4 findings have a contrast below 0.005" in faint


@pytest.mark.slow
def test_the_worst_finding_comes_first_in_the_picture(folders):
    folder, found = folders
    image = images.read(folder / "half" / "1.png").pixels
    lost = found[3]
    distance = np.hypot(np.arange(SIZE)[None, :] - lost.x, np.arange(SIZE)[:, None] - lost.y)
    images.write(folder / "half" / "1.png", np.where(distance < 20, np.float32(0.4), image), 16)
    result = measured(folder, found)
    first = findings_tables.crops_worst_first(result)[0]
    np.testing.assert_array_equal(first["CXR"], result.crops["CXR"][3])


def test_normal_places_keep_away_from_findings_and_stay_in_the_lungs():
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:90] = True
    found = [findings.Finding("a", 50, 50, 10)]
    places = findings.normal_places(mask, found, 1.0, np.random.default_rng(0))
    assert len(places) >= 2 and mask[places[:, 1], places[:, 0]].all()
    assert (np.hypot(places[:, 0] - 50, places[:, 1] - 50) >= findings.AWAY_MM).all()
