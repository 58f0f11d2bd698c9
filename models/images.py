"""Image files <-> arrays in [0, 1] <-> what the networks see, (1, S, S) in [-1, 1]. Pixel ranges change here and
nowhere else.

Reads PNG, TIFF, JPEG, BMP, GIF, WebP, JPEG 2000 and PGM (grey or colour), NumPy arrays, DICOM and JSRT's raw .IMG;
writes 8- and 16-bit PNG, and DICOM derived from DICOM. Bit depth is kept: float32 in between. A non-square image is
padded to a square, never squeezed, and cut back afterwards. The decoders of the formats are in raster.py and dicom.py;
which of their values are black and white says grey_values.py.
"""

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from . import dicom, dicom_results, png, raster
from .grey_values import Limits, Scale
from .runtime.files import UserError, replacing

WIDE_SIGMA = 0.02  # from this sigma on, in units of the side, a blur is wide
SUFFIXES = {
    ".png",
    ".tif",
    ".tiff",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".jp2",
    ".j2k",
    ".pgm",
    ".ppm",
    ".pnm",
    ".npy",  # NumPy array
    ".dcm",
    ".dicom",
    ".img",  # JSRT's raw files
}
# Endings of images and volumes that are not read; a folder's are named instead of being passed over in silence.
FOREIGN = {
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jls",  # JPEG-LS
    ".jpx",
    ".svg",
    ".pdf",
    ".psd",
    ".xcf",
    ".exr",
    ".hdr",
    ".dng",
    ".raw",
    ".nii",  # volumes, from here on, and archives
    ".gz",
    ".mha",
    ".mhd",
    ".nrrd",
    ".npz",
    ".mat",
    ".h5",
    ".zip",
    ".tar",
    ".rar",
    ".7z",
}
DIGITS = str.maketrans("123456789", "000000000")  # for the eye that does not care which
MAX_BYTES = 2**31  # of a file, packed or unpacked
ASPECT_SLACK = 0.02  # relative difference of two aspect ratios that resizing by whole pixels may leave


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file's content. pixels: float32 (H, W) in [0, 1], as a viewer shows them; bits: the significant ones, 8
    to 16.

    scale: the grey values of black and white in the file, where they are not the least and the largest that it can
    hold. orientation: EXIF's, of the file's pixels; those here are turned upright. note: what the user should know of
    the reading. stretched: a DICOM without a window, shown from its own least to its own largest value.
    """

    pixels: np.ndarray
    bits: int
    path: Path
    scale: Scale | None = None
    orientation: int = 1
    note: str = ""
    stretched: bool = False


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(path, limits: Limits = "auto") -> Picture:
    """The image in a file, turned as its EXIF orientation says; an alpha channel is dropped.

    limits: which grey values are black and white. "auto": as the file declares; a DICOM through its window, else from
    its least to its largest value, as viewers do; of other files, as many bits as are used (with a note). "container":
    the least and the largest value that the file can hold. (black, white): these, in the file's own values, a DICOM's
    in units of the modality.

    Raises UserError, which names the file, for what is missing, empty, damaged, truncated, too large, no image, several
    images or not finite, and for a name that is not UTF-8, which neither lists nor results could carry.
    """
    path = Path(path)
    # The name first: lists and results have to carry it.
    refuse_name(path)
    if not path.is_file():
        raise UserError(f"no image file {path}")
    try:
        # Everything from here to the last check may fail on a damaged file, and each failure becomes one line with its
        # name.
        size = path.stat().st_size
        if size == 0:
            raise ValueError("the file is empty")
        if size > MAX_BYTES:
            raise ValueError(f"the file has more than {MAX_BYTES} bytes")
        decode = _decoder(path)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what matters raises; decoders also warn about harmless oddities
            decoded = decode(path, limits)
        if not np.isfinite(decoded.pixels).all():
            raise ValueError("it holds values that are not finite (NaN or infinity)")
    except Exception as error:  # decoders raise anything, from struct.error to SyntaxError, on a damaged file
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None
    # float32's 24 bits of mantissa keep 16-bit levels apart. The depth serves to write results back: 8 or 16 bits.
    pixels = np.ascontiguousarray(decoded.pixels, dtype=np.float32)
    bits = min(max(decoded.bits, 8), 16)
    return Picture(pixels, bits, path, decoded.scale, decoded.orientation, decoded.note, decoded.stretched)


def parse_limits(text: str, key: str = "eval.range") -> Limits:
    """eval.range or data.range, which `key` names -> limits of `read`: "auto", "container", "4095" (white, black being
    0) or "-1000..3000" (black..white)."""
    if text in ("auto", "container"):
        return text
    # The optional black end may be negative, as in Hounsfield units.
    number = r"[+-]?\d+(?:\.\d+)?"
    match = re.fullmatch(rf"(?:({number})\.\.)?({number})", text.strip())
    if match is None:
        raise UserError(
            f"{key}={text} is neither auto, nor container, nor the value of white, such as 4095, nor BLACK..WHITE"
        )
    black = float(match[1] or 0)
    white = float(match[2])
    if black >= white:
        raise UserError(f"{key}={text}: black, {black:g}, should be below white, {white:g}")
    return black, white


def read_mask(path) -> np.ndarray:
    """A mask file as bool (H, W), true above half of its largest value (masks of 0 and 1 exist). An empty one is
    refused."""
    values = read(path).pixels
    if not values.any():
        raise UserError(f"the mask {path} is empty (all black); white is inside")
    return values > values.max() / 2


def read_mask_of(path, shape: tuple[int, int]) -> np.ndarray:
    """As `read_mask`, at the size (H, W) = shape of the mask's X-ray.

    A mask may have been made on a smaller or larger copy of its X-ray, or on one squeezed to a square, as the published
    masks are. Raises UserError for any other shape, which belongs to another image.
    """
    mask = read_mask(path)
    height, width = mask.shape
    is_square = height == width
    if not is_square and abs(height * shape[1] - width * shape[0]) > ASPECT_SLACK * height * shape[1]:
        raise UserError(
            f"the mask {path} is {width} x {height}, but its X-ray {shape[1]} x {shape[0]}: a mask is of its "
            "X-ray's shape, at any size, or a square"
        )
    return mask if mask.shape == shape else resize_mask(mask, shape)


def is_dicom(path) -> bool:
    """Whether a file is read as DICOM."""
    return _decoder(Path(path)) is dicom.read_dicom


def refuse_name(path: str | Path) -> None:
    """Raise UserError for a name of other bytes than UTF-8, as old archives leave them."""
    try:
        # Python holds such bytes as lone surrogates, which UTF-8 cannot encode.
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename the file") from None


def _decoder(path: Path):
    """The function that reads a file: its content decides, and its ending where the content has no signature."""
    # Content before ending: archives name DICOM files by UID, with or without an ending. Files without preamble are
    # known by theirs.
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
        # DICOM's preamble of 128 bytes and its magic: the longest of the signatures.
        return file.read(132)


def _one_line(error: Exception) -> str:
    """What an exception says, in one line, without Python's names of open files."""
    text = " ".join(str(error).split())
    return re.sub(r" <_io\.[^>]*>", "", text) or type(error).__name__


