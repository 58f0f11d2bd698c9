"""dataSegmentation.py as a person runs it: in a temporary folder, on simulated and on real pairs."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

import dataSegmentation
from models import images, plausibility
from models.data import lists, masks
from models.runtime import entry, workers
from models.simulate import phantom

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SZCH = ROOT.parent / "shared" / "szch"
SIZE = 64


def call(folder, *settings, status=0, process=False):
    """Run the script with data in <folder>/set and lists in <folder>/lists; its output and the lines of its standard
    error.

    In this process, because a new one needs seconds to start; process=True: as a person does.
    """
    argv = [
        str(ROOT / "dataSegmentation.py"),
        f"data.root={folder}/set",
        f"data.lists={folder}/lists",
        f"data.image_size={SIZE}",
        *settings,
    ]
    if process:
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
        out, err, returned = done.stdout, done.stderr, done.returncode
    else:
        streams = io.StringIO(), io.StringIO()
        with mock.patch("sys.argv", argv), mock.patch.object(workers, "FEW", 99), pytest.raises(SystemExit) as end:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                entry.run(dataSegmentation.main)
        out, err, returned = streams[0].getvalue(), streams[1].getvalue(), end.value.code
    assert returned == status and "Traceback" not in err, err
    return out, [
        line for line in err.replace("\r", "\n").splitlines() if line and not line.endswith(("it/s]", "s/it]"))
    ]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Five simulated pairs, checked and split; not to be changed."""
    folder = tmp_path_factory.mktemp("simulated")
    out, errors = call(folder, "simulate.count=5")
    assert errors == [] and "set_trainset.txt: 3 images" in out
    return folder


@pytest.fixture
def folder(simulated, tmp_path):
    """A copy of the pairs alone, to spoil."""
    for part in ("CXR", "BS", "Mask"):
        shutil.copytree(simulated / "set" / part, tmp_path / "set" / part)
    return tmp_path


def refused(folder, *settings, lines=1, process=False):
    """The last line of a refusal, and the faults above it; nothing was written."""
    before = contents(folder)
    _, errors = call(folder, *settings, status=2, process=process)
    assert contents(folder) == before
    assert len(errors) == lines and errors[-1].startswith("dataSegmentation.py: "), errors
    return errors


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
        np.testing.assert_allclose(images.read(simulated / "set" / part / "3.png").pixels, pixels, atol=0.51 / 255)
    names = [
        (simulated / "lists" / f"set_{part}.txt").read_text().split() for part in ("trainset", "valset", "testset")
    ]
    assert [len(part) for part in names] == [3, 1, 1] and sorted(sum(names, [])) == [
        f"{index}.png" for index in range(5)
    ]


def test_running_again_changes_nothing_and_repairs_what_is_missing(simulated, tmp_path):
    shutil.copytree(simulated, tmp_path, dirs_exist_ok=True)
    before, times = contents(tmp_path), (tmp_path / "set" / "CXR" / "2.png").stat().st_mtime_ns
    (tmp_path / "set" / "BS" / "1.png").unlink()
    out, errors = call(tmp_path, "simulate.count=5")
    assert contents(tmp_path) == before and errors == [] and "stay as they are" in out
    assert (tmp_path / "set" / "CXR" / "2.png").stat().st_mtime_ns == times
    out, errors = call(tmp_path, "simulate.count=16", process=True)  # now in several processes
    assert len(images.find(tmp_path / "set" / "CXR")) == 16 and "11 pairs are in no list" in errors[0]
    assert (tmp_path / "set" / "CXR" / "2.png").stat().st_mtime_ns == times
    assert "with seed 0, asked is seed 1" in refused(tmp_path, "simulate.count=5", "simulate.seed=1")[0]
    record = tmp_path / "set" / "simulated.json"
    record.write_text(json.dumps({"seed": 0, "size": SIZE, "count": 16}))  # as it was before there were CTs
    assert "keeps the 16" in call(tmp_path, "simulate.count=5")[0]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": {"phantom": 0}}))
    assert "version" in refused(tmp_path, "simulate.count=5")[0]


def test_the_numbers_of_simulated_patients_are_said_where_others_may_have_them_too(simulated, tmp_path):
    out, errors = call(tmp_path, "simulate.count=2", "simulate.seed=3")
    assert "patients 3 to 4" in errors[0] and "simulate.count" in errors[0]
    third = images.read(simulated / "set" / "CXR" / "3.png").pixels  # of seed 0
    assert np.array_equal(images.read(tmp_path / "set" / "CXR" / "0.png").pixels, third)


