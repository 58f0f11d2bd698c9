"""Files that hold nothing but grey values: PNG, TIFF, JPEG and their like, NumPy arrays, JSRT's raw .IMG.

Called through `images.read` only. Each reader takes a path and the limits that `images.read` was given, and returns a
`Decoded`. It raises ValueError, or whatever its decoder raises, for what is damaged, too large or no single image;
`images.read` makes one line of it.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from . import png
from .grey_values import Decoded, Limits, refuse_size, scaled, scaled_between, scaled_floats, to_grey

JSRT_SIDE = 2048  # the database's .IMG files are squares of this side, 16-bit big-endian, with dark bones
JSRT_BITS = 12  # of which so many are used
# Of Pillow's decoders; the others are not X-rays'.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")

# Tag numbers (TIFF 6.0)
TIFF_BITS = 258  # BitsPerSample
TIFF_PHOTOMETRIC = 262  # PhotometricInterpretation; 0: the value 0 is white
TIFF_ORIENTATION = 274  # EXIF's too
TIFF_MAX = 281  # MaxSampleValue, unsigned
TIFF_FORMAT = 339  # SampleFormat; 1: unsigned integers
TIFF_SMAX = 341  # SMaxSampleValue, of the samples' own type


# --- PNG, TIFF, JPEG and others ---------------------------------------------------------------------------------------


def read_picture(path: Path, limits: Limits) -> Decoded:
    """All of FORMATS. Pillow notices truncated data; OpenCV reads the one thing that Pillow cuts to 8 bits, 16-bit
    colour."""
    content = path.read_bytes()
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)  # the header only
    except Image.UnidentifiedImageError:
        # The two byte orders of a TIFF: Pillow knows neither 16- nor 64-bit floats in it.
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _float_tiff(content, limits)
        raise
    with picture:
        # What the header says is checked before anything is unpacked.
        refuse_size(picture.height, picture.width)
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"it holds {frames} images; one is expected")
        orientation = _orientation(picture)
        decoded = _decode(content, picture, limits)
    # The decoders differ here: a TIFF would be turned twice.
    turned = picture.format == "TIFF"  # by Pillow when it loads, and by OpenCV
    pixels = decoded.pixels if turned else upright(decoded.pixels, orientation)
    return Decoded(pixels, decoded.bits, decoded.scale, decoded.note, orientation)


def _decode(content: bytes, picture, limits: Limits) -> Decoded:
    """The grey values of an opened picture, as they lie in the file."""
    # Each kind of pixel goes where nothing of it is lost: Pillow would rescale a binary PGM and cut 16-bit colour to 8.
    if content.startswith(b"P5") and picture.mode == "I":
        return _raw_pgm(content, picture, limits)

    # The header is read before `load`, which raises where data are missing.
    declared = _declared(content, picture)
    picture.load()
    # Pillow's modes: F is 32-bit floats, I and I;16 are whole numbers above 8 bits, all others have 8 bits a channel.
    if picture.mode == "F":
        return scaled_floats(np.asarray(picture), limits)
    if picture.mode.startswith("I"):
        return _whole_numbers(picture, declared, limits)
    if declared.container == 16:
        return _of_declared(_colour_of_16_bits(content), declared, limits)
    return _of_declared(_eight_bits(picture), _Declared(8, 8, 255, declared.limits), limits)


@dataclass(frozen=True)
class _Declared:
    """What a header says of its grey levels; bits and white None: nothing beside the container's bits."""

    container: int
    bits: int | None = None
    white: int | None = None
    limits: tuple[float, float] | None = None  # that this project wrote


def _of_declared(levels: np.ndarray, declared: _Declared, limits: Limits, white_is_zero: bool = False) -> Decoded:
    # A PNG that this project wrote says which values are black and white.
    if limits == "auto" and declared.limits is not None:
        return scaled_between(levels, declared.container, declared.limits)
    white = declared.white
    # Writers that put 12 bits into 16 without scaling them are common; if all fit into sBIT bits, this is one.
    if declared.bits is not None and white == 2**16 - 1 and levels.max() <= 2**declared.bits - 1:
        white = 2**declared.bits - 1
    return scaled(levels, declared.container, limits, bits=declared.bits, white=white, white_is_zero=white_is_zero)


def _whole_numbers(picture, declared: _Declared, limits: Limits) -> Decoded:
    """A grey picture of more than 8 bits."""
    # Signed integers and white as 0 are known from TIFF's tags only.
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    signed = tags.get(TIFF_FORMAT, (1,)) not in (1, (1,))
    levels = np.asarray(picture)
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == 0  # Pillow turns 8 bits only
    # Neither zero nor the largest number means black or white here; guessing would scale a pair's two images
    # differently.
    if declared.container > 16 or signed:
        if isinstance(limits, tuple):
            return scaled_between(levels, declared.container, limits, white_is_zero)
        raise ValueError(
            f"{declared.container}-bit or signed integers have no known range; save it as 8- or 16-bit unsigned, "
            "or give eval.range=BLACK..WHITE (of training pairs data.source=, data.range=)"
        )
    return _of_declared(levels.astype(np.uint16), declared, limits, white_is_zero)


