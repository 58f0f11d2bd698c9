"""DICOM files are shown as the standard says."""

import numpy as np
import pydicom
import pytest
from image_files import GREY8, GREY12, check_refused, close, dicom_table, make_dicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import RLELossless, generate_uid

from models import images, plausibility
from models.runtime.files import UserError

RNG = np.random.default_rng(2)


def write_identified(path):
    """Give a DICOM file the study that results need; its path."""
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.save_as(path)
    return path


def test_without_window_the_images_own_range_is_shown(tmp_path):
    levels = GREY12 // 3 + 500  # 500 to 1864 of 4095
    unit = (levels - levels.min()) / (levels.max() - levels.min())
    make_dicom(tmp_path / "plain.dcm", levels)
    make_dicom(tmp_path / "sixteen.dcm", levels, bits=16)
    make_dicom(tmp_path / "rescaled.dcm", levels, RescaleSlope=2, RescaleIntercept=-1000)
    make_dicom(tmp_path / "overlay.dcm", levels | 0xF000)  # in the unused bits
    make_dicom(tmp_path / "signed.dcm", levels.astype(np.int16) - 1000, bits=16)
    make_dicom(tmp_path / "negative.dcm", levels.astype(np.int16) - 2048)
    bits = {"plain": 12, "sixteen": 16, "rescaled": 12, "overlay": 12, "signed": 16, "negative": 12}
    for name in bits:
        close(tmp_path / f"{name}.dcm", unit, bits[name])
        assert images.read(tmp_path / f"{name}.dcm").note == ""
    make_dicom(tmp_path / "flat.dcm", np.full_like(levels, 700))
    with pytest.raises(UserError, match="all its pixels are the same"):
        plausibility.check(images.read(tmp_path / "flat.dcm"))


def test_limits_of_a_dicom(tmp_path):
    make_dicom(tmp_path / "a.dcm", GREY12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=100, WindowWidth=50)
    whole = images.read(tmp_path / "a.dcm", "container").pixels
    np.testing.assert_allclose(whole, GREY12 / 4095, atol=1e-7)
    given = images.read(tmp_path / "a.dcm", (-500, 3000)).pixels
    rescaled = GREY12 * 2.0 - 1000
    np.testing.assert_allclose(given, np.clip((rescaled + 500) / 3500, 0, 1), atol=1e-7)


def test_high_bit_above_the_stored_bits(tmp_path):
    shifted = (GREY12 << 4 | 0b1010).astype(np.uint16)  # something else in the low bits
    signed = ((GREY12.astype(np.int32) - 2048) << 4).astype(np.int16)
    make_dicom(tmp_path / "shifted.dcm", shifted, HighBit=15)
    make_dicom(tmp_path / "signed.dcm", signed, HighBit=15)
    make_dicom(tmp_path / "lies.dcm", GREY12, HighBit=15)  # the values fit as they are
    unit = (GREY12 - GREY12.min()) / (GREY12.max() - GREY12.min())
    for name in ("shifted", "signed", "lies"):
        close(tmp_path / f"{name}.dcm", unit, 12)
    result = images.read(tmp_path / "shifted.dcm").pixels * np.float32(0.9)
    images.write_dicom(tmp_path / "out.dcm", result, write_identified(tmp_path / "shifted.dcm"), "x")
    assert pydicom.dcmread(tmp_path / "out.dcm").HighBit == 11
    close(tmp_path / "out.dcm", result, 12, 0.51 / 4000)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_of_the_range(tmp_path, photometric):
    levels = GREY12 // 2 + 1000
    inside = levels[:, 5:]
    unit = (levels - inside.min()) / np.float64(np.ptp(inside))
    if photometric == "MONOCHROME1":
        unit = 1 - unit
    unit[:, :5] = 0
    levels[:, :5] = 0
    make_dicom(tmp_path / "a.dcm", levels, PixelPaddingValue=0, PhotometricInterpretation=photometric)
    close(tmp_path / "a.dcm", unit, 12)
    levels[:, :5] = RNG.integers(10, 20, (len(levels), 5))
    make_dicom(
        tmp_path / "b.dcm",
        levels,
        PixelPaddingValue=10,
        PixelPaddingRangeLimit=20,
        PhotometricInterpretation=photometric,
    )
    close(tmp_path / "b.dcm", unit, 12)
    images.write_dicom(tmp_path / "out.dcm", unit.astype(np.float32), write_identified(tmp_path / "b.dcm"), "x")
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, levels)


