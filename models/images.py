"""Image files <-> arrays in [0, 1] <-> what the networks see, (1, S, S) in [-1, 1]. Pixel ranges change here and nowhere else.

Reads PNG, TIFF and JPEG (grey or colour), NumPy arrays, DICOM and JSRT's raw .IMG; writes 8- and 16-bit PNG, and DICOM derived from
DICOM. Bit depth is kept: float32 in between. A non-square image is padded to a square, never squeezed, and cut back afterwards.
The decoders of the formats are in raster.py and dicom.py.
"""
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from . import dicom, raster
from .runtime.files import UserError, replacing

SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy", ".dcm", ".dicom", ".img"}
MAX_BYTES = 2 ** 31             # of a file, packed or unpacked
THUMB = 64                      # side at which polarity is judged, pixels


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file's content. pixels: float32 (H, W) in [0, 1], as a viewer shows them; bits: the significant ones, 8 to 16."""
    pixels: np.ndarray
    bits: int
    path: Path


# --- Reading -----------------------------------------------------------------------------------------------------------------

def read(path) -> Picture:
    """The image in a file. An EXIF orientation is ignored (results lie as their inputs do), an alpha channel is dropped.

    Raises UserError, which names the file, for what is missing, empty, damaged, truncated, too large, no image, several images or
    not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no image file {path}")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ValueError("the file is empty")
        if size > MAX_BYTES:
            raise ValueError(f"the file has more than {MAX_BYTES} bytes")
        decode = _decoder(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters raises; decoders also warn about harmless oddities
            pixels, bits = decode(path)
        if not np.isfinite(pixels).all():
            raise ValueError("it holds values that are not finite (NaN or infinity)")
    except Exception as error:  # decoders raise anything, from struct.error to SyntaxError, on a damaged file
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None
    bits = min(max(bits, 8), 16)
    return Picture(np.ascontiguousarray(pixels, dtype=np.float32), bits, path)


def read_mask(path) -> np.ndarray:
    """A mask file as bool (H, W), true above half of its largest value (masks of 0 and 1 exist). An empty one is refused."""
    values = read(path).pixels
    if not values.any():
        raise UserError(f"the mask {path} is empty (all black); white is inside")
    return values > values.max() / 2


def is_dicom(path) -> bool:
    """Whether a file is read as DICOM."""
    return _decoder(Path(path)) is dicom.read_dicom


def _decoder(path: Path):
    """The function that reads a file: its content decides, and its ending where the content has no signature."""
    head = _head(path)
    ending = path.suffix.lower()
    if dicom.is_dicom_head(head) or ending in (".dcm", ".dicom"):
        return dicom.read_dicom
    if ending == ".img":
        return raster.read_jsrt
    if head.startswith(b"\x93NUMPY"):
        return raster.read_array
    return raster.read_picture


def _head(path: Path) -> bytes:
    """The bytes that hold a file's signature."""
    with open(path, "rb") as file:
        return file.read(132)


def _one_line(error: Exception) -> str:
    """What an exception says, in one line, without Python's names of open files."""
    text = " ".join(str(error).split())
    return re.sub(r" <_io\.[^>]*>", "", text) or type(error).__name__


# --- Finding -----------------------------------------------------------------------------------------------------------------

def find(folder) -> dict[str, Path]:
    """{stem: path} of the images directly in a folder, in natural order (2 before 10). Hidden files and others are skipped."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if not _named_as_image(path):
            continue
        name = stem(path)
        if name in found:
            raise UserError(f"{found[name]} and {path.name} have the same name but for the ending; keep one of them")
        found[name] = path
    if not found:
        raise UserError(f"no image in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def natural(text: str) -> list:
    """Sorting key by which 2 comes before 10."""
    pieces = [piece for piece in re.split(r"(\d+)", text) if piece]
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces]


def stem(path) -> str:
    """An image's name: the file name without a known ending (DICOM files are often named by a UID, whose dots stay)."""
    path = Path(path)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _named_as_image(path: Path) -> bool:
    """Whether a file of a folder is taken for an image: by its ending, or as DICOM by its content."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    return path.name != "DICOMDIR" and dicom.is_dicom_head(_head(path))


# --- Writing -----------------------------------------------------------------------------------------------------------------

def write(path, pixels: np.ndarray, bits: int = 8) -> None:
    """A PNG of float pixels (H, W) in [0, 1], clipped and rounded: 8-bit, or 16-bit for more than 8 bits. `read` gives them back.

    The file is written beside its place and moved into it; folders are made. Raises UserError where that fails.
    """
    _write_png(Path(path), pixels, bits)


def write_rgb(path, pixels: np.ndarray) -> None:
    """An 8-bit colour PNG of float pixels (H, W, 3) in [0, 1], red first; otherwise as `write`."""
    _write_png(Path(path), np.asarray(pixels)[..., ::-1], 8)  # OpenCV has blue first


def write_dicom(path, pixels: np.ndarray, source, description: str) -> None:
    """A DICOM of float pixels (H, W) in [0, 1], derived from the DICOM file `source`: its patient and study, its depth, new UIDs.

    description: of the series, as a viewer shows it (at most 64 letters). What described the source's own grey values, its
    windows, tables and paddings, is left out. Raises UserError as `read` and `write` do.
    """
    bits = read(source).bits
    dicom.write(Path(path), pixels, source, bits, description)


def _write_png(path: Path, pixels: np.ndarray, bits: int) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: results are written as .png")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path}: pixels that are not finite")
    integers = np.uint16 if bits > 8 else np.uint8
    white = np.iinfo(integers).max
    unit = np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)
    levels = np.rint(unit * white).astype(integers)
    encoded, content = cv2.imencode(".png", levels)
    if not encoded:
        raise ValueError(f"{path}: OpenCV cannot encode an array of shape {levels.shape}")
    write_file(path, content.tobytes())


def write_file(path: Path, content: bytes) -> None:
    """Write beside the place and move into it: a file is whole or not there. Folders are made. UserError where that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


