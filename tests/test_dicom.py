"""DICOM files are shown as the standard says, and an archive takes their results and a viewer shows them right."""

import os

import numpy as np
import pydicom
import pytest
from image_files import GREY8, GREY12, check_refused, close, make_dicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless, generate_uid

from models import images, plausibility
from models.runtime.files import UserError

RNG = np.random.default_rng(2)


def make_source(path, stored, bits=12, **tags):
    """A DICOM file that a result can be derived from."""
    about = {
        "PatientName": "Doe^Jane",
        "PatientID": "7",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
    }
    dataset = make_dicom(path, stored, bits, **(about | tags))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path)
    return dataset


def write_identified(path):
    """Give a DICOM file the study that results need; its path."""
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.save_as(path)
    return path


def table(curve, bits, announced=None):
    """An item of a sequence of lookup tables."""
    item = pydicom.Dataset()
    item.LUTDescriptor = [announced or len(curve), 0, bits]
    item.LUTData = curve.tolist()
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    return item


def test_without_window_the_images_own_range_is_shown(tmp_path):
    levels = GREY12 // 3 + 500  # 500 to 1864 of 4095
    unit = (levels - levels.min()) / (levels.max() - levels.min())
    make_dicom(tmp_path / "plain.dcm", levels)
    make_dicom(tmp_path / "sixteen.dcm", levels, bits=16)
    make_dicom(tmp_path / "rescaled.dcm", levels, RescaleSlope=2, RescaleIntercept=-1000)
    make_dicom(tmp_path / "overlay.dcm", levels | 0xF000)  # in the unused bits
    make_dicom(tmp_path / "signed.dcm", levels.astype(np.int16) - 1000, bits=16)
    make_dicom(tmp_path / "negative.dcm", levels.astype(np.int16) - 2048)
    for name in ("plain", "sixteen", "rescaled", "overlay", "signed", "negative"):
        close(tmp_path / f"{name}.dcm", unit, 16 if name in ("sixteen", "signed") else 12)
        assert images.read(tmp_path / f"{name}.dcm").note == ""
    make_dicom(tmp_path / "flat.dcm", np.full_like(levels, 700))
    with pytest.raises(UserError, match="all its pixels are the same"):
        plausibility.check(images.read(tmp_path / "flat.dcm"))


def test_limits_of_a_dicom(tmp_path):
    make_dicom(tmp_path / "a.dcm", GREY12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=100, WindowWidth=50)
    np.testing.assert_allclose(images.read(tmp_path / "a.dcm", "container").pixels, GREY12 / 4095, atol=1e-7)
    given = images.read(tmp_path / "a.dcm", (-500, 3000)).pixels
    np.testing.assert_allclose(given, np.clip((GREY12 * 2.0 - 1000 + 500) / 3500, 0, 1), atol=1e-7)