# --- Finding ----------------------------------------------------------------------------------------------------------


def find(folder) -> dict[str, Path]:
    """{stem: path} of the images directly in a folder, in natural order (2 before 10). Hidden files and others are
    skipped.

    Raises UserError where there is none, where two have one name, and for names that are not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    found: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_file(entry)]
    for file in in_natural_order(names):
        # a name with a known ending is one with a stem; what is hidden or has none is looked at
        path = folder / file
        if (stem_of(file) == file or file.startswith(".")) and not _named_as_image(path):
            continue
        # Pairs are matched by stem, so x.png beside x.tif would leave open which is meant.
        name = stem_of(file)
        refuse_name(path)
        if name in found:
            raise UserError(f"{found[name]} and {file} have the same name but for the ending; keep one of them")
        found[name] = path
    if not found:
        # The likeliest reason is a folder of volumes or of a format that is not read.
        others = foreign(folder)
        there = f"; {others[0].name} is of a kind that is not read" if others else ""
        raise UserError(f"no image in {folder} (looked for {', '.join(sorted(SUFFIXES))}){there}")
    return found


def is_file(entry: os.DirEntry) -> bool:
    """Whether an entry of a folder is a file, or a link to one."""
    # asked only of links: of others listing the folder has told already
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def foreign(folder) -> list[Path]:
    """The images directly in a folder that `find` passes over, since they are of a kind that is not read, in natural
    order."""
    there = os.listdir(folder)
    # most folders have few endings, and none of these
    endings = {name.rpartition(".")[2] for name in there}
    foreign_endings = tuple(f".{ending}" for ending in endings if f".{ending.lower()}" in FOREIGN)
    if not foreign_endings:
        return []
    names = [name for name in there if name.endswith(foreign_endings) and not name.startswith(".")]
    return [Path(folder) / name for name in in_natural_order(names)]


def natural(text: str) -> list:
    """Sorting key by which 2 comes before 10."""
    pieces = [piece for piece in re.split(r"(\d+)", text) if piece]
    # Tuples of one form, so that numbers and texts compare; numbers first.
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces]


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted by `natural`."""
    names = sorted(names)
    if len(names) < 2:
        return names
    # Names with digits in the same places, as 000001.png to 100000.png, are in order already. All are translated as
    # one text, in a seventh of the time; no file's name holds a NUL.
    forms = "\0".join(names).translate(DIGITS).split("\0")
    if len(set(forms)) > 1:
        names.sort(key=natural)
    return names