def test_dirty_numbers_are_read_or_named(tmp_path):
    window = {"WindowCenter": 2048, "WindowWidth": 1000}
    make_dicom(tmp_path / "clean.dcm", GREY12, **window)
    expected = images.read(tmp_path / "clean.dcm").pixels
    make_dicom(tmp_path / "empty slope.dcm", GREY12, RescaleSlope=None, RescaleIntercept=None, **window)
    make_dicom(
        tmp_path / "empty tables.dcm",
        GREY12,
        VOILUTSequence=pydicom.Sequence(),
        ModalityLUTSequence=pydicom.Sequence(),
        **window,
    )
    for name in ("empty slope", "empty tables"):
        close(tmp_path / f"{name}.dcm", expected, 12)
    make_dicom(tmp_path / "half.dcm", GREY12, WindowCenter=2048.5, WindowWidth=1000)
    content = (tmp_path / "half.dcm").read_bytes()
    assert content.count(b"2048.5") == 1
    (tmp_path / "comma.dcm").write_bytes(content.replace(b"2048.5", b"2048,5"))
    close(tmp_path / "comma.dcm", images.read(tmp_path / "half.dcm").pixels, 12)
    (tmp_path / "text.dcm").write_bytes(content.replace(b"2048.5", b"middle"))
    check_refused(tmp_path / "text.dcm", "WindowCenter is no number")
    for keyword in ("BitsStored", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation"):
        dataset = pydicom.dcmread(tmp_path / "clean.dcm")
        delattr(dataset, keyword)
        dataset.save_as(tmp_path / "lacks.dcm")
        check_refused(tmp_path / "lacks.dcm", f"lacks {keyword}")


def test_modality_table_of_any_depth(tmp_path):
    curve = (np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16)
    make_dicom(tmp_path / "a.dcm", GREY12, ModalityLUTSequence=pydicom.Sequence([dicom_table(curve, 10)]))
    looked_up = curve[GREY12].astype(np.float64)
    close(tmp_path / "a.dcm", (looked_up - looked_up.min()) / np.ptp(looked_up), 12)
    whole = images.read(tmp_path / "a.dcm", "container").pixels
    np.testing.assert_allclose(whole, looked_up / 1023, atol=1e-7)
    too_short = dicom_table(curve[:9], 10, announced=4096)
    make_dicom(tmp_path / "b.dcm", GREY12, ModalityLUTSequence=pydicom.Sequence([too_short]))
    check_refused(tmp_path / "b.dcm", "table of 9 values")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_dicom_window_as_pydicom_applies_it(tmp_path, function):
    dataset = make_dicom(
        tmp_path / "a.dcm",
        GREY12,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[2500, 40],
        WindowWidth=[1800, 400],
        VOILUTFunction=function,
    )
    expected = apply_windowing(apply_modality_lut(GREY12, dataset), dataset)  # in the range of the rescaled values
    low = -1000
    high = 4095 * 2 - 1000
    close(tmp_path / "a.dcm", (expected - low) / (high - low), 12, 1e-6)


def test_dicom_monochrome1_is_inverted_after_the_window(tmp_path):
    window = {"WindowCenter": 3000, "WindowWidth": 1000}
    make_dicom(tmp_path / "one.dcm", GREY12, PhotometricInterpretation="MONOCHROME1", **window)
    make_dicom(tmp_path / "two.dcm", GREY12, **window)
    two = images.read(tmp_path / "two.dcm").pixels
    assert 0.3 < (two == 0).mean() < 0.8  # the window cuts, so the order matters
    close(tmp_path / "one.dcm", 1 - two, 12)


def test_dicom_voi_table(tmp_path):
    curve = (np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16)
    make_dicom(tmp_path / "a.dcm", GREY12, VOILUTSequence=pydicom.Sequence([dicom_table(curve, 10)]))
    close(tmp_path / "a.dcm", curve[GREY12] / 1023, 12)


def test_dicom_refusals_come_before_unpacking(tmp_path):
    make_dicom(tmp_path / "frames.dcm", GREY12, NumberOfFrames=2)
    check_refused(tmp_path / "frames.dcm", "2 frames")
    make_dicom(tmp_path / "giant.dcm", GREY12, Rows=60000, Columns=60000)
    check_refused(tmp_path / "giant.dcm", "60000 x 60000")
    make_dicom(tmp_path / "zero.dcm", GREY12, WindowCenter=1, WindowWidth=0)
    check_refused(tmp_path / "zero.dcm", "window width")
    dataset = make_dicom(tmp_path / "bomb.dcm", GREY8, 8)
    segment = bytes([129, 0]) * 500_000  # 128 zeros each: 64 MB for 714 pixels
    header = np.array([1, 64] + [0] * 14, "<u4").tobytes()
    dataset.PixelData = pydicom.encaps.encapsulate([header + segment])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    check_refused(tmp_path / "bomb.dcm", "unpack")


def test_pydicoms_own_files():
    plain = images.read(get_testdata_file("MR_small.dcm")).pixels
    packed = images.read(get_testdata_file("MR_small_RLE.dcm")).pixels
    assert np.array_equal(plain, packed)
    assert not plausibility.constant(plain)
    images.read(get_testdata_file("image_dfl.dcm"))  # deflated
    check_refused(get_testdata_file("rtplan.dcm"), "no pixel data")
    check_refused(get_testdata_file("MR_truncated.dcm"))


def test_missing_decoder_names_what_to_install(monkeypatch):
    path = get_testdata_file("MR_small_jpeg_ls_lossless.dcm")
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    check_refused(path, "pip install pylibjpeg", "JPEG-LS")
