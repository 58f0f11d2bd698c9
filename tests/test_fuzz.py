"""Random inputs end in a result or in one line, and what is written reads back. tools/fuzz.py does the same for an
hour."""

import random
from pathlib import Path

import cv2
import fuzz
import fuzz_inputs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import GREY8, make_dicom
from PIL import Image

from models import config, images
from models.data import lists
from models.runtime.files import UserError

# The same examples at every run, and no time limit of an example: the machine may be busy.
QUIET = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, count",
    [("image", 120), ("dicom", 80), ("array", 40), ("name", 30), ("list", 30), ("folder", 30), ("settings", 30)],
)
def test_a_short_campaign(tmp_path, kind, count):
    """A piece of tools/fuzz.py in the suite."""
    outcomes = set()
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome, said = fuzz.attempt(kind, number, 1, folder)
        assert not outcome.startswith("FAILED"), f"{kind} {number}: {outcome}\n{said}"
        outcomes.add(outcome)
    assert outcomes == {"result", "refused"}


def test_the_campaign_sees_what_it_looks_for(tmp_path, monkeypatch):
    """An exception, a message of two lines, a changed input and a hang each count as a failure."""

    def fail(folder, out, rng):
        raise ValueError("x")

    def two_lines(folder, out, rng):
        raise UserError("x\ny")

    def change(folder, out, rng):
        path = fuzz_inputs.picture_file(folder, rng)
        images.read(path)
        path.write_bytes(b"x")
        return "result"

    def hang(folder, out, rng):
        while True:
            pass

    for function, word in (
        (fail, "ValueError"),
        (two_lines, "several lines"),
        (change, "changed"),
        (hang, "took more than"),
    ):
        if function is hang:  # the others may take as long as a busy machine needs
            monkeypatch.setattr(fuzz, "LIMIT_SECONDS", 0.2)
        monkeypatch.setitem(fuzz.KINDS, "image", (function, 1))
        folder = tmp_path / function.__name__
        folder.mkdir()
        outcome, _ = fuzz.attempt("image", 0, 0, folder)
        assert outcome.startswith("FAILED") and word in outcome


@pytest.mark.slow
@settings(max_examples=150, **QUIET)
@given(
    kind=st.sampled_from(["png", "dcm", "npy", "tif", "bmp", "gif", "jp2", "webp"]),
    place=st.floats(0, 1),
    patch=st.binary(max_size=8),
    cut=st.booleans(),
)
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, kind, place, patch, cut):
    path = whole_file(tmp_path_factory.getbasetemp(), kind)
    content = path.read_bytes()
    start = int(place * len(content))
    rest = b"" if cut else content[start + len(patch) :]
    damaged = path.with_name(f"damaged.{kind}")
    damaged.write_bytes(content[:start] + patch + rest)
    try:
        pixels = images.read(damaged).pixels
    except UserError as error:
        assert str(damaged) in str(error) and "\n" not in str(error)
    else:
        assert pixels.ndim == 2 and pixels.min() >= 0 and pixels.max() <= 1


def whole_file(folder: Path, kind: str) -> Path:
    path = folder / f"whole.{kind}"
    if not path.exists():
        if kind == "dcm":
            make_dicom(path, GREY8, 8, WindowCenter=100, WindowWidth=90)
        elif kind == "npy":
            np.save(path, GREY8)
        else:
            cv2.imwrite(str(path), GREY8) if kind not in ("gif", "webp") else Image.fromarray(GREY8).save(path)
    return path


@pytest.mark.slow
@settings(max_examples=60, **QUIET)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    white=st.integers(1, 65535),
    seed=st.integers(0, 99),
    orientation=st.integers(1, 8),
    limits=st.sampled_from(["auto", "container"]),
)
def test_an_unchanged_image_is_written_as_it_was_read(
    tmp_path_factory, height, width, white, seed, orientation, limits
):
    """16-bit grey values of any range and orientation: the result has the same numbers in the same places."""
    folder = tmp_path_factory.getbasetemp()
    levels = np.random.default_rng(seed).integers(0, white + 1, (height, width)).astype(np.uint16)
    picture = Image.fromarray(levels)
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(folder / "in.png", exif=exif)
    read = images.read(folder / "in.png", limits)
    images.write_like(folder / "out.png", read.pixels, read)
    written = np.asarray(Image.open(folder / "out.png"))
    assert written.dtype == np.uint16 and np.array_equal(written, levels)
    assert np.array_equal(images.read(folder / "out.png").pixels, read.pixels)


@pytest.mark.slow
@settings(max_examples=40, **QUIET)
@given(
    bits=st.integers(8, 16),
    seed=st.integers(0, 99),
    slope=st.sampled_from([1, 2, -1, 0.5]),
    intercept=st.integers(-2000, 2000),
    window=st.none() | st.tuples(st.integers(-3000, 5000), st.integers(2, 9000)),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_an_unchanged_dicom_is_written_as_it_was_read(
    tmp_path_factory, bits, seed, slope, intercept, window, photometric
):
    folder = tmp_path_factory.getbasetemp()
    stored = np.random.default_rng(seed).integers(0, 2**bits, (7, 9)).astype(np.uint8 if bits == 8 else np.uint16)
    tags = {"WindowCenter": window[0], "WindowWidth": window[1]} if window else {}
    make_dicom(
        folder / "in.dcm",
        stored,
        bits,
        StudyInstanceUID="1.2.3",
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        PhotometricInterpretation=photometric,
        **tags,
    )
    pixels = images.read(folder / "in.dcm").pixels
    images.write_dicom(folder / "out.dcm", pixels, folder / "in.dcm", "x")
    derived = pydicom.dcmread(folder / "out.dcm")
    assert np.array_equal(derived.pixel_array, stored)
    np.testing.assert_allclose(images.read(folder / "out.dcm").pixels, pixels, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=100, **QUIET)
@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_a_list_reads_back_or_is_not_written(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "x_testset.txt"
    path.unlink(missing_ok=True)
    try:
        lists.write_list(path, names)
    except UserError as error:
        assert "\n" not in str(error) and not path.exists()
        return
    try:
        again = lists.read_list(path)
    except UserError as error:  # one name twice
        assert "\n" not in str(error) and len(set(map(images.stem, names))) < len(names)
    else:
        assert again == [images.stem(name) for name in names]


@settings(max_examples=25, **QUIET)
@given(
    key=st.sampled_from(
        ["eval.range", "eval.strength", "lcm.steps", "data.image_size", "eval.input", "vqgan.network.channels"]
    ),
    value=st.text(max_size=12) | st.integers().map(str) | st.floats().map(str),
)
def test_any_value_of_a_setting_is_taken_or_refused_in_one_line(key, value):
    try:
        found = config.parse("x", [key], [f"{key}={value}"])
        images.parse_limits(found.eval.range)
    except UserError as error:
        assert "\n" not in str(error)


def test_inputs_are_functions_of_seed_and_number():
    first, again = (fuzz_inputs.damaged(bytes(range(200)), random.Random("0/1/image")) for _ in range(2))
    assert first == again != bytes(range(200))