def test_simulation_never_goes_among_other_images(folder):
    assert "did not simulate" in refused(folder, "simulate.count=5")[0]
    images.write(folder / "new" / "CXR" / "own.png", np.eye(9))
    assert "own.png" in refused(folder, "simulate.count=5", f"data.root={folder}/new")[0]
    assert "at least 64" in refused(folder, "simulate.count=1", "data.image_size=32", f"data.root={folder}/other")[0]


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
    assert "CXR/1.png" in errors[0] and "BS/2.png" in errors[1] and "2 of 5" in errors[2]
    shutil.rmtree(folder / "set" / "BS")
    assert f"no folder {folder}/set/BS" in refused(folder)[0]
    shutil.rmtree(folder / "set")
    assert f"no folder {folder}/set/CXR" in refused(folder, process=True)[0]


def test_all_faults_are_listed_and_can_be_left_out(folder):
    place = folder / "set"
    images.write(place / "CXR" / "0.png", np.full((SIZE, SIZE), 0.5))
    images.write(place / "Mask" / "1.png", np.ones((SIZE // 2, SIZE)))
    (place / "BS" / "2.png").write_bytes((place / "BS" / "2.png").read_bytes()[:-40])
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
        assert all(word in line for word in words), line
    out, errors = call(folder, "data.skip_faulty=true")
    assert len(errors) == 5 and "4 faulty left out, 2 pairs kept" in out
    assert "no image for validation: 2 pairs are too few" in errors[4]
    assert (
        "3.png"
        in (folder / "lists" / "set_trainset.txt").read_text() + (folder / "lists" / "set_testset.txt").read_text()
    )


def test_inverted_images_are_named(folder):
    for part in ("CXR", "BS"):
        path = folder / "set" / part / "3.png"
        images.write(path, 1 - images.read(path).pixels)
    _, errors = call(folder)
    assert len(errors) == 1 and "bones look dark" in errors[0] and "in 3 (of 5)" in errors[0]


def test_exchanged_folders_are_noted(folder):
    (folder / "set" / "CXR").rename(folder / "set" / "x")
    (folder / "set" / "BS").rename(folder / "set" / "CXR")
    (folder / "set" / "x").rename(folder / "set" / "BS")
    _, errors = call(folder)
    assert len(errors) == 1 and "more bone than the CXR in 0, 1, 2, 3, 4 (of 5)" in errors[0]


def test_the_same_image_in_two_pairs_is_a_fault_also_if_nearly(folder):
    place = folder / "set"
    shutil.copy(place / "BS" / "4.png", place / "BS" / "5.png")  # one soft-tissue image for two CXRs
    cxr = images.read(place / "CXR" / "4.png").pixels
    soft = images.read(place / "BS" / "4.png").pixels
    images.write(place / "CXR" / "5.png", cxr + 0.3 * (cxr - soft))
    images.write(place / "CXR" / "6.png", images.read(place / "CXR" / "2.png").pixels + 1 / 255)
    images.write(place / "BS" / "6.png", images.read(place / "BS" / "2.png").pixels + 1 / 255)
    errors = refused(folder, lines=3)
    assert f"{place}/BS/5.png is the same image as {place}/BS/4.png" in errors[0]
    assert f"{place}/CXR/6.png is nearly the same image as {place}/CXR/2.png" in errors[1]


def test_twins_of_a_simulated_patient_may_be_nearly_equal_and_stay_together(folder):
    for part in ("CXR", "BS"):
        for index in range(5):
            pixels = images.read(folder / "set" / part / f"{index}.png").pixels
            images.write(folder / "set" / part / f"{index}_normal.png", pixels + 1 / 255)
    assert call(folder)[1] == []
    for text in contents(folder / "lists").values():
        patients = [line.removesuffix(b".png").removesuffix(b"_normal") for line in text.split()]
        assert sorted(patients) == sorted(2 * sorted(set(patients)))  # each twice


@pytest.mark.parametrize(
    "count, empty", [(1, "training and validation: 1 pairs"), (2, "validation: 2 pairs"), (3, None)]
)
def test_a_set_without_images_is_noted(folder, count, empty):
    for part in ("CXR", "BS", "Mask"):
        for index in range(count, 5):
            (folder / "set" / part / f"{index}.png").unlink()
    _, errors = call(folder)
    assert errors == [] if empty is None else len(errors) == 1 and f"no image for {empty} are too few" in errors[0]
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
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit = 7
            dataset.PixelRepresentation = 0
            dataset.WindowCenter, dataset.WindowWidth = 128, 256
            dataset.PixelData = np.rint(255 * pixels).astype(np.uint8).tobytes()
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            (root / part).mkdir(parents=True, exist_ok=True)
            dataset.save_as(root / part / f"{index}.dcm", enforce_file_format=True)


def listed(folder):
    """The names in each of the three lists."""
    texts = [(folder / "lists" / f"set_{part}.txt").read_text() for part in ("trainset", "valset", "testset")]
    return [{Path(line).stem for line in text.split()} for text in texts]


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
    errors = refused(tmp_path)
    assert "the same patient in several sets: 0, 4;" in errors[0] and "P0" not in errors[0]
    shutil.rmtree(tmp_path / "lists")
    call(tmp_path, "data.patient=^(.*)$")  # who says otherwise is believed


def test_one_patient_id_for_all_is_refused_until_somebody_says_whose_they_are(tmp_path):
    dicom_pairs(tmp_path / "set", ["anonymous"] * 4)
    errors = refused(tmp_path)
    assert "the same PatientID" in errors[0] and "data.patient='^(.*)$'" in errors[0]
    call(tmp_path, "data.patient=^(.*)$")
    assert [len(names) for names in listed(tmp_path)] == [2, 1, 1]


def test_two_patients_in_one_pair_are_a_fault(tmp_path):
    dicom_pairs(tmp_path / "set", ["P0", "P1", "P2"])
    path = tmp_path / "set" / "BS" / "1.dcm"
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "P7"
    dataset.save_as(path)
    assert "BS/1.dcm has another PatientID" in refused(tmp_path, lines=2)[0]


def test_converting_turns_shrinks_and_never_overwrites(folder):
    source, target = folder / "source", folder / "set" / "new"
    (folder / "set").rename(source)
    before = contents(source)
    truth = images.read(source / "CXR" / "3.png").pixels
    wide = np.hstack([truth, truth[:, :16]])  # 64 x 80
    for part in ("CXR", "BS"):
        images.write(source / part / "3.png", 1 - wide * (1 if part == "CXR" else 0.7), 16)
    images.write(source / "Mask" / "3.png", wide > 0.5)
    before = contents(source)
    settings = (f"data.source={source}", f"data.root={target}", "data.image_size=40")
    out, errors = call(folder, *settings)
    assert contents(source) == before and "5 pairs" in out and "15 images newly written" in out
    assert len(errors) == 1 and "bright now in 3.png, 3.png" in errors[0]
    picture = images.read(target / "CXR" / "3.png")
    assert picture.bits == 16 and images.read(target / "CXR" / "2.png").bits == 8
    np.testing.assert_allclose(picture.pixels, images.resize(wide, (32, 40)), atol=1e-4)
    (target / "BS" / "2.png").unlink()
    out, _ = call(folder, *settings)
    assert "1 images newly written" in out

    # an image that is not the source's, by content or by ending, is neither taken for it nor written over
    images.write(target / "CXR" / "1.png", images.read(target / "CXR" / "2.png").pixels)
    (target / "BS" / "2.png").unlink()
    before = contents(target)
    errors = refused(folder, *settings)
    assert "set/new/CXR/1.png: not what data.source=" in errors[0] and contents(target) == before
    (target / "CXR" / "1.png").rename(target / "CXR" / "1.jpg")
    assert "1.jpg is in the way of" in refused(folder, *settings)[0]
    (target / "CXR" / "1.jpg").unlink()
    assert "CXR/0.png, " in refused(folder, *settings, "data.range=0..200")[0]  # nor with other settings
    for part in ("CXR", "BS"):
        images.write(target / part / "mine.png", images.read(source / part / "0.png").pixels[:, ::-1])
    _, errors = call(folder, *settings)
    assert "new holds images that are not of" in errors[0] and "new/CXR/mine.png" in errors[0]
    assert "into another" in refused(folder, f"data.source={source}", f"data.root={source}")[0]
    assert "neither" in refused(folder, f"data.source={folder / 'lists'}", f"data.root={target}")[0]


def test_converting_forces_the_grey_values_and_says_what_it_found(simulated, folder):
    """12 bits in 16 that nobody declares: found pair by pair, said, and the copies declare what was found or forced."""
    source, target = folder / "set", folder / "new"
    for index, white in ((0, 4095), (1, 4095), (2, 1000), (3, 4095), (4, 4095)):
        for part in ("CXR", "BS"):
            path = source / part / f"{index}.png"
            levels = np.rint(images.read(path).pixels * white).astype(np.uint16)
            cv2.imwrite(str(path), levels)
    settings = (f"data.source={source}", f"data.root={target}")
    assert "data.range=4095 is for a folder that is converted" in refused(folder, "data.range=4095")[0]

    # found: the dark pair as 10 bits, which its own values suggest
    _, errors = call(folder, *settings)
    assert any("read as 10 bits" in line and ": 2 (of 5)" in line and "data.range=4095" in line for line in errors)
    assert any("read as 12 bits" in line and ": 0, 1, 3, 4 (of 5)" in line for line in errors)
    assert len(errors) == 2  # of the source alone: the copies declare theirs
    assert images.read(target / "CXR" / "2.png").pixels.max() > 0.8
    assert images.read(target / "CXR" / "0.png").note == ""

    # forced: the pair is as dark as it was
    shutil.rmtree(target)
    _, errors = call(folder, *settings, "data.range=4095")
    assert errors == []
    forced = images.read(target / "CXR" / "2.png")
    assert forced.note == "" and 0.2 < forced.pixels.max() < 0.25

    # cut, and said; and a file that cannot hold the values is a fault, beside which the others are written
    shutil.rmtree(target)
    _, errors = call(folder, *settings, "data.range=2000")
    assert "outside data.range are cut in 0, 1, 3, 4 (of 5)" in errors[0]
    shutil.rmtree(target)
    images.write(source / "BS" / "3.png", images.read(source / "BS" / "3.png").pixels)
    _, errors = call(folder, *settings, "data.range=4095", status=2)
    assert "BS/3.png: its 8 bits hold at most 255" in errors[0]
    assert len(images.find(target / "CXR")) == 4
    shutil.rmtree(folder / "lists")  # which name the pair
    out, _ = call(folder, *settings, "data.range=4095", "data.skip_faulty=true")
    assert "0 images newly written" in out

    # two ranges in one pair are no pair, which the copies could not show any more
    shutil.rmtree(target)
    _, errors = call(folder, *settings, status=2)
    assert "BS/3.png is read as 8 bits, but" in errors[2] and "1 faults in" in errors[3]
    assert not (target / "CXR" / "3.png").exists()


def test_jsrt_is_matched_by_name_and_turned(simulated, tmp_path):
    for name, index in (("JPCLN001", 0), ("JPCNN002", 1), ("JPCNN003", 2)):
        cxr, soft = (images.read(simulated / "set" / part / f"{index}.png").pixels for part in ("CXR", "BS"))
        place = tmp_path / "jsrt" / name[:5]
        images.write(place / f"{name.lower()}.png", images.resize(1 - soft, (512, 512)))
        raw = (1 - images.resize(cxr, (2048, 2048))) * 4095
        raw.astype(">u2").tofile(place / f"{name}.IMG")
    out, errors = call(tmp_path, f"data.source={tmp_path / 'jsrt'}", "data.image_size=128")
    assert "3 pairs" in out and "bright now in jpcln001.png" in errors[0]
    assert "trainset.txt: 1 images" in out
    for name, pair in images.find(tmp_path / "set" / "CXR").items():
        picture = images.read(pair)
        assert picture.bits == 16 and picture.pixels.shape == (128, 128) and not plausibility.inverted(picture.pixels)
        assert not plausibility.inverted(images.read(tmp_path / "set" / "BS" / f"{name}.png").pixels)
    (tmp_path / "jsrt" / "JPCNN" / "jpcnn002.png").unlink()
    assert "JPCNN002.IMG has no PNG" in refused(tmp_path, f"data.source={tmp_path / 'jsrt'}", "data.image_size=128")[0]


def test_patients_by_pattern_and_by_table(folder):
    for part in ("CXR", "BS", "Mask"):
        for index in range(5):
            (folder / "set" / part / f"{index}.png").rename(folder / "set" / part / f"p{index // 2}_{index}.png")
    call(folder, "data.patient=^(p[0-9]+)_")
    by_pattern = contents(folder / "lists")
    for text in by_pattern.values():
        assert len({line[:2] for line in text.split()}) == 1  # three patients, one a list
    shutil.rmtree(folder / "lists")
    table = folder / "patients.csv"
    table.write_text("patient,name\n" + "".join(f"p{index // 2},p{index // 2}_{index}.png\n" for index in range(5)))
    call(folder, f"data.patient={table}")
    assert contents(folder / "lists") == by_pattern
    shutil.rmtree(folder / "lists")
    table.write_text("patient,name\np0,p0_0.png\n")
    assert "p0_1" in refused(folder, f"data.patient={table}")[0]
    table.write_text("who;what\n")
    assert "columns" in refused(folder, f"data.patient={table}")[0]
    table.write_text(
        "name,patient\n" + "".join(f"p{index // 2}_{index}.png,p{index // 2}\n" for index in range(5)) + "p0_1,p7\n"
    )
    assert "names p0_1 twice, with the patients 'p0' and 'p7'" in refused(folder, f"data.patient={table}")[0]
    assert "does not tell" in refused(folder, "data.patient=^(x)")[0]
    for pattern in ("^p[0-9]", "^(p"):
        assert "pattern" in refused(folder, f"data.patient={pattern}")[0]
    for part, text in {"trainset": "p0_0.png\np2_4.png", "valset": "p1_2.png\np1_3.png", "testset": "p0_1.png"}.items():
        lists.list_path(folder / "lists", "set", part).parent.mkdir(exist_ok=True)
        lists.list_path(folder / "lists", "set", part).write_text(text)
    assert "the same patient in several sets: p0;" in refused(folder, "data.patient=^(p[0-9]+)_")[0]
    call(folder)  # nobody said whose they are


def test_links_out_of_the_folder_are_faults(folder):
    path = folder / "set" / "CXR" / "3.png"
    path.rename(folder / "elsewhere.png")
    path.symlink_to(folder / "elsewhere.png")
    assert "CXR/3.png" in refused(folder, lines=2)[0]


def test_existing_lists_are_respected_and_checked(folder):
    lists = folder / "lists"
    lists.mkdir()
    for part, text in (("trainset", "\ufeff3.png\r\n1.png\r\n"), ("valset", ""), ("testset", "0.png\n")):
        (lists / f"set_{part}.txt").write_text(text)
    before = contents(folder)
    out, errors = call(folder)
    assert contents(folder) == before and "stay as they are" in out and "trainset.txt: 2 images" in out
    assert len(errors) == 1 and "2 pairs are in no list: 2, 4" in errors[0]
    (lists / "set_testset.txt").write_text("0.png\n9.png\n")
    assert "9" in refused(folder)[0] and "set_testset.txt" in refused(folder)[0]
    (lists / "set_testset.txt").write_text("3.png\n")
    assert "share images: 3" in refused(folder)[0]
    (lists / "set_testset.txt").unlink()
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
    assert "5 masks" in out and any("Mask/4.png" in line for line in errors)  # a corner is no lung
    overview = images.read(folder / "lists" / "set_masks_1.png").pixels
    assert overview.shape == (160, 5 * 160)


def test_the_overview_of_masks_is_drawn_page_by_page(folder, monkeypatch):
    monkeypatch.setattr(masks, "COLUMNS", 2)
    monkeypatch.setattr(masks, "ROWS", 1)
    drawn = []
    outline = masks.outline
    overview = folder / "lists"
    monkeypatch.setattr(masks, "outline", lambda job: (drawn.append(len(list(overview.glob("x_*")))), outline(job))[1])
    masks.write_masks(lists.find_pairs(folder / "set"), folder / "set", overview, "x")
    assert drawn == [0, 0, 1, 1, 2]  # pages that were there before each of the five masks
    pages = [images.read(overview / f"x_masks_{number}.png").pixels for number in (1, 2, 3)]
    assert [page.shape for page in pages] == [(160, 320)] * 3
    assert pages[2][:, :160].any() and not pages[2][:, 160:].any()


@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_real_pairs(tmp_path):
    before = sorted(path.name for path in SZCH.rglob("*"))
    out, errors = call(tmp_path, f"data.root={SZCH}")
    assert errors == [] and sorted(path.name for path in SZCH.rglob("*")) == before
    for part in ("trainset", "valset", "testset"):
        assert len((tmp_path / "lists" / f"szch_{part}.txt").read_text().split()) == 1