# --- Sizes and ranges --------------------------------------------------------------------------------------------------------

def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) -> float32 (H, W) = shape, in [0, 1]: area average along a side that shrinks, cubic along one that grows."""
    height, width = shape
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    # First the sides that shrink, by area, then those that grow.
    smaller = (min(height, pixels.shape[0]), min(width, pixels.shape[1]))
    if smaller != pixels.shape:
        pixels = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
    if pixels.shape != (height, width):
        # Keys' kernel, which keeps straight lines; OpenCV's cubic changes their slope by a fifth from pixel to pixel
        batch = torch.from_numpy(pixels)[None, None]  # (1, 1, h, w)
        grown = torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)
        pixels = grown[0, 0].numpy()  # (H, W)
    return np.clip(pixels, 0, 1)


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool (h, w) -> bool (H, W) = shape: true where at least half of the area was."""
    return resize(mask, shape) >= 0.5


def to_unit(signed):
    """[-1, 1] -> [0, 1], tensors and arrays alike."""
    return (signed + 1) / 2


def to_signed(unit):
    """[0, 1] -> [-1, 1], tensors and arrays alike."""
    return unit * 2 - 1


def to_network(pixels: np.ndarray, size: int) -> torch.Tensor:
    """(H, W) in [0, 1] -> float32 (1, size, size) in [-1, 1]: centred on a black square, then resized."""
    square = _pad(np.asarray(pixels, dtype=np.float32))
    signed = to_signed(resize(square, (size, size)))
    return torch.from_numpy(signed).unsqueeze(0)  # (1, size, size)


def from_network(image: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `to_network`: (1, S, S) or (S, S) in [-1, 1] -> float32 (H, W) = shape, in [0, 1]."""
    square = image.detach().float().cpu().reshape(image.shape[-2:]).numpy()
    height, width = shape
    top, left, side = _margins(shape)
    unit = resize(to_unit(square), (side, side))
    return unit[top:top + height, left:left + width].copy()


def mask_to_network(mask: np.ndarray, size: int) -> np.ndarray:
    """bool (H, W) -> bool (size, size), placed as `to_network` places its image."""
    square = _pad(np.asarray(mask, dtype=bool))
    return resize_mask(square, (size, size))


def _margins(shape: tuple[int, int]) -> tuple[int, int, int]:
    """(rows above, columns to the left, side) of an image that is centred on a square."""
    height, width = shape
    side = max(shape)
    return (side - height) // 2, (side - width) // 2, side


def _pad(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> (S, S) with S the longer side, centred, black (or False) around."""
    height, width = pixels.shape
    top, left, side = _margins(pixels.shape)
    square = np.zeros((side, side), pixels.dtype)
    square[top:top + height, left:left + width] = pixels
    return square


# --- Plausibility ------------------------------------------------------------------------------------------------------------

def constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are the same: no radiograph."""
    return bool(np.min(pixels) == np.max(pixels))


def check(picture: Picture) -> Picture:
    """The picture itself; UserError where it is constant."""
    if constant(picture.pixels):
        raise UserError(f"{picture.path} is no X-ray: all its pixels are the same")
    return picture


def inverted(pixels: np.ndarray) -> bool:
    """Whether a frontal chest X-ray (H, W) has bright air and dark bones.

    Spine and mediastinum must be brighter than the lungs beside them, the abdomen brighter than the lungs above it, and the air
    beside the neck and the trunk darker than the middle. Each is a difference, so an image and its inverse get opposite answers.
    """
    thumb = resize(pixels, (THUMB, THUMB))

    def mean(top: int, bottom: int, left: int, right: int) -> float:
        """Mean grey value of a rectangle that is given in hundredths of the sides."""
        rows = slice(top * THUMB // 100, bottom * THUMB // 100)
        columns = slice(left * THUMB // 100, right * THUMB // 100)
        return thumb[rows, columns].mean()

    lungs = (mean(25, 60, 20, 38) + mean(25, 60, 62, 80)) / 2
    spine = mean(30, 75, 42, 58)
    abdomen = mean(80, 95, 30, 70)
    # Beside the neck and beside the trunk; the median, since a corner may hold a marker, an arm or a collimator's edge.
    air = np.median([mean(0, 10, 2, 12), mean(0, 10, 88, 98), mean(80, 95, 0, 6), mean(80, 95, 94, 100)])
    return bool(2 * (spine - lungs) + (abdomen - lungs) + (thumb.mean() - air) / 2 < 0)
