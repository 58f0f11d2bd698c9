"""Results as DICOM files: an archive takes them and a viewer shows them right."""

import os

import numpy as np
import pydicom
import pytest
from image_files import GREY8, GREY12, close, dicom_table, make_dicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from models import images
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


def test_result_keeps_patient_study_and_window_and_is_shown_right(tmp_path):
    path = tmp_path / "in.dcm"
    source = make_source(
        path,
        GREY12,
        WindowCenter=[2000, 900],
        WindowWidth=[3000, 500],
        PixelSpacing=[0.2, 0.2],
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=2,
        RescaleIntercept=-1000,
    )
    before = path.read_bytes()
    shown = images.read(path).pixels
    result = shown * np.float32(0.8)
    out = tmp_path / "out" / "a.dcm"
    description = "bone-suppressed, not for diagnosis"
    images.write_dicom(out, result, path, description)
    derived = pydicom.dcmread(out)
    again = images.read(out)
    in_window = (shown > 0) & (shown < 1)
    assert 0.2 < in_window.mean() < 0.8
    half_a_stored_value = 0.51 * 2 / 2999
    np.testing.assert_allclose(again.pixels[in_window], result[in_window], atol=half_a_stored_value)
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
    assert derived.ImageType == ["DERIVED", "SECONDARY"]
    assert derived.SeriesDescription == description
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert path.read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["a.dcm"]


def test_result_can_be_windowed_again(tmp_path):
    """What the source's narrow window cuts is in the result's values: less the bone, not burnt in."""
    path = tmp_path / "in.dcm"
    make_source(path, GREY12, WindowCenter=2000, WindowWidth=1000)
    shown = images.read(path).pixels

    def stored_values(result) -> np.ndarray:
        images.write_dicom(tmp_path / "out.dcm", result, path, "x")
        return pydicom.dcmread(tmp_path / "out.dcm").pixel_array

    assert np.array_equal(stored_values(shown), GREY12)  # nothing changed: to the number
    darker = np.clip(shown - np.float32(0.1), 0, 1)
    change = stored_values(darker).astype(int) - GREY12
    white = shown == 1
    assert white.mean() > 0.2
    assert np.abs(change[white] + 100).max() <= 1  # a tenth of the window's width
    assert np.all(change[shown == 0] == 0)


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
            levels = (curve * (2**bits - 1)).astype(np.uint16)
            tags[name] = pydicom.Sequence([dicom_table(levels, bits)])
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
        windowed = apply_windowing(values, derived)
        # pydicom gives back the range of all stored values
        stored_range = np.array([0, 2**derived.BitsStored - 1])
        black, white = apply_modality_lut(stored_range, derived)
        by_pydicom = (windowed - black) / (white - black)
        if derived.PhotometricInterpretation == "MONOCHROME1":
            by_pydicom = 1 - by_pydicom
        np.testing.assert_allclose(by_pydicom[middle], result[middle], atol=2e-3)


def test_result_of_a_table_that_turns_back_is_written_with_values_of_its_own(tmp_path):
    curve = np.concatenate([np.arange(2048), np.arange(2048)[::-1]]).astype(np.uint16)
    make_source(tmp_path / "in.dcm", GREY12, VOILUTSequence=pydicom.Sequence([dicom_table(curve, 11)]))
    result = RNG.random(GREY12.shape).astype(np.float32)
    images.write_dicom(tmp_path / "out.dcm", result, tmp_path / "in.dcm", "x")
    close(tmp_path / "out.dcm", result, 12, 0.51 / 4095)
    derived = pydicom.dcmread(tmp_path / "out.dcm")
    assert "VOILUTSequence" not in derived
    assert (derived.WindowCenter, derived.WindowWidth) == (2048, 4096)


