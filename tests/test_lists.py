"""Split lists, the matching of files into pairs, and the faults of a pair."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import make_dicom
from PIL import Image
from skimage.data import camera
from skimage.transform import resize

from models import images
from models.data import checks, duplicates, lists, splits
from models.runtime.files import UserError
from models.simulate import phantom

SZCH = Path(__file__).resolve().parents[2] / "shared" / "szch"
NAMES = [f"{index}.png" for index in range(741)]
PICTURE = resize(camera(), (96, 80), anti_aliasing=True).astype(np.float32)  # anything with structure


# --- Splitting


@pytest.mark.parametrize(
    "count, shares, sizes",
    [
        (741, (0.8, 0.1, 0.1), [592, 74, 75]),
        (241, (0.8, 0.1, 0.1), [192, 24, 25]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (2, (0.8, 0.1, 0.1), [1, 0, 1]),
        (10, (0.8, 0.0, 0.2), [8, 0, 2]),
        (9, (1.0, 0.0, 0.0), [9, 0, 0]),
        (100, (0.29, 0.57, 0.14), [29, 57, 14]),
    ],
)
def test_split_sizes(count, shares, sizes):
    sets = splits.split(NAMES[:count], shares, 0)
    assert [len(names) for names in sets] == sizes
    assert sorted(sum(sets, [])) == sorted(NAMES[:count])  # nothing twice, nothing lost


def test_split_depends_on_the_seed_and_not_on_the_order():
    first = splits.split(NAMES, (0.8, 0.1, 0.1), 3)
    assert first == splits.split(reversed(NAMES), (0.8, 0.1, 0.1), 3)
    assert first != splits.split(NAMES, (0.8, 0.1, 0.1), 4)
    assert first[0] != sorted(first[0], key=images.natural)


def test_a_patients_images_stay_together():
    patients = {name: f"patient {index // 3}" for index, name in enumerate(NAMES)}  # 247 patients
    sets = splits.split(NAMES, (0.8, 0.1, 0.1), 0, patients)
    homes = [{patients[name] for name in names} for names in sets]
    assert [len(home) for home in homes] == [197, 24, 26] and sum(map(len, sets)) == 741
    assert not homes[0] & homes[1] and not homes[0] & homes[2] and not homes[1] & homes[2]


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.8, 0.3, 0.1), (1.1, -0.2, 0.1)])
def test_wrong_shares_are_refused(shares):
    with pytest.raises(UserError, match="data.split"):
        splits.split(NAMES, shares, 0)


# --- Lists


def check_refused(path, word, folder=None):
    with pytest.raises(UserError) as error:
        lists.read_list(path, folder)
    assert str(path) in str(error.value) and word in str(error.value) and "\n" not in str(error.value)


def test_lists_in_the_published_format_come_back(tmp_path):
    path = lists.list_path(tmp_path / "new", "SZCH", "trainset")
    lists.write_list(path, ["10.png", "2.png"])
    assert path.read_bytes() == b"10.png\n2.png\n" and path.name == "SZCH_trainset.txt"
    assert lists.read_list(path) == ["10", "2"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf0.png\r\n\r\n 1 \r\n1.2.840.7\r\n", b"0.png\n1.tif\n1.2.840.7", b"\n0\n1\n1.2.840.7\n\n"]
)
def test_bom_crlf_blank_lines_and_endings_are_no_faults(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert lists.read_list(tmp_path / "list.txt") == ["0", "1", "1.2.840.7"]


@pytest.mark.parametrize(
    "line", ["../0.png", "/etc/passwd", "..", "a/../../0.png", "..\\0.png", "C:\\0.png", "sub/0.png"]
)
def test_paths_in_a_list_are_refused(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"1.png\n{line}\n")
    check_refused(tmp_path / "list.txt", line)


def test_missing_empty_repeated_and_binary_lists(tmp_path):
    path = tmp_path / "list.txt"
    check_refused(path, "dataSegmentation.py")
    path.write_text("\n \n")
    check_refused(path, "empty")
    path.write_text("4.png\n5.png\n4.tif\n")
    check_refused(path, "more than once: 4")
    path.write_bytes("4.png\n".encode("utf-16"))
    check_refused(path, "cannot read")


def test_names_must_lie_in_the_folder(tmp_path):
    folder, path = tmp_path / "CXR", tmp_path / "list.txt"
    for place in (folder / "0.png", tmp_path / "private.png"):
        images.write(place, PICTURE)
    path.write_text("0.png\n")
    assert lists.read_list(path, folder) == ["0"]
    path.write_text("0.png\n7.png\n")
    check_refused(path, "7", folder)
    (folder / "9.png").symlink_to(tmp_path / "private.png")
    (folder / "8.png").symlink_to(folder / "0.png")
    path.write_text("8.png\n")
    assert lists.read_list(path, folder) == ["8"]
    path.write_text("9.png\n")
    check_refused(path, "lead out", folder)


UNLISTABLE = [
    "a\nb.png",
    " a.png",
    "a.png ",
    "\x0ba.png",
    "a\x0b.png",
    "a\u2028b.png",
    "\ufeffa.png",
    "bad\udcff.png",
    "sub/a.png",
]


@pytest.mark.parametrize("name", UNLISTABLE)
def test_a_name_that_would_not_be_read_back_is_not_written(tmp_path, name):
    path = tmp_path / "list.txt"
    with pytest.raises(UserError, match="rename"):
        lists.write_list(path, ["0.png", name])
    assert not path.exists()


def test_odd_names_that_a_list_can_hold_come_back(tmp_path):
    names = ["a b.png", "Röntgen.png", "#1.png", "a,b;c.png", "-.png"]
    lists.write_list(tmp_path / "list.txt", names)
    assert lists.read_list(tmp_path / "list.txt") == [Path(name).stem for name in names]


# --- Folders


def test_a_data_folder_is_flat_and_images_below_it_are_counted(tmp_path, capsys):
    images.write(tmp_path / "0.png", PICTURE)
    for name in ("a/1.png", "a/b/2.png", ".hidden/3.png"):
        images.write(tmp_path / name, PICTURE)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert list(lists.find_images(tmp_path)) == ["0"]
    assert f"2 images lie in sub-folders of {tmp_path} and are not read" in capsys.readouterr().err
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="no image in .*2 images lie in sub-folders") as error:
        lists.find_images(tmp_path)
    assert "\n" not in str(error.value)


# --- Pairs


def make_pairs(root, names=("0", "1", "2")):
    for name in names:
        images.write(root / "CXR" / f"{name}.png", PICTURE)
        images.write(root / "BS" / f"{name}.tif.png", PICTURE**2)
        (root / "BS" / f"{name}.tif.png").rename(root / "BS" / f"{name}.png")


def test_pairs_with_and_without_masks(tmp_path):
    make_pairs(tmp_path, ("10", "2"))
    pairs = lists.find_pairs(tmp_path)
    assert list(pairs) == ["2", "10"]
    assert pairs["2"] == (tmp_path / "CXR" / "2.png", tmp_path / "BS" / "2.png", None)
    images.write(tmp_path / "Mask" / "10.png", PICTURE > 0.5)
    assert [pair[2] for pair in lists.find_pairs(tmp_path).values()] == [None, tmp_path / "Mask" / "10.png"]


def test_missing_partners_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="CXR"):
        lists.find_pairs(tmp_path)
    make_pairs(tmp_path)
    (tmp_path / "BS" / "1.png").unlink()
    (tmp_path / "CXR" / "2.png").unlink()
    with pytest.raises(UserError, match="CXR/1.png.*BS/2.png"):
        lists.find_pairs(tmp_path)
    assert list(lists.match(tmp_path)[0]) == ["0"] and len(lists.match(tmp_path)[1]) == 2


def test_many_missing_partners_are_counted(tmp_path):
    make_pairs(tmp_path, [str(index) for index in range(9)])
    for index in range(8):
        (tmp_path / "BS" / f"{index}.png").unlink()
    with pytest.raises(UserError, match="0.png.*4.png.*and 3 more"):
        lists.find_pairs(tmp_path)


def faults_of(tmp_path, cxr, soft, mask=None):
    paths = [tmp_path / f"{name}.png" for name in ("cxr", "soft", "mask")]
    for path, pixels in zip(paths, (cxr, soft, mask)):
        if pixels is not None:
            images.write(path, pixels)
    return checks.check_pair(*paths[:2], paths[2] if mask is not None else None)


def test_a_good_pair_has_no_faults(tmp_path):
    assert faults_of(tmp_path, PICTURE, PICTURE**2, PICTURE > 0.5) == []
    assert faults_of(tmp_path, PICTURE, np.roll(PICTURE**2, 1, 0)) == []  # a pixel is no fault


@pytest.mark.parametrize(
    "name, change, word",
    [
        ("size", lambda: (PICTURE, PICTURE[:-1] ** 2), "80 x 95"),
        ("constant", lambda: (PICTURE, PICTURE * 0), "soft.png is no X-ray"),
        ("identical", lambda: (PICTURE, PICTURE), "same image"),
        ("shifted", lambda: (PICTURE, np.roll(PICTURE**2, 4, 0)), "4 down"),
        ("other", lambda: (PICTURE, PICTURE[::-1, ::-1] ** 2), "not aligned"),
        ("mask size", lambda: (PICTURE, PICTURE**2, PICTURE[10:] > 0.5), "80 x 86"),
        ("mask empty", lambda: (PICTURE, PICTURE**2, PICTURE > 2), "mask.png is empty"),
        ("mask grey", lambda: (PICTURE, PICTURE**2, PICTURE), "neither black nor white"),
    ],
)
def test_each_fault_of_a_pair_is_told(tmp_path, name, change, word):
    faults = faults_of(tmp_path, *change())
    assert len(faults) == 1 and word in faults[0] and "\n" not in faults[0]


def test_a_pair_of_which_different_bits_are_used_is_a_fault(tmp_path):
    """12 bits in 16 without a word of it: a darker soft-tissue image would be taken for 10 bits, four times as
    bright."""
    cxr = np.rint(PICTURE / PICTURE.max() * 4000).astype(np.uint16)
    for soft_white, faults in ((3000, 0), (1000, 1)):
        soft = np.rint((PICTURE / PICTURE.max()) ** 2 * soft_white).astype(np.uint16)
        Image.fromarray(cxr).save(tmp_path / "cxr.png")
        Image.fromarray(soft).save(tmp_path / "soft.png")
        found = checks.check_pair(tmp_path / "cxr.png", tmp_path / "soft.png")
        assert len(found) == faults and all("read as 10 bits" in fault and "as 12" in fault for fault in found)


def test_ranges_that_no_file_declares_are_said(tmp_path, capsys):
    """12 bits in 16, and DICOM files that a viewer would stretch."""
    levels = np.rint(PICTURE / PICTURE.max() * 4000).astype(np.uint16)
    results = {}

    def examined(name: str, save) -> None:
        for part, values in (("cxr", levels), ("soft", (levels * 0.8).astype(np.uint16))):
            save(tmp_path / f"{name}_{part}", values)
        results[name] = checks.examine((tmp_path / f"{name}_cxr", tmp_path / f"{name}_soft", None))
        assert results[name].faults == []

    examined("bits", lambda path, values: Image.fromarray(values).save(path, format="png"))
    examined("plain", lambda path, values: Image.fromarray(values * np.uint16(16)).save(path, format="png"))
    examined("no window", lambda path, values: make_dicom(path, values))
    examined("window", lambda path, values: make_dicom(path, values, WindowCenter=2048, WindowWidth=4096))
    checks.note_ranges(results, tmp_path)
    twelve, stretched = capsys.readouterr().err.splitlines()
    assert "read as 12 bits" in twelve and ": bits (of 4)" in twelve
    assert "no window in the DICOM files of no window (of 4)" in stretched


def test_all_faults_of_a_pair_are_told_at_once(tmp_path):
    (tmp_path / "soft.png").write_text("no image")
    images.write(tmp_path / "cxr.png", PICTURE * 0)
    assert len(checks.check_pair(tmp_path / "cxr.png", tmp_path / "soft.png")) == 2


def test_names_that_no_list_can_hold_are_faults(tmp_path):
    images.write(tmp_path / "CXR" / "a\nb.png", PICTURE)
    images.write(tmp_path / "BS" / "a\nb.png", PICTURE**2)
    faults = checks.check_pair(tmp_path / "CXR" / "a\nb.png", tmp_path / "BS" / "a\nb.png")
    assert len(faults) == 2 and all("rename" in fault and "\n" not in fault for fault in faults)


# --- The same image twice


def jpeg(pixels):
    _, content = cv2.imencode(".jpg", np.rint(255 * pixels).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


NEAR = {
    "a grey more": lambda pixels: np.clip(pixels + 1 / 255, 0, 1),
    "darker": lambda pixels: 0.9 * pixels,
    "half the size": lambda pixels: images.resize(pixels, (128, 128)),
    "JPEG": jpeg,
    "noise": lambda pixels: np.clip(pixels + np.random.default_rng(0).normal(0, 0.01, pixels.shape), 0, 1).astype(
        np.float32
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", NEAR)
def test_nearly_equal_images_are_found(tmp_path, change):
    pictures = [phantom.simulate(seed, 256).cxr for seed in range(3)]
    pictures.append(NEAR[change](pictures[1]))
    files = {}
    for number, pixels in enumerate(pictures):
        files[str(number)] = tmp_path / f"{number}.png"
        images.write(files[str(number)], pixels, 16)
    near = files.pop("3")
    assert duplicates.near_pairs([duplicates.sketch(pixels) for pixels in pictures]) == {3: [1]}
    assert duplicates.first_equal(near, files) == "1"
    assert duplicates.first_equal(near, {"0": files["0"], "2": files["2"]}) is None


@pytest.mark.slow
def test_other_patients_and_the_mirror_image_are_not_nearly_equal():
    pictures = [phantom.simulate(seed, 96).cxr for seed in range(12)]
    assert duplicates.near_pairs([duplicates.sketch(pixels) for pixels in pictures]) == {}
    for pixels in pictures:
        assert not duplicates.nearly_equal(pixels, pixels[:, ::-1])


def sketches_of_chests(count, rng):
    """Random sketches that resemble each other: a bit is the other one in a tenth of them. bool (count, bits)."""
    common = rng.random(duplicates.GRID**2) < 0.5
    return common ^ (rng.random((count, duplicates.GRID**2)) < 0.1)


def test_near_sketches_are_those_of_all_that_differ_in_few_bits():
    rng = np.random.default_rng(0)
    sketches = sketches_of_chests(100, rng)
    for differing in [*range(12)] * 8:  # copies, also of copies, and those that differ in a few bits more
        earlier, later = rng.integers(0, 100, 2)
        sketches[later] = sketches[earlier]
        # in a row, so that each bit lies in another block: the hardest ones
        start = rng.integers(0, duplicates.GRID**2 - differing)
        sketches[later, start : start + differing] ^= True
    distances = (sketches[:, None] != sketches[None]).sum(2)
    expected = {}
    for later, earlier in zip(*np.nonzero(np.tril(distances <= duplicates.MAX_BITS, -1))):
        expected.setdefault(int(later), []).append(int(earlier))
    assert sum(map(len, expected.values())) > 30
    assert duplicates.near_pairs(list(sketches)) == expected
    assert duplicates.near_pairs([]) == duplicates.near_pairs([sketches[0]]) == {}


def test_few_sketches_are_compared_with_each_other(monkeypatch):
    """Else the time grows with the square of their number: of 100 000 chests a thousand share an eighth of the bits
    with each."""
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(duplicates.np, "bitwise_count", lambda words: (compared.append(len(words)), count(words))[1])
    duplicates.near_pairs(list(sketches_of_chests(1000, np.random.default_rng(0))))
    assert sum(compared) < 0.01 * 1000**2 / 2


def test_a_copy_is_reported_against_the_original_and_never_against_a_copy(monkeypatch):
    results, pairs = {}, {}
    # how many of the first bits are set: near are images of five more or fewer
    for name, count in {"1": 0, "2": 5, "10": 10, "3": 0, "4": 100, "4_normal": 100, "5": 200, "6": 200}.items():
        sketch = np.arange(duplicates.GRID**2) < count
        digest = "5" if name == "6" else name
        results[name] = checks.Findings([], (digest, f"soft tissue of {name}"), (sketch, sketch))
        pairs[name] = (Path(f"CXR/{name}"), Path(f"BS/{name}"), None)
    monkeypatch.setattr(images, "read", lambda path: images.Picture(path, 8, path))
    monkeypatch.setattr(duplicates, "nearly_equal", lambda one, other: str(one).startswith("CXR"))
    assert checks.find_duplicates(pairs, results) == {
        "2": "CXR/2 is nearly the same image as CXR/1",  # and "10" is near the copy "2" alone
        "3": "CXR/3 is nearly the same image as CXR/1",
        "6": "CXR/6 is the same image as CXR/5",
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_exchanged_images_show_more_bone_in_the_soft_tissue(seed):
    pair = phantom.simulate(seed, 128)
    assert not checks.look_exchanged(pair.cxr, pair.soft) and checks.look_exchanged(pair.soft, pair.cxr)
    assert not checks.look_exchanged(pair.cxr, 0.7 * pair.soft + 0.1)  # another window is no bone


@pytest.mark.slow
@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_real_pairs_are_aligned_and_shuffled_ones_are_not():
    pairs = list(lists.find_pairs(SZCH).values())
    assert [checks.check_pair(*pair) for pair in pairs] == [[]] * 3
    for pair, other in zip(pairs, pairs[1:] + pairs[:1]):
        assert "not aligned" in checks.check_pair(pair[0], other[1])[0]
        assert not checks.examine(pair).exchanged and checks.examine((pair[1], pair[0], None)).exchanged