def test_high_bit_above_the_stored_bits(tmp_path):
    shifted = (GREY12 << 4 | 0b1010).astype(np.uint16)  # something else in the low bits
    make_dicom(tmp_path / "shifted.dcm", shifted, HighBit=15)
    close(tmp_path / "shifted.dcm", (GREY12 - GREY12.min()) / (GREY12.max() - GREY12.min()), 12)
    signed = ((GREY12.astype(np.int32) - 2048) << 4).astype(np.int16)
    make_dicom(tmp_path / "signed.dcm", signed, HighBit=15)
    close(tmp_path / "signed.dcm", (GREY12 - GREY12.min()) / (GREY12.max() - GREY12.min()), 12)
    make_dicom(tmp_path / "lies.dcm", GREY12, HighBit=15)  # the values fit as they are
    close(tmp_path / "lies.dcm", (GREY12 - GREY12.min()) / (GREY12.max() - GREY12.min()), 12)
    result = images.read(tmp_path / "shifted.dcm").pixels * np.float32(0.9)
    images.write_dicom(tmp_path / "out.dcm", result, write_identified(tmp_path / "shifted.dcm"), "x")
    assert pydicom.dcmread(tmp_path / "out.dcm").HighBit == 11
    close(tmp_path / "out.dcm", result, 12, 0.51 / 4000)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_of_the_range(tmp_path, photometric):
    levels = GREY12 // 2 + 1000
    unit = (levels - levels[:, 5:].min()) / np.float64(np.ptp(levels[:, 5:]))
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
    make_dicom(tmp_path / "a.dcm", GREY12, ModalityLUTSequence=pydicom.Sequence([table(curve, 10)]))
    found = curve[GREY12].astype(np.float64)
    close(tmp_path / "a.dcm", (found - found.min()) / np.ptp(found), 12)
    np.testing.assert_allclose(images.read(tmp_path / "a.dcm", "container").pixels, found / 1023, atol=1e-7)
    make_dicom(tmp_path / "b.dcm", GREY12, ModalityLUTSequence=pydicom.Sequence([table(curve[:9], 10, announced=4096)]))
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
    low, high = -1000, 4095 * 2 - 1000
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
    make_dicom(tmp_path / "a.dcm", GREY12, VOILUTSequence=pydicom.Sequence([table(curve, 10)]))
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
    plain, packed = (images.read(get_testdata_file(name)).pixels for name in ("MR_small.dcm", "MR_small_RLE.dcm"))
    assert np.array_equal(plain, packed) and not plausibility.constant(plain)
    images.read(get_testdata_file("image_dfl.dcm"))  # deflated
    check_refused(get_testdata_file("rtplan.dcm"), "no pixel data")
    check_refused(get_testdata_file("MR_truncated.dcm"))


def test_missing_decoder_names_what_to_install(monkeypatch):
    path = get_testdata_file("MR_small_jpeg_ls_lossless.dcm")
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    check_refused(path, "pip install pylibjpeg", "JPEG-LS")


# --- Results


def test_result_keeps_patient_study_and_window_and_is_shown_right(tmp_path):
    source = make_source(
        tmp_path / "in.dcm",
        GREY12,
        WindowCenter=[2000, 900],
        WindowWidth=[3000, 500],
        PixelSpacing=[0.2, 0.2],
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=2,
        RescaleIntercept=-1000,
    )
    before = (tmp_path / "in.dcm").read_bytes()
    shown = images.read(tmp_path / "in.dcm").pixels
    result = shown * np.float32(0.8)
    images.write_dicom(tmp_path / "out" / "a.dcm", result, tmp_path / "in.dcm", "bone-suppressed, not for diagnosis")
    derived = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    again = images.read(tmp_path / "out" / "a.dcm")
    inside = (shown > 0) & (shown < 1)
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(again.pixels[inside], result[inside], atol=0.51 * 2 / 2999)  # to half a stored value
    for keyword in (
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "PixelSpacing",
        "SOPClassUID",
        "WindowCenter",
        "WindowWidth",
        "RescaleSlope",
        "RescaleIntercept",
        "PhotometricInterpretation",
        "BitsStored",
        "BitsAllocated",
    ):
        assert derived[keyword].value == source[keyword].value, keyword
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert derived[keyword].value != source[keyword].value
    assert derived.file_meta.MediaStorageSOPInstanceUID == derived.SOPInstanceUID
    assert derived.file_meta.MediaStorageSOPClassUID == derived.SOPClassUID
    assert (
        derived.ImageType == ["DERIVED", "SECONDARY"]
        and derived.SeriesDescription == "bone-suppressed, not for diagnosis"
    )
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (tmp_path / "in.dcm").read_bytes() == before and os.listdir(tmp_path / "out") == ["a.dcm"]