def test_results_of_odd_sizes_packed_sources_and_colour(tmp_path):
    make_source(tmp_path / "odd.dcm", GREY8[:, :33], 8)
    shown = images.read(tmp_path / "odd.dcm").pixels
    images.write_dicom(tmp_path / "odd out.dcm", shown, tmp_path / "odd.dcm", "x")
    close(tmp_path / "odd out.dcm", shown, 8)
    packed = get_testdata_file("MR_small_RLE.dcm")
    images.write_dicom(tmp_path / "packed.dcm", images.read(packed).pixels, packed, "x")
    before = pydicom.dcmread(packed).pixel_array
    after = pydicom.dcmread(tmp_path / "packed.dcm").pixel_array
    assert np.array_equal(after, before)
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
    item = pydicom.Dataset()
    item.RedPaletteColorLookupTableData = np.arange(5, dtype=">u2").tobytes()
    big.RealWorldValueMappingSequence = pydicom.Sequence([item])
    big.save_as(tmp_path / "big.dcm", enforce_file_format=True, implicit_vr=False, little_endian=False)
    for name in ("little", "zeros", "big"):
        close(tmp_path / f"{name}.dcm", shown, 12)
        images.write_dicom(tmp_path / f"{name} out.dcm", shown, tmp_path / f"{name}.dcm", "x")
        derived = pydicom.dcmread(tmp_path / f"{name} out.dcm")
        assert derived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(derived.pixel_array, GREY12)
        assert derived.PatientName == "Doe^Jane"
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
    processing = "1.2.840.10008.5.1.4.1.1.1.1.1"
    presentation = "1.2.840.10008.5.1.4.1.1.1.1"
    computed = "1.2.840.10008.5.1.4.1.1.1"
    secondary = "1.2.840.10008.5.1.4.1.1.7"
    own = {
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "BurnedInAnnotation": "NO",
        "Modality": "DX",
    }
    classes = {
        processing: (presentation, dx, own | {"PresentationIntentType": "FOR PROCESSING"}),
        presentation: (presentation, dx, own | {"PresentationIntentType": "FOR PRESENTATION"}),
        computed: (computed, grey, {"Modality": "CR"}),
        secondary: (secondary, grey, {"Modality": "OT"}),
    }
    path = tmp_path / "in.dcm"
    for source_class, (result_class, required, tags) in classes.items():
        for photometric, shape in (("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")):
            make_source(path, GREY12, SOPClassUID=source_class, PhotometricInterpretation=photometric, **tags)
            images.write_dicom(tmp_path / "out.dcm", images.read(path).pixels, path, "x")
            derived = pydicom.dcmread(tmp_path / "out.dcm")
            lacking = {keyword for keyword in required if derived.get(keyword) in (None, "")}
            assert not lacking
            assert derived.SOPClassUID == result_class
            assert derived.file_meta.MediaStorageSOPClassUID == result_class
            assert derived.PresentationLUTShape == shape
            assert derived.RescaleType == "US"
            if "PresentationIntentType" in required:
                assert derived.PresentationIntentType == "FOR PRESENTATION"
            assert derived.HighBit == derived.BitsStored - 1


def test_result_says_by_what_and_when_it_was_made(tmp_path):
    path = tmp_path / "in.dcm"
    source = make_source(
        path,
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
    source.save_as(path)
    software = ("GL-LCM", "code 1a2b", "weights 3c4d")
    out = tmp_path / "out.dcm"
    images.write_dicom(out, images.read(path).pixels, path, "x", software)
    derived = pydicom.dcmread(out)
    assert b"secret" not in out.read_bytes()
    assert derived.InstanceCreationDate > "20200101"
    assert derived.SeriesNumber == 1003
    assert derived.ManufacturerModelName == "GL-LCM"
    for keyword in ("SeriesDate", "SeriesTime", "DeviceSerialNumber"):
        assert keyword not in derived
    acquisition, processing = derived.ContributingEquipmentSequence
    assert acquisition.Manufacturer == "ACME"
    assert acquisition.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"  # Acquisition Equipment
    assert list(processing.SoftwareVersions) == list(software)
    assert processing.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"  # Processing Equipment
    assert processing.ContributionDateTime.startswith(derived.InstanceCreationDate)


def test_uids_follow_from_the_content(tmp_path):
    """The same result sent twice is one image; the results of one series are one series, and of other weights another
    one."""
    series_of_sources = generate_uid()
    for name in "ab":
        make_source(tmp_path / f"{name}.dcm", GREY12, SeriesInstanceUID=series_of_sources)
    shown = images.read(tmp_path / "a.dcm").pixels

    def uids(name, pixels, *software):
        images.write_dicom(tmp_path / "out.dcm", pixels, tmp_path / f"{name}.dcm", "x", software)
        derived = pydicom.dcmread(tmp_path / "out.dcm")
        return derived.SOPInstanceUID, derived.SeriesInstanceUID

    image, series = uids("a", shown, "GL-LCM", "weights 1")
    assert uids("a", shown, "GL-LCM", "weights 1") == (image, series)
    image_of_b, series_of_b = uids("b", shown, "GL-LCM", "weights 1")
    image_of_pixels, series_of_pixels = uids("a", shown * np.float32(0.5), "GL-LCM", "weights 1")
    image_of_weights, series_of_weights = uids("a", shown, "GL-LCM", "weights 2")
    assert len({image, image_of_b, image_of_pixels, image_of_weights}) == 4
    assert series_of_b == series
    assert series_of_pixels == series
    assert series_of_weights != series
    for uid in (image, image_of_b, image_of_pixels, image_of_weights, series, series_of_weights):
        assert pydicom.uid.UID(uid).is_valid


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"])
def test_sources_that_no_result_can_be_filed_with_are_refused(tmp_path, keyword):
    path = tmp_path / "in.dcm"
    dataset = make_source(path, GREY12)
    images.require_dicom_source(path)
    delattr(dataset, keyword)
    dataset.save_as(path)
    with pytest.raises(UserError, match=f"in.dcm has no {keyword}"):
        images.require_dicom_source(path)
    with pytest.raises(UserError, match=f"in.dcm has no {keyword}"):
        images.write_dicom(tmp_path / "out.dcm", images.read(path).pixels, path, "x")
    assert not (tmp_path / "out.dcm").exists()