def _colour_of_16_bits(content: bytes) -> np.ndarray:
    levels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    # OpenCV returns None instead of raising, and 8 bits for some kinds of file.
    if levels is None or levels.dtype != np.uint16:
        raise ValueError("this kind of 16-bit colour is not supported; save it as 16-bit grey")
    if levels.ndim == 3:
        levels = levels[..., 2::-1]  # OpenCV has blue first
    return to_grey(levels)


def _eight_bits(picture) -> np.ndarray:
    """The levels of a picture of at most 8 bits a channel; palettes are looked up, alpha is dropped."""
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return to_grey(np.asarray(picture.convert(mode)))


def _orientation(picture) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the EXIF data are damaged."""
    try:
        orientation = picture.getexif().get(TIFF_ORIENTATION, 1)
    except Exception:  # Pillow raises anything on damaged EXIF data, without which the image is still one
        return 1
    return orientation if orientation in range(1, 9) else 1


def _declared(content: bytes, picture) -> _Declared:
    """What the header says of the range. It wins over the content: the images of a pair must be scaled alike."""
    if picture.format == "PNG":
        return _declared_png(png.read_chunks(content))
    if picture.format == "TIFF":
        return _declared_tiff(picture)
    if picture.format == "JPEG2000":
        return _declared_jpeg2000(content, picture)
    if picture.format == "PPM" and picture.mode == "I":  # in text; Pillow scales its values to 16 bits
        bits = _pnm_header(content)[2].bit_length()
        return _Declared(16) if bits >= 16 else _Declared(16, bits, 2**16 - 1)
    return _Declared(8, 8, 255)


def _declared_png(chunks: dict[bytes, bytes]) -> _Declared:
    """PNG's sBIT says how many bits count in values that the standard wants scaled to the full 16."""
    # The ninth byte of the header chunk is the bit depth. The text is this project's own and wins over all else.
    container = 16 if chunks[b"IHDR"][8] == 16 else 8
    keyword, _, text = chunks.get(b"tEXt", b"").partition(b"\0")
    own = re.fullmatch(rb"(\d{1,5})\.\.(\d{1,5})", text)
    if keyword == png.RANGE_KEYWORD and own and int(own[1]) < int(own[2]):
        return _Declared(container, limits=(float(own[1]), float(own[2])))

    # At 8 bits the range is the whole byte. At 16 a PNG without sBIT leaves the depth open, and the content decides.
    if container == 8:
        return _Declared(8, 8, 255)
    if not chunks.get(b"sBIT"):
        return _Declared(16)
    # By the standard the values fill 16 bits whatever sBIT says; `_of_declared` allows for writers that do not scale.
    bits = min(max(chunks[b"sBIT"][0], 1), 16)
    return _Declared(16, bits, 2**16 - 1)


def _declared_tiff(picture) -> _Declared:
    """What SMaxSampleValue or MaxSampleValue say; the minima are not used.

    The latter may be the limit of the values or the largest value of this image (it is there for statistics, TIFF 6.0),
    so the next power of two counts.
    """
    container = _largest_tag(picture, TIFF_BITS, 1)
    if container <= 8:
        return _Declared(8, 8, 255)

    # 0 stands for a tag that is missing. Without one, the pixels of 16 bits decide in `scaled`.
    declared = _largest_tag(picture, TIFF_SMAX, 0) or _largest_tag(picture, TIFF_MAX, 0)
    if container > 16 or (container == 16 and declared < 1):
        return _Declared(container)
    bits = min(container, declared.bit_length() or container)
    return _Declared(container, bits, 2**bits - 1)


def _declared_jpeg2000(content: bytes, picture) -> _Declared:
    """The precision of the first component (ISO 15444-1, A.5.1), which Pillow shifts to the top of 16 bits where it is
    above 8."""
    marker = content.find(b"\xff\x4f\xff\x51")
    # Behind the markers, the segment's length, its capabilities, eight sizes and the number of components.
    place = marker + 42
    if marker < 0 or place >= len(content):
        raise ValueError("the JPEG 2000 has no SIZ segment")
    # Of the precision's byte, seven bits hold the depth less one, and the top bit the sign.
    bits = (content[place] & 0x7F) + 1
    if content[place] & 0x80:
        raise ValueError("signed integers have no known range; save it as 8- or 16-bit unsigned")
    if bits <= 8:
        return _Declared(8, 8, 255)

    # Pillow cuts colour to 8 bits here.
    if not picture.mode.startswith("I"):
        raise ValueError(f"JPEG 2000 in colour of {bits} bits is not supported; save it as grey")
    # Shifted to the top, the largest level is 2^bits - 1 followed by zeros.
    return _Declared(16) if bits >= 16 else _Declared(16, bits, (2**bits - 1) << (16 - bits))


