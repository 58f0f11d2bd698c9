"""Files that hold nothing but grey values: PNG, TIFF and JPEG, NumPy arrays, JSRT's raw .IMG. Called through `images.read` only.

Each reader takes a path and returns (pixels (H, W) in [0, 1], significant bits). It raises ValueError, or whatever its decoder
raises, for what is damaged, too large or no single image; `images.read` makes one line of it.
"""
import io
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

MAX_PIXELS = 2 ** 26            # four times the largest detectors; a header that claims more is damaged or hostile
GREY = (0.299, 0.587, 0.114)    # luma of red, green, blue (Rec. 601)
JSRT_SIDE = 2048                # the database's .IMG files are squares of this side, 16-bit big-endian, with dark bones
JSRT_BITS = 12                  # of which so many are used

# Tag numbers (TIFF 6.0)
TIFF_BITS = 258
TIFF_PHOTOMETRIC = 262
TIFF_FORMAT = 339
TIFF_SMAX = 341


def refuse_size(height: int, width: int) -> None:
    """Raise ValueError for a size, known from a header, that no X-ray has."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS}")


def to_grey(levels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), red first -> (H, W). Alpha is dropped."""
    if levels.ndim == 2:
        return levels
    return levels[..., :3].astype(np.float64) @ np.float64(GREY)


# --- PNG, TIFF, JPEG -----------------------------------------------------------------------------------------------------------

def read_picture(path: Path) -> tuple[np.ndarray, int]:
    """PNG, TIFF, JPEG. Pillow notices truncated data; OpenCV reads the one thing that Pillow cuts to 8 bits, 16-bit colour."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as picture:  # the header only
        # What the header says is checked before anything is unpacked.
        refuse_size(picture.height, picture.width)
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"it holds {frames} images; one is expected")
        depth, white = _declared_range(content, picture)
        picture.load()

        if picture.mode == "F":
            return _unit_floats(np.asarray(picture))
        if picture.mode.startswith("I"):
            levels = _whole_numbers(picture, depth, white)
        elif depth == 16:
            levels = _colour_of_16_bits(content)
        else:
            levels = _eight_bits(picture)
            depth = 8
            white = 255

    # Writers that put 12 bits into 16 without scaling them are common; values that all fit into sBIT bits give them away.
    significant = 2 ** depth - 1
    if picture.format == "PNG" and levels.max() <= significant < white:
        white = significant
    if levels.max() > white:
        raise ValueError(f"its largest value {levels.max():.0f} is above what its header declares, {white}")
    return levels / np.float64(white), depth


def _whole_numbers(picture, depth: int, white: int) -> np.ndarray:
    """The levels of a picture of more than 8 bits, with white above black."""
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    signed = tags.get(TIFF_FORMAT, (1,)) not in (1, (1,))
    if depth > 16 or signed:
        raise ValueError(f"{depth}-bit or signed integers have no known range; save it as 8- or 16-bit unsigned")
    levels = np.asarray(picture)
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == 0  # Pillow turns 8 bits only
    return white - levels.astype(np.int64) if white_is_zero else levels


def _colour_of_16_bits(content: bytes) -> np.ndarray:
    levels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16:
        raise ValueError("this kind of 16-bit colour is not supported; save it as 16-bit grey")
    if levels.ndim == 3:
        levels = levels[..., 2::-1]  # OpenCV has blue first
    return to_grey(levels)


def _eight_bits(picture) -> np.ndarray:
    """The levels of a picture of at most 8 bits a channel; palettes are looked up, alpha is dropped."""
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    return to_grey(np.asarray(picture.convert(mode)))


def _declared_range(content: bytes, picture) -> tuple[int, int]:
    """(significant bits, value of white) as the header says, never as the content suggests: a pair's images must be scaled alike.

    PNG's sBIT says how many bits count in values that the standard wants scaled to the full 16.
    """
    if picture.format == "PNG":
        chunks = _png_chunks(content)
        container = chunks[b"IHDR"][8]
        depth = container
        if container == 16 and b"sBIT" in chunks:
            depth = min(max(chunks[b"sBIT"][0], 1), 16)
        return depth, 2 ** container - 1
    if picture.format == "TIFF":
        container = _largest_tag(picture, TIFF_BITS, 1)
        declared = max(_largest_tag(picture, TIFF_SMAX, 2 ** container - 1), 1)
        depth = min(container, declared.bit_length())
        if container > 8:
            return depth, 2 ** depth - 1
        return container, 2 ** container - 1
    return 8, 255


def _largest_tag(picture, tag: int, default: int) -> int:
    """The value of a TIFF tag, the largest where it has one for each channel."""
    return int(np.max(picture.tag_v2.get(tag, default)))


def _png_chunks(content: bytes) -> dict[bytes, bytes]:
    """{type: first chunk's data}; ValueError for a wrong checksum or a missing end."""
    chunks: dict[bytes, bytes] = {}
    start = 8  # behind the signature
    while b"IEND" not in chunks:
        length = int.from_bytes(content[start:start + 4], "big")
        name = content[start + 4:start + 8]
        data = content[start + 8:start + 8 + length]
        checksum = content[start + 8 + length:start + 12 + length]
        if len(checksum) < 4:
            raise ValueError("the PNG is truncated")
        if zlib.crc32(name + data) != int.from_bytes(checksum, "big"):
            raise ValueError("the PNG is damaged (wrong checksum)")
        chunks.setdefault(name, data)
        start += 12 + length
    return chunks


# --- Arrays and raw files ------------------------------------------------------------------------------------------------------

def read_array(path: Path) -> tuple[np.ndarray, int]:
    """A NumPy array: booleans, uint8, uint16, or floats from 0 to 1; (H, W), (1, H, W), (H, W, 1) or colour (H, W, 3 or 4)."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)  # the header only
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    elif values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if values.ndim != 2 and not colour:
        raise ValueError(f"its shape {values.shape} is not one image, (H, W) or (H, W, 3)")
    refuse_size(*values.shape[:2])

    if values.dtype == bool:
        return to_grey(values), 8
    if values.dtype in (np.uint8, np.uint16):
        white = np.float64(np.iinfo(values.dtype).max)
        return to_grey(values) / white, values.dtype.itemsize * 8
    if values.dtype.kind != "f":
        raise ValueError(f"{values.dtype} has no known range; save it as uint8, uint16 or as floats from 0 to 1")
    return _unit_floats(to_grey(values))


def read_jsrt(path: Path) -> tuple[np.ndarray, int]:
    """An .IMG file of JSRT's database, turned so that bones are bright."""
    size = path.stat().st_size
    expected = 2 * JSRT_SIDE ** 2
    levels = np.fromfile(path, ">u2")
    if size != expected:
        raise ValueError(f"it has {size} bytes; a JSRT image has {expected}")
    white = 2 ** JSRT_BITS - 1
    if levels.max() > white:
        raise ValueError(f"its largest value {levels.max()} is above {white}; JSRT images have {JSRT_BITS} bits, big-endian")
    return 1 - levels.reshape(JSRT_SIDE, JSRT_SIDE) / np.float64(white), JSRT_BITS


def _unit_floats(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Floats that must lie in [0, 1]; those that are not finite are refused by the caller, in its own words."""
    if np.isfinite(values).all() and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(f"its floats run from {values.min():g} to {values.max():g}; expected 0 to 1")
    return values, 16
