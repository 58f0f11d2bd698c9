"""DICOM files -> arrays in [0, 1]. Called through `images.read`; the way back is in `dicom_results`.

Grey values go the standard's way (PS3.3 C.11): modality LUT, then VOI LUT or window, then the photometric
interpretation. An image has at most 65536 stored values, so the way is gone once for each of them and not for each
pixel. pydicom is imported when it is needed, since it takes a third of a second.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .grey_values import MAX_PIXELS, Decoded, Limits, refuse_size, to_grey

# 256 MiB: twice the largest 16-bit grey image that is accepted.
MAX_UNPACKED = 4 * MAX_PIXELS  # bytes of a deflated file

# What an image cannot be shown without (PS3.3 C.7.6.3).
NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
NUMBERS = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")


@dataclass(frozen=True, eq=False)
class Grey:
    """A grey DICOM image. stored: int64 (H, W), its stored values; padding: bool (H, W), where they are no image.

    shown: float64 (N,), the grey value in [0, 1] of the stored values least, least + 1, ...
    window: (centre, width) of a linear window that shows the same, where the file's own attributes do not say how to
    show it.
    """

    stored: np.ndarray
    padding: np.ndarray
    shown: np.ndarray
    least: int
    window: tuple[float, float] | None

    @property
    def pixels(self) -> np.ndarray:
        """float64 (H, W) in [0, 1], padding black."""
        pixels = self.shown[self.stored - self.least]
        pixels[self.padding] = 0
        return pixels


# --- Reading ----------------------------------------------------------------------------------------------------------


def is_dicom_head(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def read_dicom(path: Path, limits: Limits) -> Decoded:
    """The image as a viewer shows it; any exception of pydicom for what is damaged. limits: see `images.read`."""
    dataset = open_image(path)
    bits = int(dataset.BitsStored)
    stored = stored_values(dataset)
    # Windows are defined for grey images only, so colour is shown as it is stored.
    if stored.ndim == 3:
        return Decoded(to_grey(stored) / (2.0**bits - 1), bits)
    grey = read_grey(dataset, stored, limits)
    stretched = limits == "auto" and grey.window is not None  # the file itself does not say how it is shown
    return Decoded(grey.pixels, bits, stretched=stretched)


def open_image(path: Path):
    """The pydicom dataset of a file that holds one image of a sane size, its pixels still packed.

    Raises ValueError for what is no such image, and any exception of pydicom for what is damaged.
    """
    import pydicom

    # The order matters: the deflated stream is measured before pydicom inflates it, numbers are mended before pydicom
    # parses them, and the header is checked before any pixel is unpacked. force: old files without
    # a preamble are read too.
    _refuse_deflated(path)
    dataset = pydicom.dcmread(path, force=True)
    _mend_numbers(dataset)
    _refuse_dicom(dataset)
    return dataset


def _mend_numbers(dataset) -> None:
    """Decimal commas, which some devices write, become points; an empty number is none. In place, before pydicom reads
    them."""
    for keyword in NUMBERS:
        # `get_item` leaves the value as the file's bytes; plain access would parse it, and fail.
        element = dataset.get_item(keyword)
        if element is None:
            continue
        if not element.value:
            del dataset[keyword]
        elif isinstance(element.value, bytes) and b"," in element.value:
            dataset[element.tag] = element._replace(value=element.value.replace(b",", b"."))


def _number(dataset, keyword: str, default: float) -> float:
    """The first value of a decimal attribute, or the default where the file has none."""
    if keyword not in dataset:
        return default
    # An attribute with several values, such as alternative windows, counts by its first.
    try:
        number = float(np.ravel(dataset[keyword].value)[0])
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"its {keyword} is no number")
    return number


def stored_values(dataset) -> np.ndarray:
    """(H, W) or (H, W, 3). pydicom clears the bits above BitsStored, where old files keep overlays.

    Where HighBit lies higher, the values are the upper bits (PS3.5 8.1.1) and pydicom is made to keep them; unless the
    values would fit into BitsStored bits as they are, and then it is HighBit that is wrong.
    """

    # How far the values lie above the lowest bit. In compressed frames the decoder has already put them right.
    bits = int(dataset.BitsStored)
    shift = int(dataset.get("HighBit", bits - 1)) + 1 - bits
    packed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if shift <= 0 or bits + shift > int(dataset.BitsAllocated) or packed:
        return _unpack(dataset)
    # pydicom masks by BitsStored, so the upper bits survive if that claims to be larger for a moment.
    dataset.BitsStored = bits + shift
    raw = _unpack(dataset)
    dataset.BitsStored = bits
    # Do all values fit into the declared bits unshifted? Then it is HighBit that is wrong.
    signed = bool(dataset.PixelRepresentation)
    fits = raw.max() < 2 ** (bits - 1 if signed else bits) and raw.min() >= (-(2 ** (bits - 1)) if signed else 0)
    return raw if fits else raw >> shift


def _unpack(dataset) -> np.ndarray:
    try:
        return dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        # A missing decoder is the user's to install; anything else is a damaged file.
        if not re.search("missing dependencies|does not support", str(error)):
            raise
        name = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"no decoder for {name}; pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg") from None


def read_grey(dataset, stored: np.ndarray, limits: Limits) -> Grey:
    """How the stored values (H, W) of a grey image are shown."""
    stored = stored.astype(np.int64)
    padding = _padding(stored, dataset)

    # One entry for each stored value that can occur, at most 65536: the curve is computed for these and not for each
    # pixel, and `dicom_results` walks it backwards.
    least, most = stored_range(dataset)
    least = min(least, int(stored.min()))  # some decoders give more than BitsStored says
    most = max(most, int(stored.max()))
    values = _modality(np.arange(least, most + 1), dataset)  # (N,)

    # What the user asked for wins; then the file's VOI LUT, its window, and, if it has neither, the values that occur,
    # as viewers do. `window` stays None where the file itself says how it is shown.
    window = None
    if isinstance(limits, tuple):
        shown, window = _between(values, *limits)
    elif limits == "container":
        shown, window = _between(values, *_whole_range(dataset))
    elif dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        # The third number of the descriptor is the number of bits of the table's output.
        white = 2.0 ** int(table.LUTDescriptor[2]) - 1
        shown = _look_up(np.rint(values).astype(np.int64), table, dataset) / white
    elif "WindowCenter" in dataset and "WindowWidth" in dataset:
        shown = _window(values, dataset)
    else:
        # Padding often has a value far outside the image's and would take up the grey scale.
        image = stored if padding.all() else stored[~padding]
        present = values[image - least]
        shown, window = _between(values, present.min(), present.max())

    # Beyond the window all is black or all white. The inversion comes last, after the VOI LUT (PS3.3 C.7.6.3.1.2).
    shown = np.clip(shown, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return Grey(stored, padding, shown, least, window)


def _padding(stored: np.ndarray, dataset) -> np.ndarray:
    """bool (H, W): the pixels that fill up the rectangle around the image (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first in (None, ""):
        return np.zeros(stored.shape, bool)
    # One padding value, or the two ends of a range of them, in either order.
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(first), int(first if limit in (None, "") else limit)]
    if dataset.PixelRepresentation:  # of signed values, often written unsigned
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def stored_range(dataset) -> tuple[int, int]:
    """The smallest and the largest number that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    least = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    # Two's complement for signed values.
    return least, least + 2**bits - 1


def _modality(stored: np.ndarray, dataset) -> np.ndarray:
    """Stored values -> the modality's values, float64."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    return stored.astype(np.float64) * _number(dataset, "RescaleSlope", 1) + _number(dataset, "RescaleIntercept", 0)