def stem(path) -> str:
    """An image's name: the file name without a known ending (DICOM files are often named by a UID, whose dots stay)."""
    return stem_of(Path(path).name)


def stem_of(name: str) -> str:
    """As `stem`, of a file name."""
    start, dot, ending = name.rpartition(".")
    return start if start and dot + ending.lower() in SUFFIXES else name


def _named_as_image(path: Path) -> bool:
    """Whether a file of a folder is taken for an image: by its ending, or as DICOM by its content."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    # Archives leave off the ending. DICOMDIR is an index with the same magic.
    return path.name != "DICOMDIR" and dicom.is_dicom_head(_head(path))


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(path, pixels: np.ndarray, bits: int = 8) -> None:
    """A PNG of float pixels (H, W) in [0, 1], clipped and rounded: 8-bit, or 16-bit for more than 8 bits. `read` gives
    them back.

    The file is written beside its place and moved into it; folders are made. Raises UserError where that fails.
    """
    container = 16 if bits > 8 else 8
    _write_png(Path(path), pixels, Scale(0, 2**container - 1, container))


def write_like(path, pixels: np.ndarray, source: Picture) -> None:
    """As `write`, but in the depth, the range of grey values and the orientation of a picture that was read: 12 bits
    stay 12."""
    if source.scale is None and source.orientation == 1:
        write(path, pixels, source.bits)
        return
    # A result is compared with its source: same depth, same range, same place of every pixel.
    container = 16 if source.bits > 8 else 8
    scale = source.scale or Scale(0, 2**container - 1, container)
    _write_png(Path(path), raster.as_stored(pixels, source.orientation), scale, source.orientation)


def write_rgb(path, pixels: np.ndarray) -> None:
    """An 8-bit colour PNG of float pixels (H, W, 3) in [0, 1], red first; otherwise as `write`."""
    _write_png(Path(path), np.asarray(pixels)[..., ::-1], Scale(0, 255, 8))  # OpenCV has blue first


def _write_png(path: Path, pixels: np.ndarray, scale: Scale, orientation: int = 1) -> None:
    """pixels: (H, W) or (H, W, 3) in [0, 1], as they are to lie in the file."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: results are written as .png")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path}: pixels that are not finite")

    # Rounded and not truncated, from float64, so that a level that was read is written back as itself.
    integers = np.uint16 if scale.container > 8 else np.uint8
    unit = np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)
    levels = np.rint(scale.black + unit * (scale.white - scale.black)).astype(integers)
    encoded, content = cv2.imencode(".png", levels)
    if not encoded:
        raise ValueError(f"{path}: OpenCV cannot encode an array of shape {levels.shape}")
    write_file(path, png.with_chunks(content.tobytes(), scale, orientation))


def require_dicom_source(path) -> None:
    """Raise UserError for a DICOM file that no result can be derived from; reads the header only."""
    dicom_results.require_source(Path(path))