def test_result_can_be_windowed_again(tmp_path):
    """What the source's narrow window cuts is in the result's values: less the bone, not burnt in."""
    make_source(tmp_path / "in.dcm", GREY12, WindowCenter=2000, WindowWidth=1000)
    shown = images.read(tmp_path / "in.dcm").pixels
    images.write_dicom(tmp_path / "out.dcm", shown, tmp_path / "in.dcm", "x")
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, GREY12)  # nothing changed: to the number
    images.write_dicom(tmp_path / "out.dcm", np.clip(shown - np.float32(0.1), 0, 1), tmp_path / "in.dcm", "x")
    changed = pydicom.dcmread(tmp_path / "out.dcm").pixel_array.astype(int) - GREY12
    white = shown == 1
    assert white.mean() > 0.2 and np.abs(changed[white] + 100).max() <= 1  # a tenth of the window's width
    assert np.all(changed[shown == 0] == 0)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"bits": 16},
        {"WindowCenter": 2000, "WindowWidth": 2500, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2000, "WindowWidth": 2500, "VOILUTFunction": "LINEAR_EXACT"},
        {"RescaleSlope": -1, "RescaleIntercept": 4095},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"voi": 10},
        {"modality": 12},
    ],
)
def test_result_is_shown_as_it_was_given_whatever_shows_the_source(tmp_path, tags):
    tags = dict(tags)
    curve = np.sqrt(np.arange(4096) / 4095)
    for keyword, name in (("voi", "VOILUTSequence"), ("modality", "ModalityLUTSequence")):
        if keyword in tags:
            bits = tags.pop(keyword)
            tags[name] = pydicom.Sequence([table((curve * (2**bits - 1)).astype(np.uint16), bits)])
    make_source(tmp_path / "in.dcm", GREY12 // 2 + 900, **tags)
    shown = images.read(tmp_path / "in.dcm").pixels
    middle = (shown > 0.1) & (shown < 0.9)
    result = (shown - np.float32(0.05)).clip(0, 1)
    images.write_dicom(tmp_path / "out.dcm", result, tmp_path / "in.dcm", "x")
    again = images.read(tmp_path / "out.dcm").pixels
    assert middle.mean() > 0.3
    np.testing.assert_allclose(again[middle], result[middle], atol=2e-3)
    # and as pydicom shows it, which knows no range of the image's own
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    if "VOILUTSequence" not in tags and "ModalityLUTSequence" not in tags:
        values = apply_modality_lut(derived.pixel_array, derived)
        ends = apply_modality_lut(
            np.array([0, 2**derived.BitsStored - 1]), derived
        )  # the range that pydicom gives back
        by_pydicom = (apply_windowing(values, derived) - ends[0]) / (ends[1] - ends[0])
        if derived.PhotometricInterpretation == "MONOCHROME1":
            by_pydicom = 1 - by_pydicom
        np.testing.assert_allclose(by_pydicom[middle], result[middle], atol=2e-3)


def test_result_of_a_table_that_turns_back_is_written_with_values_of_its_own(tmp_path):
    curve = np.concatenate([np.arange(2048), np.arange(2048)[::-1]]).astype(np.uint16)
    make_source(tmp_path / "in.dcm", GREY12, VOILUTSequence=pydicom.Sequence([table(curve, 11)]))
    result = RNG.random(GREY12.shape).astype(np.float32)
    images.write_dicom(tmp_path / "out.dcm", result, tmp_path / "in.dcm", "x")
    close(tmp_path / "out.dcm", result, 12, 0.51 / 4095)
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    assert "VOILUTSequence" not in derived and (derived.WindowCenter, derived.WindowWidth) == (2048, 4096)


def test_results_of_odd_sizes_packed_sources_and_colour(tmp_path):
    make_source(tmp_path / "odd.dcm", GREY8[:, :33], 8)
    shown = images.read(tmp_path / "odd.dcm").pixels
    images.write_dicom(tmp_path / "odd out.dcm", shown, tmp_path / "odd.dcm", "x")
    close(tmp_path / "odd out.dcm", shown, 8)
    packed = get_testdata_file("MR_small_RLE.dcm")
    images.write_dicom(tmp_path / "packed.dcm", images.read(packed).pixels, packed, "x")
    assert np.array_equal(pydicom.dcmread(tmp_path / "packed.dcm").pixel_array, pydicom.dcmread(packed).pixel_array)
    colour = get_testdata_file("SC_rgb_small_odd.dcm")
    images.write_dicom(tmp_path / "grey.dcm", images.read(colour).pixels, colour, "x")
    close(tmp_path / "grey.dcm", images.read(colour).pixels, 8, 0.51 / 255)
    assert "PlanarConfiguration" not in pydicom.dcmread(tmp_path / "grey.dcm")


def test_big_endian_sources_and_trailing_zeros(tmp_path):
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    dataset = make_source(tmp_path / "little.dcm", GREY12, **window)
    (tmp_path / "zeros.dcm").write_bytes((tmp_path / "little.dcm").read_bytes() + b"\0" * 512)
    shown = images.read(tmp_path / "little.dcm").pixels
    big = pydicom.Dataset()
    for element in dataset:
        big.add_new(element.tag, element.VR, element.value)
    big.PixelData = GREY12.astype(">u2").tobytes()
    big.file_meta = pydicom.dataset.FileMetaDataset()
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big.RealWorldValueMappingSequence = pydicom.Sequence([pydicom.Dataset()])
    big.RealWorldValueMappingSequence[0].RedPaletteColorLookupTableData = np.arange(5, dtype=">u2").tobytes()
    big.save_as(tmp_path / "big.dcm", enforce_file_format=True, implicit_vr=False, little_endian=False)
    for name in ("little", "zeros", "big"):
        close(tmp_path / f"{name}.dcm", shown, 12)
        images.write_dicom(tmp_path / f"{name} out.dcm", shown, tmp_path / f"{name}.dcm", "x")
        derived = pydicom.dcmread(tmp_path / f"{name} out.dcm")
        assert derived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(derived.pixel_array, GREY12) and derived.PatientName == "Doe^Jane"
        if name == "big":
            words = derived.RealWorldValueMappingSequence[0].RedPaletteColorLookupTableData
            assert np.array_equal(np.frombuffer(words, "<u2"), np.arange(5))


def test_result_has_what_its_class_requires(tmp_path):
    """Attributes of type 1 that follow from pixels or derivation, after PS3.3 A.26 (DX), A.2 (CR) and A.8 (SC)."""
    dx = {
        "ImageType",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
        "PresentationLUTShape",
        "LossyImageCompression",
        "WindowCenter",
        "WindowWidth",
        "PresentationIntentType",
        "PixelData",
        "Rows",
        "Columns",
        "SOPInstanceUID",
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "PixelIntensityRelationship",
        "PixelIntensityRelationshipSign",
        "BurnedInAnnotation",
        "Modality",
    }
    grey = dx - {
        "PresentationIntentType",
        "PixelIntensityRelationship",
        "PixelIntensityRelationshipSign",
        "BurnedInAnnotation",
    }
    processing, presentation = "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
    own = {
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "BurnedInAnnotation": "NO",
        "Modality": "DX",
    }
    classes = {
        processing: (presentation, dx, own | {"PresentationIntentType": "FOR PROCESSING"}),
        presentation: (presentation, dx, own | {"PresentationIntentType": "FOR PRESENTATION"}),
        "1.2.840.10008.5.1.4.1.1.1": ("1.2.840.10008.5.1.4.1.1.1", grey, {"Modality": "CR"}),
        "1.2.840.10008.5.1.4.1.1.7": ("1.2.840.10008.5.1.4.1.1.7", grey, {"Modality": "OT"}),
    }
    for source_class, (result_class, required, tags) in classes.items():
        for photometric, shape in (("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")):
            make_source(
                tmp_path / "in.dcm", GREY12, SOPClassUID=source_class, PhotometricInterpretation=photometric, **tags
            )
            images.write_dicom(tmp_path / "out.dcm", images.read(tmp_path / "in.dcm").pixels, tmp_path / "in.dcm", "x")
            derived = pydicom.dcmread(tmp_path / "out.dcm")
            lacking = {keyword for keyword in required if derived.get(keyword) in (None, "")}
            assert not lacking and derived.SOPClassUID == derived.file_meta.MediaStorageSOPClassUID == result_class
            assert derived.PresentationLUTShape == shape and derived.RescaleType == "US"
            if "PresentationIntentType" in required:
                assert derived.PresentationIntentType == "FOR PRESENTATION"
            assert derived.HighBit == derived.BitsStored - 1


def test_result_says_by_what_and_when_it_was_made(tmp_path):
    source = make_source(
        tmp_path / "in.dcm",
        GREY12,
        InstanceCreationDate="20010101",
        SeriesDate="20010101",
        SeriesTime="010101",
        SeriesNumber=3,
        Manufacturer="ACME",
        ManufacturerModelName="Ray 1",
        DeviceSerialNumber="42",
    )
    source.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "secret")
    item = pydicom.Dataset()
    item.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "secret")
    source.RequestAttributesSequence = pydicom.Sequence([item])
    source.save_as(tmp_path / "in.dcm")
    software = ("GL-LCM", "code 1a2b", "weights 3c4d")
    images.write_dicom(
        tmp_path / "out.dcm", images.read(tmp_path / "in.dcm").pixels, tmp_path / "in.dcm", "x", software
    )
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    assert b"secret" not in (tmp_path / "out.dcm").read_bytes()
    assert derived.InstanceCreationDate > "20200101" and "SeriesDate" not in derived and "SeriesTime" not in derived
    assert (
        derived.SeriesNumber == 1003
        and derived.ManufacturerModelName == "GL-LCM"
        and "DeviceSerialNumber" not in derived
    )
    acquisition, processing = derived.ContributingEquipmentSequence
    assert acquisition.Manufacturer == "ACME" and acquisition.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (
        list(processing.SoftwareVersions) == list(software)
        and processing.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    )
    assert processing.ContributionDateTime.startswith(derived.InstanceCreationDate)


