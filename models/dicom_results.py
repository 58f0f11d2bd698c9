"""Results as DICOM files: the source's file with other pixels, filed beside it in an archive.

Called through `images.write_dicom` only. The grey values go back the way by which `dicom` read them: from what is shown
to the stored value, where the curve between the two rises or falls all along.
"""

import copy
import datetime
import hashlib
import io
from pathlib import Path

import numpy as np

from . import dicom
from .grey_values import Limits
from .runtime.files import UserError

SOFTWARE = "BS-LDM / GL-LCM bone suppression (research)"  # Manufacturer of the results
SERIES_OFFSET = 1000  # from the source's series number to its result's

# Attributes of the source that are no longer true of an image derived from it, whatever its pixels.
NOT_DERIVED = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "IconImageSequence",  # a thumbnail that still shows the bones
    "SourceImageSequence",  # written anew by `_describe_origin`
    "DigitalSignaturesSequence",  # over the source's content, which has changed
    "MACParametersSequence",
    "SeriesDate",  # the result belongs to a series of its own
    "SeriesTime",
    "InstanceCreatorUID",
    "NumberOfFrames",
    "PixelDataProviderURL",  # where the source's pixels could be fetched
    "FloatPixelData",
    "DoubleFloatPixelData",
)
# Attributes that describe how the source's values are shown, where a result has values of its own.
SOURCE_GREYS = (
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "VOILUTSequence",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PlanarConfiguration",
)
# An image for processing becomes one for presentation (DX, mammography, intra-oral; PS3.4 B.5).
FOR_PRESENTATION = {
    "1.2.840.10008.5.1.4.1.1.1.1.1": "1.2.840.10008.5.1.4.1.1.1.1",  # digital X-ray
    "1.2.840.10008.5.1.4.1.1.1.2.1": "1.2.840.10008.5.1.4.1.1.1.2",  # digital mammography
    "1.2.840.10008.5.1.4.1.1.1.3.1": "1.2.840.10008.5.1.4.1.1.1.3",  # digital intra-oral X-ray
}
WORDS = {
    "OW": 2,
    "OL": 4,
    "OF": 4,
    "OD": 8,
    "OV": 8,
}  # value representations of numbers in bytes, and their sizes (PS3.5 6.2)
# Transfer syntaxes whose pixels may have lost something already; a derived image has to say so (PS3.3 C.7.6.1.1.5).
LOSSY = {
    "1.2.840.10008.1.2.4.50",  # JPEG baseline, 8 bits
    "1.2.840.10008.1.2.4.51",  # JPEG extended, 12 bits
    "1.2.840.10008.1.2.4.81",  # JPEG-LS, near-lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000, lossy or not
}


def require_source(path: Path) -> None:
    """Raise UserError for a file whose result could not be filed with it in an archive; reads the header only."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        lacking = [
            keyword for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID") if not dataset.get(keyword)
        ]
    except Exception as error:  # as in `images.read`
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if lacking:
        raise UserError(f"{path} has no {' and no '.join(lacking)}, which a DICOM result needs")


def derive(source: Path, pixels: np.ndarray, description: str, software: tuple[str, ...], limits: Limits) -> bytes:
    """The content of a DICOM file, explicit little endian; see `images.write_dicom`."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    require_source(source)

    # The result in the source's own stored values, if what is shown leads back to them one to one; otherwise in values
    # of its own that fill all bits.
    original = dicom.open_image(source)
    stored = dicom.stored_values(original)
    grey = dicom.read_grey(original, stored, limits) if stored.ndim == 2 else None
    changed = _suppressed(grey, pixels, *dicom.stored_range(original)) if grey is not None else None

    dataset = _copy(original)
    if grey is not None and changed is not None:
        _describe_changed(dataset, grey)
    else:
        changed = _describe_new(dataset, pixels)

    # The pixels, uncompressed, with a zero to make their number of bytes even (PS3.5 7.1).
    signed = "i" if dataset.PixelRepresentation else "u"
    levels = changed.astype(f"<{signed}{int(dataset.BitsAllocated) // 8}").tobytes()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    # `dicom.stored_values` has shifted values of higher bits down.
    dataset.HighBit = int(dataset.BitsStored) - 1
    dataset.add_new("PixelData", "OB" if dataset.BitsAllocated == 8 else "OW", levels + b"\0" * (len(levels) % 2))

    _describe_origin(dataset, original, description, software, levels)
    # Nothing of the source's file header is kept: it names the old UID and the old packing.
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _suppressed(grey: dicom.Grey, pixels: np.ndarray, least: int, most: int) -> np.ndarray | None:
    """The stored values of a result that is shown as pixels (H, W) in [0, 1], int64; None where the way back is not one
    to one.

    Each stored value changes by the difference between the stored values of what is shown now and what was shown. What
    the window does not show, beyond black and white, so keeps its detail, and a pixel that has not changed keeps its
    value.
    """
    # A curve that goes up and down shows two stored values alike, and there is no way back.
    rises = grey.shown[-1] >= grey.shown[0]
    curve = grey.shown if rises else grey.shown[::-1]
    if np.any(np.diff(curve) < 0):
        return None
    # Of the stored values that look alike the middle one counts, but at black and white the one beside the shown range.
    looks, first, count = np.unique(curve, return_index=True, return_counts=True)
    place = first + (count - 1) / 2
    place[0] = first[0] + count[0] - 1
    place[-1] = first[-1]
    stored = grey.least + (place if rises else len(curve) - 1 - place)

    # Only the change is applied, so rounding and clipping of unchanged pixels cannot move them.
    before = grey.shown[grey.stored - grey.least]
    change = np.interp(np.clip(pixels, 0, 1), looks, stored) - np.interp(before, looks, stored)
    changed = np.clip(np.rint(grey.stored + change), least, most).astype(np.int64)
    return np.where(grey.padding, grey.stored, changed)