def _whole_range(dataset) -> tuple[float, float]:
    """The modality's values of the smallest and the largest number that the stored bits can hold."""
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    # A negative slope swaps the two.
    ends = _modality(np.array(stored_range(dataset)), dataset)
    return ends.min(), ends.max()


def _look_up(values: np.ndarray, item, dataset) -> np.ndarray:
    """Whole numbers through a table of the file (PS3.3 C.11.1.1), float64; those beside it get its ends."""
    # The descriptor: number of entries, stored value of the first entry, bits of an entry. A length of 65536 does not
    # fit into 16 bits and is written as 0.
    length, first, bits = (int(number) for number in item.LUTDescriptor)
    length = length or 2**16

    # pydicom gives words (OW) as bytes in the file's order; some writers pack entries of 8 bits one to a byte.
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * length else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))[:length]
    if len(table) < length or not 1 <= bits <= 16:
        raise ValueError(
            f"its table of {len(table)} values, {bits} bits, is not the one of {length} that its descriptor announces"
        )
    if first >= 2**15 and dataset.PixelRepresentation:  # a negative number that was read unsigned
        first -= 2**16
    return table[np.clip(values - first, 0, length - 1).astype(np.int64)]


def _between(values: np.ndarray, black: float, white: float) -> tuple[np.ndarray, tuple[float, float]]:
    """(values with black as 0 and white as 1, the DICOM window (centre, width) that shows the same)."""
    span = white - black
    if span <= 0:  # one value only; `plausibility.check` refuses such an image
        return np.zeros(values.shape), (black + 0.5, 1)
    # DICOM's LINEAR window has black at c - 1/2 - (w - 1)/2 and white at c - 1/2 + (w - 1)/2; solved for c and w.
    return (values - black) / span, ((black + white + 1) / 2, span + 1)


