"""DICOM files <-> arrays in [0, 1]. Called through `images.read` and `images.write_dicom` only.

Grey values go the standard's way (PS3.3 C.11): modality LUT, then VOI LUT or window, then the photometric interpretation.
pydicom is imported when it is needed, since it takes a third of a second.
"""
import io
import re
import zlib
from pathlib import Path

import numpy as np

from .raster import MAX_PIXELS, refuse_size, to_grey
from .runtime.files import UserError, replacing

MAX_UNPACKED = 4 * MAX_PIXELS   # bytes of a deflated file

# Attributes that describe the grey values or the coding of one file's own pixels.
SOURCE_GREYS = (
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue",
    "LargestImagePixelValue", "PlanarConfiguration", "NumberOfFrames", "IconImageSequence", "PixelData", "SourceImageSequence",
    "DigitalSignaturesSequence")


# --- Reading -------------------------------------------------------------------------------------------------------------------

def is_dicom_head(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def read_dicom(path: Path) -> tuple[np.ndarray, int]:
    """(pixels (H, W) in [0, 1] as a viewer shows them, significant bits); any exception of pydicom for what is damaged."""
    import pydicom
    _refuse_deflated(path)
    dataset = pydicom.dcmread(path, force=True)
    _refuse_dicom(dataset)
    bits = int(dataset.BitsStored)
    stored = _stored_values(dataset)
    if stored.ndim == 3:
        return to_grey(stored) / (2.0 ** bits - 1), bits

    values = _voi(_modality(stored, dataset), dataset)
    pixels = np.clip(values, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
    return pixels, bits


def _stored_values(dataset) -> np.ndarray:
    """(H, W) or (H, W, 3). pydicom has cleared the bits above BitsStored, where old files keep overlays."""
    try:
        return dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        if not re.search("missing dependencies|does not support", str(error)):
            raise
        name = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"no decoder for {name}; pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg") from None


def _modality(stored: np.ndarray, dataset) -> np.ndarray:
    """Stored values -> the modality's values, float64."""
    from pydicom.pixels import apply_modality_lut
    return apply_modality_lut(stored, dataset).astype(np.float64)


def _voi(values: np.ndarray, dataset) -> np.ndarray:
    """The modality's values -> grey values, of which [0, 1] is shown: through the file's table, its window, or its whole range."""
    from pydicom.pixels import apply_voi
    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(np.rint(values).astype(np.int64), dataset) / (2.0 ** bits - 1)
    if dataset.get("WindowCenter") not in (None, "") and dataset.get("WindowWidth") not in (None, ""):
        return _window(values, dataset)
    low, high = _whole_range(dataset)
    return (values - low) / (high - low)


def _whole_range(dataset) -> tuple[float, float]:
    """The modality's values of the smallest and the largest number that the stored bits can hold."""
    if "ModalityLUTSequence" in dataset:
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    high = low + 2 ** bits - 1
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    return low, high


def _window(values: np.ndarray, dataset) -> np.ndarray:
    """PS3.3 C.11.2.1.2, the output in [0, 1]; the first of several windows."""
    centre, width = (float(np.ravel(dataset[keyword].value)[0]) for keyword in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else 1e-9):
        raise ValueError(f"its window width {width:g} is too small")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return np.where(values <= centre - 0.5, 0.0, 1.0)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


# --- Refusing --------------------------------------------------------------------------------------------------------------------

def _refuse_dicom(dataset) -> None:
    """What is no single grey or colour image of a sane size, from the header alone, before anything is unpacked."""
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise ValueError("it is no DICOM image (no pixel data)")
    refuse_size(int(dataset.Rows), int(dataset.Columns))
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"it holds {dataset.NumberOfFrames} frames; one is expected")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("palette colour is not a radiograph")
    if not 1 <= int(dataset.BitsStored) <= int(dataset.BitsAllocated) <= 16:
        raise ValueError(f"{dataset.BitsStored} of {dataset.BitsAllocated} bits a pixel are not supported (at most 16)")

    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:
        from pydicom.uid import ImplicitVRLittleEndian  # the standard's default, which files without a header have
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax.is_encapsulated and syntax.name == "RLE Lossless":
        _refuse_rle(dataset)


def _refuse_rle(dataset) -> None:
    """Two bytes of RLE can unpack to 128 (PS3.5 G.3): count them before pydicom unpacks without a limit."""
    from pydicom.encaps import generate_frames
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    limit = 2 * samples * int(dataset.BitsAllocated) // 8
    position = 64  # behind the table of segments
    unpacked = 0
    while position < len(frame) and unpacked <= limit:
        code = frame[position]
        if code < 128:      # so many bytes, and one, as they stand
            unpacked += code + 1
            position += code + 2
        elif code > 128:    # the next byte again and again
            unpacked += 257 - code
            position += 2
        else:               # nothing
            position += 1
    if unpacked > limit:
        raise ValueError("its packed pixels unpack to more than its size says")


def _refuse_deflated(path: Path) -> None:
    """A deflated DICOM is unpacked whole when it is opened: see first how large it becomes."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    with open(path, "rb") as file:
        if not is_dicom_head(file.read(132)):
            return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)  # preamble and magic, then the length's own element
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = unpacker.decompress(path.read_bytes()[start:], MAX_UNPACKED)
    if len(unpacked) >= MAX_UNPACKED:
        raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")


# --- Writing ---------------------------------------------------------------------------------------------------------------------

def write(path: Path, pixels: np.ndarray, source, bits: int, description: str) -> None:
    """See `images.write_dicom`. bits: of the source."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    dataset = pydicom.dcmread(source, force=True)
    missing = [keyword for keyword in ("SOPClassUID", "SOPInstanceUID") if not dataset.get(keyword)]
    if missing:
        raise UserError(f"{source} has no {' and no '.join(missing)}, which a DICOM result needs")
    origin = pydicom.Dataset()
    origin.ReferencedSOPClassUID = dataset.SOPClassUID
    origin.ReferencedSOPInstanceUID = dataset.SOPInstanceUID

    for keyword in SOURCE_GREYS:
        if keyword in dataset:
            delattr(dataset, keyword)

    # What it is and where it comes from.
    dataset.SourceImageSequence = pydicom.Sequence([origin])
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = description
    dataset.DerivationDescription = description
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()

    # Its pixels: grey, unsigned, of the source's depth.
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.Rows, dataset.Columns = pixels.shape
    unit = np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)
    levels = np.rint(unit * (2 ** bits - 1)).astype("<u1" if bits == 8 else "<u2")
    dataset.add_new("PixelData", "OB" if bits == 8 else "OW", levels.tobytes())

    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