def _describe_changed(dataset, grey: dicom.Grey) -> None:
    """The values are the source's, so what shows them is too; what it left to the viewer is written down."""
    # What the standard leaves optional, viewers should not have to guess: the identity for values without units.
    if not dataset.get("ModalityLUTSequence"):
        defaults = {"RescaleIntercept": "0", "RescaleSlope": "1", "RescaleType": "US"}
        for keyword, value in defaults.items():
            if dataset.get(keyword) in (None, ""):
                setattr(dataset, keyword, value)
    # The range came from eval.range or from the source's values, which suppression changes: as a fixed window, the
    # result is shown as its source was.
    if grey.window is not None:
        for keyword in ("VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation"):
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.WindowCenter, dataset.WindowWidth = (_decimal(number) for number in grey.window)
    dataset.PresentationLUTShape = "INVERSE" if dataset.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"


def _describe_new(dataset, pixels: np.ndarray) -> np.ndarray:
    """Values that fill all bits, for a source in colour or with a table that leads to one grey value twice."""
    bits = int(dataset.BitsStored)
    # None of the source's grey scale applies to the new values: it goes, and a plain one is declared instead.
    for keyword in SOURCE_GREYS:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PixelRepresentation = 0
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.RescaleIntercept = "0"
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "US"
    dataset.WindowCenter = _decimal(2 ** (bits - 1))
    dataset.WindowWidth = _decimal(2**bits)
    unit = np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)
    return np.rint(unit * (2**bits - 1)).astype(np.int64)


def _describe_origin(dataset, original, description: str, software: tuple[str, ...], levels: bytes) -> None:
    """What the image is, what it was made from, by what and when."""
    import pydicom
    from pydicom.uid import generate_uid

    # The link back to the source, and the mark that these pixels were computed (PS3.3 C.7.6.1.1.2).
    origin = pydicom.Dataset()
    origin.ReferencedSOPClassUID = original.SOPClassUID
    origin.ReferencedSOPInstanceUID = original.SOPInstanceUID
    dataset.SourceImageSequence = pydicom.Sequence([origin])
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = description
    dataset.DerivationDescription = description

    # The result is for the eye, whatever the source was for. Once lossy, always lossy.
    dataset.SOPClassUID = FOR_PRESENTATION.get(original.SOPClassUID, original.SOPClassUID)
    if dataset.SOPClassUID in FOR_PRESENTATION.values() or "PresentationIntentType" in dataset:
        dataset.PresentationIntentType = "FOR PRESENTATION"
    if not dataset.get("LossyImageCompression"):
        dataset.LossyImageCompression = "01" if original.file_meta.TransferSyntaxUID in LOSSY else "00"

    # One series for each of the source's and each state of the software; one image for each content.
    # `generate_uid` hashes its sources, so the same run made twice has the same UIDs.
    maker = "/".join(software)
    series = str(original.get("SeriesInstanceUID") or original.StudyInstanceUID)
    content = hashlib.sha256(levels).hexdigest()
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series, maker])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(original.SOPInstanceUID), content, maker])
    dataset.SeriesNumber = SERIES_OFFSET + max(0, int(original.get("SeriesNumber") or 0))

    # SeriesDate and SeriesTime are left out (NOT_DERIVED): they would differ among the images of one series.
    now = datetime.datetime.now()
    date = now.strftime("%Y%m%d")
    time = now.strftime("%H%M%S")
    dataset.InstanceCreationDate = date
    dataset.InstanceCreationTime = time
    dataset.ContentDate = date
    dataset.ContentTime = time
    _describe_equipment(dataset, software, date + time)


