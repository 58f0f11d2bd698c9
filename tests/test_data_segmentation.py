"""dataSegmentation.py as a person runs it: in a temporary folder, on simulated and on real pairs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import ROOT
from data_preparation import SIZE, call, contents, copy_pairs, refused
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from models import images
from models.data import lists, masks
from models.simulate import phantom

pytestmark = pytest.mark.slow

SZCH = ROOT.parent / "shared" / "szch"


@pytest.fixture
def folder(simulated, tmp_path):
    """A copy of the simulated pairs, to spoil."""
    return copy_pairs(simulated, tmp_path)


def test_simulated_pairs_are_the_phantoms(simulated):
    assert json.loads((simulated / "set" / "simulated.json").read_text()) == {
        "seed": 0,
        "size": SIZE,
        "count": 5,
        "source": "phantom",
        "lesions": False,
        "cts": [],
        "version": {"phantom": phantom.VERSION},
    }
    pair = phantom.simulate(3, SIZE)
    for part, pixels in (("CXR", pair.cxr), ("BS", pair.soft), ("Mask", pair.mask)):
        assert sorted(images.find(simulated / "set" / part)) == list("01234")
        written = images.read(simulated / "set" / part / "3.png").pixels
        np.testing.assert_allclose(written, pixels, atol=0.51 / 255)
    sets = listed(simulated)
    assert [len(names) for names in sets] == [3, 1, 1]
    assert set.union(*sets) == set("01234")


def test_running_again_changes_nothing_and_repairs_what_is_missing(simulated, tmp_path):
    shutil.copytree(simulated, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    kept = tmp_path / "set" / "CXR" / "2.png"
    written_at = kept.stat().st_mtime_ns
    (tmp_path / "set" / "BS" / "1.png").unlink()
    out, errors = call(tmp_path, "simulate.count=5")
    assert contents(tmp_path) == before
    assert errors == []
    assert "stay as they are" in out
    assert kept.stat().st_mtime_ns == written_at

    # more of them, now in several processes
    _, errors = call(tmp_path, "simulate.count=16", process=True)
    assert len(images.find(tmp_path / "set" / "CXR")) == 16
    assert "11 pairs are in no list" in errors[0]
    assert kept.stat().st_mtime_ns == written_at

    # other patients than those that are there
    assert "with seed 0, asked is seed 1" in refused(tmp_path, "simulate.count=5", "simulate.seed=1")[0]
    record = tmp_path / "set" / "simulated.json"
    record.write_text(json.dumps({"seed": 0, "size": SIZE, "count": 16}))  # as it was before there were CTs
    assert "keeps the 16" in call(tmp_path, "simulate.count=5")[0]
    of_another_version = json.loads(record.read_text()) | {"version": {"phantom": 0}}
    record.write_text(json.dumps(of_another_version))
    assert "version" in refused(tmp_path, "simulate.count=5")[0]


def test_the_numbers_of_simulated_patients_are_said_where_others_may_have_them_too(simulated, tmp_path):
    _, errors = call(tmp_path, "simulate.count=2", "simulate.seed=3")
    assert "patients 3 to 4" in errors[0]
    assert "simulate.count" in errors[0]
    third = images.read(simulated / "set" / "CXR" / "3.png").pixels  # of seed 0
    assert np.array_equal(images.read(tmp_path / "set" / "CXR" / "0.png").pixels, third)


def test_simulation_never_goes_among_other_images(folder):
    assert "did not simulate" in refused(folder, "simulate.count=5")[0]
    images.write(folder / "new" / "CXR" / "own.png", np.eye(9))
    assert "own.png" in refused(folder, "simulate.count=5", f"data.root={folder}/new")[0]
    too_small = refused(folder, "simulate.count=1", "data.image_size=32", f"data.root={folder}/other")
    assert "at least 64" in too_small[0]


def test_what_the_script_did_not_write_stays_as_it_is(simulated, tmp_path):
    """A picture in the place of a pair to come, a folder of another name's, a file in the place of the masks'
    overview."""
    shutil.copytree(simulated, tmp_path, dirs_exist_ok=True)
    own = tmp_path / "set" / "CXR" / "7.png"
    images.write(own, np.eye(SIZE))
    assert "did not simulate, such as" in refused(tmp_path, "simulate.count=9")[0]
    own.unlink()
    (tmp_path / "set" / "prepared").mkdir()
    (tmp_path / "set" / "prepared" / "notes.txt").write_text("mine")
    call(tmp_path, "simulate.count=6")
    assert (tmp_path / "set" / "prepared" / "notes.txt").read_text() == "mine"
    page = tmp_path / "lists" / "set_masks_1.png"
    images.write(page, np.eye(100))
    assert "set_masks_1.png is in the way" in refused(tmp_path, "data.write_masks=true")[0]
    page.unlink()
    call(tmp_path, "data.write_masks=true")
    call(tmp_path, "data.write_masks=true")  # its own overview it may draw again


def test_missing_folders_and_partners(folder):
    (folder / "set" / "BS" / "1.png").unlink()
    (folder / "set" / "CXR" / "2.png").unlink()
    errors = refused(folder, lines=3)
    assert "CXR/1.png" in errors[0]
    assert "BS/2.png" in errors[1]
    assert "2 of 5" in errors[2]
    shutil.rmtree(folder / "set" / "BS")
    assert f"no folder {folder}/set/BS" in refused(folder)[0]
    shutil.rmtree(folder / "set")
    assert f"no folder {folder}/set/CXR" in refused(folder, process=True)[0]


def test_all_faults_are_listed_and_can_be_left_out(folder):
    place = folder / "set"
    images.write(place / "CXR" / "0.png", np.full((SIZE, SIZE), 0.5))
    images.write(place / "Mask" / "1.png", np.ones((SIZE // 2, SIZE)))
    truncated = place / "BS" / "2.png"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    shutil.copy(place / "CXR" / "4.png", place / "CXR" / "5.png")
    shutil.copy(place / "BS" / "4.png", place / "BS" / "5.png")
    errors = refused(folder, lines=5)
    expected = (
        ("CXR/0.png", "same"),
        ("Mask/1.png", "64 x 32"),
        ("BS/2.png", "truncated"),
        ("CXR/5.png", "same image"),
        ("4 of 6",),
    )
    for line, words in zip(errors, expected):
        for word in words:
            assert word in line
    out, errors = call(folder, "data.skip_faulty=true")
    assert "4 faulty left out, 2 pairs kept" in out
    assert len(errors) == 5
    assert "no image for validation: 2 pairs are too few" in errors[4]
    training, _, test = listed(folder)
    assert "3" in training | test


def test_inverted_images_are_named(folder):
    for part in ("CXR", "BS"):
        path = folder / "set" / part / "3.png"
        images.write(path, 1 - images.read(path).pixels)
    _, (note,) = call(folder)
    assert "bones look dark" in note
    assert "in 3 (of 5)" in note


def test_exchanged_folders_are_noted(folder):
    (folder / "set" / "CXR").rename(folder / "set" / "x")
    (folder / "set" / "BS").rename(folder / "set" / "CXR")
    (folder / "set" / "x").rename(folder / "set" / "BS")
    _, (note,) = call(folder)
    assert "more bone than the CXR in 0, 1, 2, 3, 4 (of 5)" in note


def test_the_same_image_in_two_pairs_is_a_fault_also_if_nearly(folder):
    place = folder / "set"
    shutil.copy(place / "BS" / "4.png", place / "BS" / "5.png")  # one soft-tissue image for two CXRs
    cxr = images.read(place / "CXR" / "4.png").pixels
    soft = images.read(place / "BS" / "4.png").pixels
    images.write(place / "CXR" / "5.png", cxr + 0.3 * (cxr - soft))
    for part in ("CXR", "BS"):
        second = images.read(place / part / "2.png").pixels
        images.write(place / part / "6.png", second + 1 / 255)
    errors = refused(folder, lines=3)
    assert f"{place}/BS/5.png is the same image as {place}/BS/4.png" in errors[0]
    assert f"{place}/CXR/6.png is nearly the same image as {place}/CXR/2.png" in errors[1]


def test_twins_of_a_simulated_patient_may_be_nearly_equal_and_stay_together(folder):
    for part in ("CXR", "BS"):
        for index in range(5):
            pixels = images.read(folder / "set" / part / f"{index}.png").pixels
            images.write(folder / "set" / part / f"{index}_normal.png", pixels + 1 / 255)
    assert call(folder)[1] == []
    for names in listed(folder):
        patients = {name.removesuffix("_normal") for name in names}
        assert names == patients | {f"{patient}_normal" for patient in patients}


@pytest.mark.parametrize(
    "count, empty", [(1, ["training and validation: 1 pairs"]), (2, ["validation: 2 pairs"]), (3, [])]
)
def test_a_set_without_images_is_noted(folder, count, empty):
    for part in ("CXR", "BS", "Mask"):
        for index in range(count, 5):
            (folder / "set" / part / f"{index}.png").unlink()
    _, errors = call(folder)
    assert len(errors) == len(empty)
    for words, line in zip(empty, errors):
        assert f"no image for {words} are too few" in line
    shutil.rmtree(folder / "lists")
    assert call(folder, "data.split=[0,0,1]")[1] == []  # nobody asked for the others


def test_names_that_no_list_can_hold_are_faults_before_anything_is_written(folder):
    for part in ("CXR", "BS", "Mask"):
        (folder / "set" / part / "3.png").rename(folder / "set" / part / "3 \n.png")
    errors = refused(folder, lines=3)
    assert all("a split list cannot hold this name" in line for line in errors[:2])
    call(folder, "data.skip_faulty=true")
    call(folder, "data.skip_faulty=true")  # and again: the lists are read back


def dicom_pairs(root, numbers):
    """Pairs 0.dcm, 1.dcm, ... of these PatientIDs; None: an empty one."""
    for index, number in enumerate(numbers):
        pair = phantom.simulate(index, SIZE)
        for part, pixels in (("CXR", pair.cxr), ("BS", pair.soft)):
            dataset = pydicom.Dataset()
            dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
            dataset.SOPInstanceUID = generate_uid()
            dataset.PatientID = number
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.SamplesPerPixel = 1
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.BitsAllocated = 8
            dataset.BitsStored = 8
            dataset.HighBit = 7
            dataset.PixelRepresentation = 0
            dataset.WindowCenter = 128
            dataset.WindowWidth = 256
            dataset.PixelData = np.rint(255 * pixels).astype(np.uint8).tobytes()
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            (root / part).mkdir(parents=True, exist_ok=True)
            dataset.save_as(root / part / f"{index}.dcm", enforce_file_format=True)


def listed(folder: Path) -> list[set[str]]:
    """The names in each of the three lists, without their endings."""
    names = []
    for set_name in lists.SETS:
        text = (folder / "lists" / f"set_{set_name}.txt").read_text()
        names.append({Path(line).stem for line in text.split()})
    return names


def test_the_patient_id_of_dicom_files_keeps_patients_together(tmp_path):
    dicom_pairs(tmp_path / "set", ["P0", "P1", "P0", "P1", "P2", "P0", None, "P2"])
    assert call(tmp_path)[1] == []
    sets = listed(tmp_path)
    for patient in ({"0", "2", "5"}, {"1", "3"}, {"4", "7"}):
        assert sum(bool(patient & names) for names in sets) == 1
    assert sum(map(len, sets)) == 8

    # lists that were split by image, as earlier versions did
    for part, names in (("trainset", "012346"), ("valset", "7"), ("testset", "5")):
        (tmp_path / "lists" / f"set_{part}.txt").write_text("".join(f"{name}.dcm\n" for name in names))
    (message,) = refused(tmp_path)
    assert "the same patient in several sets: 0, 4;" in message
    assert "P0" not in message
    shutil.rmtree(tmp_path / "lists")
    call(tmp_path, "data.patient=^(.*)$")  # who says otherwise is believed


def test_one_patient_id_for_all_is_refused_until_somebody_says_whose_they_are(tmp_path):
    dicom_pairs(tmp_path / "set", ["anonymous"] * 4)
    (message,) = refused(tmp_path)
    assert "the same PatientID" in message
    assert "data.patient='^(.*)$'" in message
    call(tmp_path, "data.patient=^(.*)$")
    assert [len(names) for names in listed(tmp_path)] == [2, 1, 1]


def test_two_patients_in_one_pair_are_a_fault(tmp_path):
    dicom_pairs(tmp_path / "set", ["P0", "P1", "P2"])
    path = tmp_path / "set" / "BS" / "1.dcm"
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "P7"
    dataset.save_as(path)
    assert "BS/1.dcm has another PatientID" in refused(tmp_path, lines=2)[0]


def test_patients_by_pattern_and_by_table(folder):
    # five images of three patients
    names = ["p0_0", "p0_1", "p1_2", "p1_3", "p2_4"]
    for part in ("CXR", "BS", "Mask"):
        for index, name in enumerate(names):
            (folder / "set" / part / f"{index}.png").rename(folder / "set" / part / f"{name}.png")
    call(folder, "data.patient=^(p[0-9]+)_")
    by_pattern = contents(folder / "lists")
    for text in by_pattern.values():
        assert len({line[:2] for line in text.split()}) == 1  # three patients, one a list
    shutil.rmtree(folder / "lists")
    table = folder / "patients.csv"
    rows = [f"{name[:2]},{name}.png\n" for name in names]
    table.write_text("patient,name\n" + "".join(rows))
    call(folder, f"data.patient={table}")
    assert contents(folder / "lists") == by_pattern
    shutil.rmtree(folder / "lists")
    table.write_text("patient,name\np0,p0_0.png\n")
    assert "p0_1" in refused(folder, f"data.patient={table}")[0]
    table.write_text("who;what\n")
    assert "columns" in refused(folder, f"data.patient={table}")[0]
    rows = [f"{name}.png,{name[:2]}\n" for name in names]
    table.write_text("name,patient\n" + "".join(rows) + "p0_1,p7\n")
    assert "names p0_1 twice, with the patients 'p0' and 'p7'" in refused(folder, f"data.patient={table}")[0]
    assert "does not tell" in refused(folder, "data.patient=^(x)")[0]
    for pattern in ("^p[0-9]", "^(p"):
        assert "pattern" in refused(folder, f"data.patient={pattern}")[0]
    (folder / "lists").mkdir(exist_ok=True)
    for set_name, text in (
        ("trainset", "p0_0.png\np2_4.png"),
        ("valset", "p1_2.png\np1_3.png"),
        ("testset", "p0_1.png"),
    ):
        lists.list_path(folder / "lists", "set", set_name).write_text(text)
    assert "the same patient in several sets: p0;" in refused(folder, "data.patient=^(p[0-9]+)_")[0]
    call(folder)  # nobody said whose they are


def test_links_out_of_the_folder_are_faults(folder):
    path = folder / "set" / "CXR" / "3.png"
    path.rename(folder / "elsewhere.png")
    path.symlink_to(folder / "elsewhere.png")
    assert "CXR/3.png" in refused(folder, lines=2)[0]


def test_existing_lists_are_respected_and_checked(folder):
    (folder / "lists").mkdir()
    for set_name, text in (("trainset", "\ufeff3.png\r\n1.png\r\n"), ("valset", ""), ("testset", "0.png\n")):
        (folder / "lists" / f"set_{set_name}.txt").write_text(text)
    before = contents(folder)
    out, (note,) = call(folder)
    assert contents(folder) == before
    assert "stay as they are" in out
    assert "trainset.txt: 2 images" in out
    assert "2 pairs are in no list: 2, 4" in note

    test_list = folder / "lists" / "set_testset.txt"
    test_list.write_text("0.png\n9.png\n")
    (message,) = refused(folder)
    assert "set_testset.txt names images that are missing or faulty" in message
    assert ": 9;" in message
    test_list.write_text("3.png\n")
    assert "share images: 3" in refused(folder)[0]
    test_list.unlink()
    assert "set_testset.txt is not" in refused(folder)[0]


def test_masks_are_written_where_there_are_none(folder):
    kept = (folder / "set" / "Mask" / "0.png").read_bytes()
    for index in (1, 2, 3):
        (folder / "set" / "Mask" / f"{index}.png").unlink()
    images.write(folder / "set" / "Mask" / "4.png", np.pad(np.ones((9, 9)), (0, SIZE - 9)))
    out, errors = call(folder, "data.write_masks=true")
    assert (folder / "set" / "Mask" / "0.png").read_bytes() == kept
    for index in (1, 2, 3):
        values = np.unique(images.read(folder / "set" / "Mask" / f"{index}.png").pixels)
        assert values.tolist() == [0, 1]
    assert "5 masks" in out
    assert any("Mask/4.png" in line for line in errors)  # a corner is no lung
    overview = images.read(folder / "lists" / "set_masks_1.png").pixels
    assert overview.shape == (160, 5 * 160)


def test_the_overview_of_masks_is_drawn_page_by_page(folder, monkeypatch):
    monkeypatch.setattr(masks, "COLUMNS", 2)
    monkeypatch.setattr(masks, "ROWS", 1)
    overview = folder / "lists"
    pages_before = []  # of each of the five masks
    outline = masks.outline

    def watched_outline(job):
        pages_before.append(len(list(overview.glob("x_*"))))
        return outline(job)

    monkeypatch.setattr(masks, "outline", watched_outline)
    masks.write_masks(lists.find_pairs(folder / "set"), folder / "set", overview, "x")
    assert pages_before == [0, 0, 1, 1, 2]
    pages = [images.read(overview / f"x_masks_{number}.png").pixels for number in (1, 2, 3)]
    assert [page.shape for page in pages] == [(160, 320)] * 3
    assert pages[2][:, :160].any()
    assert not pages[2][:, 160:].any()  # the place of a sixth


@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_real_pairs(tmp_path):
    before = sorted(path.name for path in SZCH.rglob("*"))
    _, errors = call(tmp_path, f"data.root={SZCH}")
    assert errors == []
    assert sorted(path.name for path in SZCH.rglob("*")) == before
    for part in ("trainset", "valset", "testset"):
        assert len((tmp_path / "lists" / f"szch_{part}.txt").read_text().split()) == 1