def test_uids_follow_from_the_content(tmp_path):
    """The same result sent twice is one image; the results of one series are one series, and of other weights another
    one."""
    series = generate_uid()
    for name in "ab":
        make_source(tmp_path / f"{name}.dcm", GREY12, SeriesInstanceUID=series)
    shown = images.read(tmp_path / "a.dcm").pixels

    def uids(name, pixels, *software):
        images.write_dicom(tmp_path / "out.dcm", pixels, tmp_path / f"{name}.dcm", "x", software)
        derived = pydicom.dcmread(tmp_path / "out.dcm")
        return derived.SOPInstanceUID, derived.SeriesInstanceUID

    first = uids("a", shown, "GL-LCM", "weights 1")
    assert uids("a", shown, "GL-LCM", "weights 1") == first
    other_image = uids("b", shown, "GL-LCM", "weights 1")
    other_pixels = uids("a", shown * np.float32(0.5), "GL-LCM", "weights 1")
    assert len({first[0], other_image[0], other_pixels[0]}) == 3 and first[1] == other_image[1] == other_pixels[1]
    other_weights = uids("a", shown, "GL-LCM", "weights 2")
    assert other_weights[0] != first[0] and other_weights[1] != first[1]
    assert all(pydicom.uid.UID(uid).is_valid for uid in (*first, *other_image, *other_weights))


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"])
def test_sources_that_no_result_can_be_filed_with_are_refused(tmp_path, keyword):
    dataset = make_source(tmp_path / "in.dcm", GREY12)
    images.require_dicom_source(tmp_path / "in.dcm")
    delattr(dataset, keyword)
    dataset.save_as(tmp_path / "in.dcm")
    for ask in (
        lambda: images.require_dicom_source(tmp_path / "in.dcm"),
        lambda: images.write_dicom(
            tmp_path / "out.dcm", images.read(tmp_path / "in.dcm").pixels, tmp_path / "in.dcm", "x"
        ),
    ):
        with pytest.raises(UserError, match=f"in.dcm has no {keyword}"):
            ask()
    assert not (tmp_path / "out.dcm").exists()