def _window(values: np.ndarray, dataset) -> np.ndarray:
    """PS3.3 C.11.2.1.2, the output in [0, 1]; the first of several windows."""
    centre = _number(dataset, "WindowCenter", 0)
    width = _number(dataset, "WindowWidth", 1)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    # A linear window is at least 1 wide by the standard, the other two only wider than 0; narrower ones divide by zero.
    if width < (1 if function == "LINEAR" else 1e-9):
        raise ValueError(f"its window width {width:g} is too small")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    # The linear formula divides by w - 1; at width 1 the standard makes it a step.
    if width == 1:
        return np.where(values <= centre - 0.5, 0.0, 1.0)

    # LINEAR, the default: the half and the one come from counting whole grey values, ends included (PS3.3 C.11.2.1.2).
    return (values - (centre - 0.5)) / (width - 1) + 0.5


# --- Refusing ---------------------------------------------------------------------------------------------------------


def _refuse_dicom(dataset) -> None:
    """What is no single grey or colour image of a sane size, from the header alone, before anything is unpacked."""
    # Is it an image, and complete enough to be shown?
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise ValueError("it is no DICOM image (no pixel data)")
    lacking = [keyword for keyword in NEEDED if dataset.get(keyword) in (None, "")]
    if lacking:
        raise ValueError(f"its header lacks {' and '.join(lacking)}")

    # Is it one grey image whose values a table of 16 bits can hold? Memory for it is taken only afterwards.
    refuse_size(int(dataset.Rows), int(dataset.Columns))
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"it holds {dataset.NumberOfFrames} frames; one is expected")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("palette colour is not a radiograph")
    if not 1 <= int(dataset.BitsStored) <= int(dataset.BitsAllocated) <= 16:
        raise ValueError(f"{dataset.BitsStored} of {dataset.BitsAllocated} bits a pixel are not supported (at most 16)")

    # How are the pixels packed?
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:
        from pydicom.uid import ImplicitVRLittleEndian  # the standard's default, which files without a header have

        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax.is_encapsulated and syntax.name == "RLE Lossless":
        _refuse_rle(dataset)


def _refuse_rle(dataset) -> None:
    """Two bytes of RLE can unpack to 128 (PS3.5 G.3): count them before pydicom unpacks without a limit."""
    from pydicom.encaps import generate_frames

    # Twice the bytes of the pixels is generous: hostile runs unpack to many times that.
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    limit = 2 * samples * int(dataset.BitsAllocated) // 8
    position = 64  # behind the table of segments
    unpacked = 0
    while position < len(frame) and unpacked <= limit:
        code = frame[position]
        if code < 128:  # so many bytes, and one, as they stand
            unpacked += code + 1
            position += code + 2
        elif code > 128:  # the next byte again and again
            unpacked += 257 - code
            position += 2
        else:  # nothing
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

    # A raw deflate stream without zlib's header, hence the negative window bits. The second argument of `decompress`
    # stops it before memory runs out.
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)  # preamble and magic, then the length's own element
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = unpacker.decompress(path.read_bytes()[start:], MAX_UNPACKED)
    if len(unpacked) >= MAX_UNPACKED:
        raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")