def write_dicom(
    path, pixels: np.ndarray, source, description: str, software: tuple[str, ...] = (), limits: Limits = "auto"
) -> None:
    """A DICOM of float pixels (H, W) in [0, 1], derived from the DICOM file `source`: its patient, its study, its
    depth.

    The values written are the source's own, changed by what `pixels` differs from what `read` shows of it, so that a
    viewer shows `pixels` through the source's window and any other window can be set. description: of the series, as a
    viewer shows it (at most 64 letters). software: the method, then what else tells versions apart, such as digests of
    weights. UIDs follow from the source's, the software and the content: the same result twice is one image, and the
    results of a series are one series. limits: those that the source was read with. Raises UserError as `read` and
    `write` do.
    """
    picture = read(source, limits)
    if pixels.shape != picture.pixels.shape:
        raise ValueError(f"{path}: a result of shape {pixels.shape} for {source} of {picture.pixels.shape}")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            content = dicom_results.derive(Path(source), pixels, description, software, limits)
    except UserError:
        raise
    except Exception as error:  # pydicom raises anything on headers that its reader let pass
        raise UserError(f"cannot derive a DICOM from {source}: {_one_line(error)}") from None
    write_file(Path(path), content)


def write_file(path: Path, content: bytes) -> None:
    """Write beside the place and move into it: a file is whole or not there. Folders are made. UserError where that
    fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


# --- Sizes and ranges -------------------------------------------------------------------------------------------------


def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) -> float32 (H, W) = shape, in [0, 1]: area average along sides that shrink, cubic along others."""
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

    # The cubic kernel has negative lobes and overshoots at edges.
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


def blur(pixels: np.ndarray, sigma: float, small_side: int, least_sigma: float = 0.0) -> np.ndarray:
    """Gaussian blur of float32 (S, S) by a sigma in units of the side; a wide one at the size (small_side, small_side).

    least_sigma: of the blur, pixels, since OpenCV takes a very small one for none.
    """
    side = len(pixels)
    if sigma < WIDE_SIGMA or side <= small_side:
        return cv2.GaussianBlur(pixels, (0, 0), max(sigma * side, least_sigma))

    # At full size the kernel would be hundreds of pixels wide. An area average cannot alias, and a blur this wide
    # leaves no detail that the smaller image would lack.
    small = cv2.resize(pixels, (small_side, small_side), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), sigma * small_side)
    return cv2.resize(blurred, (side, side), interpolation=cv2.INTER_CUBIC)


def to_network(pixels: np.ndarray, size: int) -> torch.Tensor:
    """(H, W) in [0, 1] -> float32 (1, size, size) in [-1, 1]: centred on a black square, then resized."""
    square = _pad(np.asarray(pixels, dtype=np.float32))
    signed = to_signed(resize(square, (size, size)))
    return torch.from_numpy(signed).unsqueeze(0)  # (1, size, size)


def from_network(image: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `to_network`: (1, S, S) or (S, S) in [-1, 1] -> float32 (H, W) = shape, in [0, 1]."""
    square = image.detach().float().cpu().reshape(image.shape[-2:]).numpy()
    height, width = shape

    # Back to the padded square's side first, then the same margins are cut away as were added.
    top, left, side = _margins(shape)
    unit = resize(to_unit(square), (side, side))
    return unit[top : top + height, left : left + width].copy()


def mask_to_network(mask: np.ndarray, size: int) -> np.ndarray:
    """bool (H, W) -> bool (size, size), placed as `to_network` places its image."""
    square = _pad(np.asarray(mask, dtype=bool))
    return resize_mask(square, (size, size))


def _margins(shape: tuple[int, int]) -> tuple[int, int, int]:
    """(rows above, columns to the left, side) of an image that is centred on a square."""
    height, width = shape
    side = max(shape)
    # Odd margins leave the extra pixel below and to the right.
    return (side - height) // 2, (side - width) // 2, side


def _pad(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> (S, S) with S the longer side, centred, black (or False) around."""
    height, width = pixels.shape
    top, left, side = _margins(pixels.shape)
    square = np.zeros((side, side), pixels.dtype)
    square[top : top + height, left : left + width] = pixels
    return square
