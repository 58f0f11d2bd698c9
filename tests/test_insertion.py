"""The insertion test against methods whose answer is known."""

import numpy as np
import pytest
from conftest import TINY, run_script

from models import images
from models.evaluation import insertion
from models.evaluation.cases import Case
from models.runtime.files import UserError

SIZE = 256


@pytest.fixture
def nodules():
    """Balls of 10 and 16 mm, as their line integrals in water."""

    def ball(diameter):
        index = np.arange(diameter + 5) - (diameter + 4) / 2
        inside = (diameter / 2) ** 2 - index[None, :] ** 2 - index[:, None] ** 2
        return (2 * np.sqrt(np.maximum(inside, 0)) / 10 * 0.85).astype(np.float32)

    made = []
    for number in range(2):
        made += [insertion.Nodule(f"{diameter} mm, number {number}", ball(diameter)) for diameter in (10, 16)]
    return made


@pytest.fixture
def patient():
    """(CXR, soft tissue, lungs): two square lungs under bars of bone."""
    soft = np.full((SIZE, SIZE), 0.6, np.float32)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[40:220, 20:115] = True
    mask[40:220, 140:235] = True
    soft[mask] = 0.3
    bars = (np.arange(SIZE) // 12 % 2 == 0)[:, None] * np.float32(0.1)
    return soft + bars, soft, mask


def run(method, patient, nodules, **keywords):
    cxr, soft, mask = patient
    return insertion.test(method, cxr, "patient", nodules, mask, soft, **keywords)


def test_a_method_that_keeps_everything_has_slope_1(patient, nodules):
    rows = run(lambda cxr, name: cxr, patient, nodules)
    assert len(rows) == len(nodules)
    np.testing.assert_allclose([row.slope for row in rows], 1, rtol=1e-5)


def test_a_method_that_halves_everything_keeps_a_half(patient, nodules):
    rows = run(lambda cxr, name: 0.5 * cxr + 0.2, patient, nodules)
    np.testing.assert_allclose([row.slope for row in rows], 0.5, rtol=1e-5)
    assert insertion.summary(rows)["lost"] == 1


def test_a_method_that_gives_the_same_whatever_it_sees_keeps_nothing(patient, nodules):
    rows = run(lambda cxr, name: patient[1], patient, nodules)
    np.testing.assert_allclose([row.slope for row in rows], 0, atol=1e-6)


def test_what_is_lost_on_ribs_alone_shows_on_ribs_alone(patient, nodules):
    cxr, soft, _ = patient
    bone = cxr > soft

    def method(image, name):
        return np.where(bone, soft, image)  # what lies over bone goes with it

    values = insertion.summary(run(method, patient, nodules))
    assert values["median on ribs"] < values["median between ribs"] < 1


def test_places_lie_in_the_lungs_on_ribs_and_between_in_turn_and_depend_on_the_seed_alone(patient, nodules):
    cxr, soft, mask = patient
    rows = run(lambda image, name: image, patient, nodules, seed=1)
    assert rows == run(lambda image, name: image, patient, nodules, seed=1)
    assert rows != run(lambda image, name: image, patient, nodules, seed=2)
    assert [row.over_bone for row in rows] == [True, False, True, False]
    for row in rows:
        assert mask[row.y, row.x]
        assert (cxr > soft)[row.y, row.x] == row.over_bone


def test_inserting_follows_the_logistic_tone_curve():
    cxr = np.array([[0.0, 0.1, 0.5, 0.9, 1.0]])
    brighter = insertion.insert(cxr, np.full(cxr.shape, 2.0))
    assert brighter[0, 0] == 0 and brighter[0, -1] == 1
    odds = [grey[0, 1:4] / (1 - grey[0, 1:4]) for grey in (cxr, brighter)]
    np.testing.assert_allclose(np.log(odds[1] / odds[0]), 2 * insertion.RATE)
    np.testing.assert_array_equal(insertion.insert(cxr, np.zeros(cxr.shape)), cxr)


def test_a_nodule_is_projected_from_the_back_to_the_front_in_cm_of_water(tmp_path):
    hounsfield = np.full((4, 3, 5), -850, np.int16)
    mask = np.zeros_like(hounsfield)
    hounsfield[1, :, 2], mask[1, :, 2] = 150, 1  # 3 mm deep, 1 g / cm^3 more than the lung
    hounsfield[0, 0, 0] = 500  # not the nodule's
    np.savez(tmp_path / "some.npz", nodule_0_hu=hounsfield, nodule_0_mask=mask)
    (nodule,) = insertion.read_nodules(tmp_path)
    expected = np.zeros((4, 5))
    expected[1, 2] = 0.3
    np.testing.assert_allclose(nodule.water, expected, atol=1e-6)
    assert nodule.name == "nodule_0"


def test_a_nodule_in_an_image_keeps_its_mass_and_middle(nodules):
    pixel = insertion.SIDE_MM / SIZE / 10  # cm
    water = insertion.water_map(nodules[1], 100, 60, SIZE)
    assert water.sum() * pixel**2 == pytest.approx(nodules[1].water.sum() * 0.1**2, rel=0.05)
    y, x = np.indices(water.shape)
    assert (x * water).sum() / water.sum() == pytest.approx(100, abs=0.1)
    assert (y * water).sum() / water.sum() == pytest.approx(60, abs=0.1)


def test_no_nodules_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        insertion.read_nodules(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="bad.npz"):
        insertion.read_nodules(tmp_path / "bad.npz")


def test_the_table_has_a_row_per_method(patient, nodules):
    rows = run(lambda cxr, name: 0.5 * cxr, patient, nodules)
    table = insertion.table({"half": rows, "none": []})
    assert table.rows[0][:3] == ["half", "4", "0.500"] and table.rows[1][1] == "0"


def test_an_evaluation_leaves_the_table_and_a_line_per_nodule(tmp_path, patient):
    cxr, soft, mask = patient
    for name, pixels in {"cxr": cxr, "soft": soft, "mask": mask.astype(np.float32)}.items():
        images.write(tmp_path / f"{name}.png", pixels, 16)
    hounsfield = np.full((12, 12, 12), 50, np.int16)
    np.savez(tmp_path / "nodules.npz", cube_hu=hounsfield, cube_mask=np.ones_like(hounsfield))
    case = Case("patient", tmp_path / "cxr.png", tmp_path / "mask.png", tmp_path / "soft.png")

    def half(cxr, names, masks):
        assert cxr.shape == (1, 1, SIZE, SIZE) and cxr.min() < 0 and masks[0].dtype == bool
        return 0.5 * cxr

    cubes = insertion.read_nodules(tmp_path / "nodules.npz")
    written = insertion.evaluate(half, [case], tmp_path, size=SIZE, nodules=cubes, count=3, title="half")
    assert "half" in written and "0.500" in written and (tmp_path / "insertion.txt").read_text() == written
    lines = (tmp_path / "insertion.csv").read_text().splitlines()
    assert lines[0].startswith("image,nodule,x,y") and len(lines) == 4


def test_processes_share_the_x_rays_and_write_what_one_writes(tmp_path, patient, nodules, monkeypatch):
    cxr, soft, mask = patient
    cases = []
    for number in range(3):
        for kind, pixels in {"cxr": cxr, "soft": soft, "mask": mask.astype(np.float32)}.items():
            images.write(tmp_path / kind / f"{number}.png", pixels, 16)
        paths = [tmp_path / kind / f"{number}.png" for kind in ("cxr", "mask", "soft")]
        cases.append(Case(str(number), *paths))

    def half(image, names, masks):
        return 0.5 * image

    def evaluate(folder):
        return insertion.evaluate(half, cases, tmp_path / folder, size=SIZE, nodules=nodules, count=2)

    alone = evaluate("alone")
    shares = []

    def gather(own):
        shares.append(own)
        return shares

    monkeypatch.setattr(insertion.processes, "world_size", lambda: 2)
    monkeypatch.setattr(insertion.processes, "all_gather_objects", gather)
    monkeypatch.setattr(insertion.processes, "rank", lambda: 1)
    evaluate("second")
    assert not (tmp_path / "second").exists()
    monkeypatch.setattr(insertion.processes, "rank", lambda: 0)
    assert evaluate("shared") == alone
    assert [sorted(share) for share in shares] == [[1], [0, 2]]
    for name in insertion.FILES:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.slow
def test_an_evaluation_with_nodules_writes_its_files_and_replaces_no_others(chain):
    hounsfield = np.full((8, 8, 8), 50, np.int16)
    np.savez(chain / "nodules.npz", cube_hu=hounsfield, cube_mask=np.ones_like(hounsfield))
    place = chain / "with_nodules"

    def evaluate(*arguments):
        return run_script("ldm_eval.py", *TINY, "eval.output=with_nodules", *arguments, folder=chain)

    asked = ["eval.nodules=nodules.npz", "eval.inserted=2"]

    # nodules that are missing, and a file of somebody's, are found before anything is written
    status, _, told = evaluate("eval.nodules=nowhere.npz")
    assert status == 2 and "nowhere.npz" in told and not place.exists()
    place.mkdir()
    (place / "insertion.csv").write_text("somebody's")
    status, _, told = evaluate(*asked)
    assert status == 2 and "insertion.csv is there already" in told
    (place / "insertion.csv").unlink()

    # the results are the same with and without nodules, so both runs share a folder
    assert evaluate()[0] == 0
    results = {path: path.read_bytes() for path in place.glob("*.png")}
    status, shown, _ = evaluate(*asked)
    assert status == 0 and results == {path: path.read_bytes() for path in place.glob("*.png")}
    written = (place / "insertion.txt").read_text()
    shares = (place / "insertion.csv").read_text()
    assert "BS-LDM" in written and written in shown
    assert evaluate(*asked, "ldm.steps=2")[0] == 0  # other results keep other shares of the nodules
    assert (place / "insertion.csv").read_text() != shares
    assert evaluate("ldm.steps=1")[0] == 0  # which takes the place of results that the files were about
    assert not (place / "insertion.txt").exists() and not (place / "insertion.csv").exists()