def _largest_tag(picture, tag: int, default: int) -> int:
    """The value of a TIFF tag, the largest where it has one for each channel."""
    return int(np.max(picture.tag_v2.get(tag, default)))


def _pnm_header(content: bytes) -> tuple[int, int, int, int]:
    """(width, height, largest level, where the pixels begin) of a PGM or PPM file."""
    # Comments may stand between the numbers, and exactly one white character before the pixels (Netpbm).
    header = re.match(rb"P\d" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s", content)
    if header is None:
        raise ValueError("its header is damaged")
    width, height, largest = (int(number) for number in header.groups())
    return width, height, largest, header.end()


def _raw_pgm(content: bytes, picture, limits: Limits) -> Decoded:
    """A binary PGM of more than 8 bits, big-endian; Pillow would scale it to 16 bits, value by value."""
    width, height, white, start = _pnm_header(content)
    if (width, height) != picture.size:
        raise ValueError("its header is damaged")
    if len(content) - start < 2 * width * height:
        raise ValueError("the file is truncated")
    levels = np.frombuffer(content, ">u2", width * height, start).reshape(height, width).astype(np.uint16)
    # All 16 bits: as of a PNG without sBIT, the content decides on the depth.
    if white == 2**16 - 1:
        return scaled(levels, 16, limits)
    return scaled(levels, 16, limits, bits=white.bit_length(), white=white)


def _float_tiff(content: bytes, limits: Limits) -> Decoded:
    """Floats of 16 or 64 bits, which Pillow does not know."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        # As in `read_picture`: one image of a sane size, known before its pixels are read.
        if len(file.pages) != 1:
            raise ValueError(f"it holds {len(file.pages)} images; one is expected")
        page = file.pages[0]
        shape = tuple(page.shape)
        if len(shape) != 2 or page.dtype is None or page.dtype.kind != "f":
            raise ValueError(f"a TIFF of {page.dtype} and shape {shape} is not supported; save it as 8- or 16-bit grey")
        refuse_size(*shape)
        return scaled_floats(page.asarray(), limits)


# --- Orientation ------------------------------------------------------------------------------------------------------


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) as a file holds it -> as it is to be seen. orientation: EXIF's, 1 to 8."""
    # EXIF's numbers: 2 and 4 mirror, 3 turns by half, 6 and 8 by a quarter, 5 and 7 mirror and turn.
    turns = {
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda image: np.rot90(image, -1),
        7: lambda image: np.rot90(image, 2).T,
        8: np.rot90,
    }
    return turns[orientation](pixels) if orientation in turns else pixels


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Inverse of `upright`: two of the quarter turns undo each other, the other orientations undo themselves."""
    return upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))


# --- Arrays and raw files ---------------------------------------------------------------------------------------------


def read_array(path: Path, limits: Limits) -> Decoded:
    """A NumPy array: booleans, uint8, uint16, or floats from 0 to 1; (H, W), (1, H, W), (H, W, 1) or colour (H, W, 3 or
    4).

    With limits that are numbers, any whole numbers and floats.
    """
    values = np.load(path, mmap_mode="r", allow_pickle=False)  # the header only
    # A channel axis of one, first (PyTorch) or last (TensorFlow), is dropped.
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    elif values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if values.ndim != 2 and not colour:
        raise ValueError(f"its shape {values.shape} is not one image, (H, W) or (H, W, 3)")
    refuse_size(*values.shape[:2])

    # NumPy's letters: b is booleans, u and i whole numbers without and with sign, f floats. Each needs a range it is
    # sure of.
    letter = values.dtype.kind
    container = 8 * values.dtype.itemsize
    if letter == "b":
        return Decoded(to_grey(values), 8)
    if letter == "u" and container <= 16:
        levels = to_grey(values)
        return scaled(levels, 8, limits, bits=8, white=255) if container == 8 else scaled(levels, 16, limits)
    if letter == "f":
        return scaled_floats(to_grey(values), limits)
    if letter in "iu" and isinstance(limits, tuple):
        return scaled_between(to_grey(values), container, limits)
    raise ValueError(f"{values.dtype} has no known range; save it as uint8, uint16 or as floats from 0 to 1")


def read_jsrt(path: Path, limits: Limits) -> Decoded:
    """An .IMG file of JSRT's database, turned so that bones are bright. Its range is known: limits change nothing."""
    size = path.stat().st_size
    expected = 2 * JSRT_SIDE**2
    if size != expected:
        raise ValueError(f"it has {size} bytes; a JSRT image has {expected}")
    levels = np.fromfile(path, ">u2")
    white = 2**JSRT_BITS - 1
    if levels.max() > white:
        raise ValueError(
            f"its largest value {levels.max()} is above {white}; JSRT images have {JSRT_BITS} bits, big-endian"
        )

    # Bones are dark in the file; 1 - x makes them bright, as in the clinic.
    return Decoded(1 - levels.reshape(JSRT_SIDE, JSRT_SIDE) / np.float64(white), JSRT_BITS)