def _describe_equipment(dataset, software: tuple[str, ...], now: str) -> None:
    """This software as what made the image; the source's equipment, and this, as what contributed to it (PS3.3
    C.12.1.1.5)."""
    import pydicom

    # The device that took the X-ray moves from the equipment module to the list of contributors.
    acquisition = pydicom.Dataset()
    for keyword in (
        "Manufacturer",
        "InstitutionName",
        "StationName",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
    ):
        value = dataset.get(keyword)
        if value not in (None, ""):
            setattr(acquisition, keyword, value)
    if "Manufacturer" not in acquisition:
        acquisition.Manufacturer = "unknown"
    # Codes of PS3.16, context group 7005.
    acquisition.PurposeOfReferenceCodeSequence = _code("109101", "Acquisition Equipment")

    # A long string (LO) holds 64 characters (PS3.5 6.2). The serial number is the detector's, not this software's.
    dataset.Manufacturer = SOFTWARE
    dataset.ManufacturerModelName = (software[0] if software else "bone suppression")[:64]
    dataset.SoftwareVersions = [text[:64] for text in software] or "unknown"
    if "DeviceSerialNumber" in dataset:
        del dataset.DeviceSerialNumber

    processing = pydicom.Dataset()
    processing.PurposeOfReferenceCodeSequence = _code("109102", "Processing Equipment")
    processing.Manufacturer = dataset.Manufacturer
    processing.ManufacturerModelName = dataset.ManufacturerModelName
    processing.SoftwareVersions = dataset.SoftwareVersions
    processing.ContributionDateTime = now
    processing.ContributionDescription = "bone suppression by a neural network"
    # Contributors of earlier steps stay, so that the chain is complete.
    earlier = list(dataset.get("ContributingEquipmentSequence") or [])
    dataset.ContributingEquipmentSequence = pydicom.Sequence([*earlier, acquisition, processing])


def _code(value: str, meaning: str):
    """A code of the DICOM controlled terminology, as a sequence of one item."""
    import pydicom

    code = pydicom.Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = "DCM"
    code.CodeMeaning = meaning
    return pydicom.Sequence([code])


def _decimal(number: float):
    """A number in the at most 16 characters of a decimal string."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(number), auto_format=True)


def _copy(original):
    """The dataset without its pixels, private attributes and what is not true of derived images, ready for little
    endian.

    Zeros behind the last attribute, with which some archives fill files up, are read as attributes of group 0; they go
    too.
    """
    # The result is little endian: a big-endian source needs the words in its binary attributes turned.
    if original.file_meta.TransferSyntaxUID.is_little_endian:
        dataset = copy.copy(original)
    else:
        dataset = _little_endian(original)
    for tag in list(dataset.keys()):
        # An overlay group without OverlayData (60xx,3000) lies in the pixels' upper bits, which are cleared.
        embedded_overlay = 0x6000 <= tag.group <= 0x60FF and (tag.group, 0x3000) not in dataset
        if tag.group <= 2 or embedded_overlay or tag == (0x7FE0, 0x0010):
            del dataset[tag]
    _remove_private(dataset)
    for keyword in NOT_DERIVED:
        if keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def _little_endian(original):
    """The same attributes without their big-endian coding, words in them turned; those that cannot be read are left
    out."""
    import pydicom

    dataset = pydicom.Dataset()
    for tag in original.keys():
        try:
            element = original[tag]
        except Exception:  # pydicom raises anything on a value that is not of its type
            continue
        value = element.value
        if element.VR == "SQ":
            value = pydicom.Sequence([_little_endian(item) for item in value])
        elif element.VR in WORDS and isinstance(value, bytes):
            # An incomplete word at the end is cut.
            words = np.frombuffer(
                value[: len(value) // WORDS[element.VR] * WORDS[element.VR]], f">u{WORDS[element.VR]}"
            )
            value = words.byteswap().tobytes()
        dataset.add_new(tag, element.VR, value)
    return dataset


def _remove_private(dataset) -> None:
    """In place, in all sequences too; what is not read here stays as it is in the file, since it may be faulty."""
    from pydicom.datadict import dictionary_VR

    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        try:
            representation = dataset.get_item(tag).VR or dictionary_VR(tag)  # implicit files do not say it
        except KeyError:
            continue
        # Private attributes hide in the items of public sequences too.
        if representation == "SQ":
            for item in dataset[tag].value or []:
                _remove_private(item)
