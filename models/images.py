"""Image files <-> arrays in [0, 1] <-> what the networks see, (1, S, S) in [-1, 1]. Pixel ranges change here and nowhere else.

Reads PNG, TIFF and JPEG (grey or colour), NumPy arrays, DICOM and JSRT's raw .IMG; writes 8- and 16-bit PNG, and DICOM derived from
DICOM. Bit depth is kept: float32 in between. A non-square image is padded to a square, never squeezed, and cut back afterwards.
"""
import io
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from .runtime.files import UserError, replacing

SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy", ".dcm", ".dicom", ".img"}
MAX_PIXELS = 2 ** 26            # four times the largest detectors; a header that claims more is damaged or hostile
MAX_BYTES = 2 ** 31             # of a file, packed or unpacked
GREY = (0.299, 0.587, 0.114)    # luma of red, green, blue (Rec. 601)
JSRT_SIDE, JSRT_BITS = 2048, 12  # of the database's .IMG files: big-endian, 16 bits each, bones dark
THUMB = 64                      # side at which polarity is judged
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_FORMAT, TIFF_SMAX = 258, 262, 339, 341  # tag numbers (TIFF 6.0)


SOURCE_GREYS = (                # DICOM attributes that describe the grey values or the coding of one file's own pixels
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue",
    "LargestImagePixelValue", "PlanarConfiguration", "NumberOfFrames", "IconImageSequence", "PixelData", "SourceImageSequence",
    "DigitalSignaturesSequence")


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
        if not 0 < path.stat().st_size <= MAX_BYTES:
            raise ValueError("the file is empty" if path.stat().st_size == 0 else f"the file has more than {MAX_BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters raises; decoders also warn about harmless oddities
            pixels, bits = _reader(path)(path)
        if not np.isfinite(pixels).all():
            raise ValueError("it holds values that are not finite (NaN or infinity)")
    except Exception as error:  # decoders raise anything, from struct.error to SyntaxError, on a damaged file
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None
    return Picture(np.ascontiguousarray(pixels, dtype=np.float32), min(max(bits, 8), 16), path)


def read_mask(path) -> np.ndarray:
    """A mask file as bool (H, W), true above half of its largest value (masks of 0 and 1 exist). An empty one is refused."""
    values = read(path).pixels
    if not values.any():
        raise UserError(f"the mask {path} is empty (all black); white is inside")
    return values > values.max() / 2


def find(folder) -> dict[str, Path]:
    """{stem: path} of the images directly in a folder, in natural order (2 before 10). Hidden files and others are skipped."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if not _named_as_image(path):
            continue
        if stem(path) in found:
            raise UserError(f"{found[stem(path)]} and {path.name} have the same name but for the ending; keep one of them")
        found[stem(path)] = path
    if not found:
        raise UserError(f"no image in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def natural(text: str) -> list:
    """Sorting key by which 2 comes before 10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def is_dicom(path) -> bool:
    """Whether a file is read as DICOM."""
    return _reader(Path(path)) is _read_dicom


def stem(path) -> str:
    """An image's name: the file name without a known ending (DICOM files are often named by a UID, whose dots stay)."""
    path = Path(path)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _named_as_image(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    return path.suffix.lower() in SUFFIXES or (path.name != "DICOMDIR" and _head(path)[128:] == b"DICM")


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(132)


def _reader(path: Path):
    head = _head(path)
    if head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        return _read_dicom
    if path.suffix.lower() == ".img":
        return _read_jsrt
    return _read_npy if head.startswith(b"\x93NUMPY") else _read_raster


def _read_raster(path: Path) -> tuple[np.ndarray, int]:
    """PNG, TIFF, JPEG. Pillow notices truncated data; OpenCV reads the one thing that Pillow cuts to 8 bits, 16-bit colour."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as picture:  # the header only
        _refuse_size(picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError(f"it holds {picture.n_frames} images; one is expected")
        depth, maximum = _declared_range(content, picture)
        picture.load()
        tags = picture.tag_v2 if picture.format == "TIFF" else {}
        if picture.mode == "F":
            return _unit_floats(np.asarray(picture))
        if picture.mode.startswith("I"):
            if depth > 16 or tags.get(TIFF_FORMAT, (1,)) not in (1, (1,)):
                raise ValueError(f"{depth}-bit or signed integers have no known range; save it as 8- or 16-bit unsigned")
            levels = np.asarray(picture)
            if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is zero; Pillow turns 8 bits only
                levels = maximum - levels.astype(np.int64)
        elif depth == 16:
            levels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if levels is None or levels.dtype != np.uint16:
                raise ValueError("this kind of 16-bit colour is not supported; save it as 16-bit grey")
            levels = _grey(levels[..., 2::-1] if levels.ndim == 3 else levels)
        else:
            depth, maximum = 8, 255
            levels = np.asarray(picture.convert("L") if picture.mode in ("1", "L", "LA") else picture.convert("RGB"))
            levels = _grey(levels)
    if picture.format == "PNG" and levels.max() <= 2 ** depth - 1 < maximum:
        maximum = 2 ** depth - 1
    if levels.max() > maximum:
        raise ValueError(f"its largest value {levels.max():.0f} is above what its header declares, {maximum}")
    return levels / np.float64(maximum), depth


def _declared_range(content: bytes, picture) -> tuple[int, int]:
    """(significant bits, value of white) as the header says, never as the content suggests: a pair's images must be scaled alike.

    PNG's sBIT says how many bits count in values that the standard wants scaled to the full 16; writers that leave them unscaled
    are common, and the caller tells them by values that all fit in sBIT bits.
    """
    if picture.format == "PNG":
        chunks = _png_chunks(content)
        depth, container = chunks[b"IHDR"][8], chunks[b"IHDR"][8]
        if container == 16 and b"sBIT" in chunks:
            depth = min(max(chunks[b"sBIT"][0], 1), 16)
        return depth, 2 ** container - 1
    if picture.format == "TIFF":
        def largest(tag, default):
            return int(np.max(picture.tag_v2.get(tag, default)))
        container = largest(TIFF_BITS, 1)
        depth = min(container, max(largest(TIFF_SMAX, 2 ** container - 1), 1).bit_length())
        return (depth, 2 ** depth - 1) if container > 8 else (container, 2 ** container - 1)
    return 8, 255


def _png_chunks(content: bytes) -> dict[bytes, bytes]:
    """{type: first chunk's data}; ValueError for a wrong checksum or a missing end."""
    chunks, position = {}, 8
    while b"IEND" not in chunks:
        length = int.from_bytes(content[position:position + 4], "big")
        kind, data = content[position + 4:position + 8], content[position + 8:position + 8 + length]
        checksum = content[position + 8 + length:position + 12 + length]
        if len(checksum) < 4:
            raise ValueError("the PNG is truncated")
        if zlib.crc32(kind + data) != int.from_bytes(checksum, "big"):
            raise ValueError("the PNG is damaged (wrong checksum)")
        chunks.setdefault(kind, data)
        position += 12 + length
    return chunks


def _read_npy(path: Path) -> tuple[np.ndarray, int]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)  # the header only
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ValueError(f"its shape {values.shape} is not one image, (H, W) or (H, W, 3)")
    _refuse_size(*values.shape[:2])
    if values.dtype == bool:
        return _grey(values), 8
    if values.dtype in (np.uint8, np.uint16):
        return _grey(values) / np.float64(np.iinfo(values.dtype).max), values.dtype.itemsize * 8
    if values.dtype.kind != "f":
        raise ValueError(f"{values.dtype} has no known range; save it as uint8, uint16 or as floats from 0 to 1")
    return _unit_floats(_grey(values))


def _read_jsrt(path: Path) -> tuple[np.ndarray, int]:
    levels = np.fromfile(path, ">u2")
    if path.stat().st_size != 2 * JSRT_SIDE ** 2:
        raise ValueError(f"it has {path.stat().st_size} bytes; a JSRT image has {2 * JSRT_SIDE ** 2}")
    white = 2 ** JSRT_BITS - 1
    if levels.max() > white:
        raise ValueError(f"its largest value {levels.max()} is above {white}; JSRT images have {JSRT_BITS} bits, big-endian")
    return 1 - levels.reshape(JSRT_SIDE, JSRT_SIDE) / np.float64(white), JSRT_BITS


def _unit_floats(values: np.ndarray) -> tuple[np.ndarray, int]:
    if np.isfinite(values).all() and not 0 <= values.min() <= values.max() <= 1:
        raise ValueError(f"its floats run from {values.min():g} to {values.max():g}; expected 0 to 1")
    return values, 16


def _grey(levels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), red first -> (H, W)."""
    return levels if levels.ndim == 2 else levels[..., :3].astype(np.float64) @ np.float64(GREY)


def _refuse_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS}")


def _one_line(error: Exception) -> str:
    return re.sub(r" <_io\.[^>]*>", "", " ".join(str(error).split())) or type(error).__name__  # without Python's names of open files


# --- DICOM (PS3.3 C.11: modality LUT, then VOI LUT, then the photometric interpretation) ----------------------------------------

def _read_dicom(path: Path) -> tuple[np.ndarray, int]:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi
    _refuse_deflated(path)
    dataset = pydicom.dcmread(path, force=True)
    _refuse_dicom(dataset)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    try:
        stored = dataset.pixel_array  # pydicom has cleared the bits above BitsStored, where old files keep overlays
    except (RuntimeError, NotImplementedError) as error:
        if not re.search("missing dependencies|does not support", str(error)):
            raise
        name = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"no decoder for {name}; pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg") from None
    if stored.ndim == 3:
        return _grey(stored) / (2.0 ** bits - 1), bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)
    values = apply_modality_lut(stored, dataset).astype(np.float64)
    if "ModalityLUTSequence" in dataset:
        low, high = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    else:
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    if "VOILUTSequence" in dataset:
        table = dataset.VOILUTSequence[0]
        values = apply_voi(np.rint(values).astype(np.int64), dataset) / (2.0 ** int(table.LUTDescriptor[2]) - 1)
    elif dataset.get("WindowCenter") not in (None, "") and dataset.get("WindowWidth") not in (None, ""):
        values = _window(values, dataset)
    else:
        values = (values - low) / (high - low)
    values = np.clip(values, 0, 1)
    return (1 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values), bits


def _window(values: np.ndarray, dataset) -> np.ndarray:
    """PS3.3 C.11.2.1.2, the output in [0, 1]; the first of several windows."""
    centre, width = (float(np.ravel(dataset[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else 1e-9):
        raise ValueError(f"its window width {width:g} is too small")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return np.where(values <= centre - 0.5, 0.0, 1.0) if width == 1 else (values - (centre - 0.5)) / (width - 1) + 0.5


def _refuse_dicom(dataset) -> None:
    """What is no single grey or colour image of a sane size, from the header alone, before anything is unpacked."""
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise ValueError("it is no DICOM image (no pixel data)")
    _refuse_size(int(dataset.Rows), int(dataset.Columns))
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
    """Two bytes of RLE can unpack to 128: count them before pydicom unpacks without a limit."""
    from pydicom.encaps import generate_frames
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    limit = 2 * samples * int(dataset.BitsAllocated) // 8
    position, unpacked = 64, 0  # behind the table of segments
    while position < len(frame) and unpacked <= limit:
        count = frame[position]
        unpacked += 257 - count if count > 128 else count + 1 if count < 128 else 0
        position += 2 if count > 128 else count + 2 if count < 128 else 1
    if unpacked > limit:
        raise ValueError("its packed pixels unpack to more than its size says")


def _refuse_deflated(path: Path) -> None:
    """A deflated DICOM is unpacked whole when it is opened: see first how large it becomes."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    if _head(path)[128:] != b"DICM":
        return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        start = 132 + 12 + int(meta.FileMetaInformationGroupLength)  # preamble and magic, then the length's own element
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        if len(unpacker.decompress(path.read_bytes()[start:], 4 * MAX_PIXELS)) >= 4 * MAX_PIXELS:
            raise ValueError(f"it unpacks to more than {4 * MAX_PIXELS} bytes")


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
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    bits = read(source).bits
    dataset = pydicom.dcmread(source, force=True)
    if missing := [keyword for keyword in ("SOPClassUID", "SOPInstanceUID") if not dataset.get(keyword)]:
        raise UserError(f"{source} has no {' and no '.join(missing)}, which a DICOM result needs")
    origin = pydicom.Dataset()
    origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    for keyword in SOURCE_GREYS:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SourceImageSequence = pydicom.Sequence([origin])
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SeriesDescription = dataset.DerivationDescription = description
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PresentationLUTShape = 1, "MONOCHROME2", "IDENTITY"
    dataset.BitsAllocated, dataset.PixelRepresentation = 8 if bits == 8 else 16, 0
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.Rows, dataset.Columns = pixels.shape
    levels = np.rint(np.clip(np.asarray(pixels, dtype=np.float64), 0, 1) * (2 ** bits - 1)).astype("<u1" if bits == 8 else "<u2")
    dataset.add_new("PixelData", "OB" if bits == 8 else "OW", levels.tobytes())
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    write_file(Path(path), buffer.getvalue())


def _write_png(path: Path, pixels: np.ndarray, bits: int) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: results are written as .png")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path}: pixels that are not finite")
    maximum, kind = (65535, np.uint16) if bits > 8 else (255, np.uint8)
    levels = np.rint(np.clip(np.asarray(pixels, dtype=np.float64), 0, 1) * maximum).astype(kind)
    done, content = cv2.imencode(".png", levels)
    if not done:
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
    smaller = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if smaller != pixels.shape[::-1]:
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if pixels.shape != (height, width):
        # Keys' kernel, which keeps straight lines; OpenCV's cubic changes their slope by a fifth from pixel to pixel
        batch = torch.from_numpy(pixels)[None, None]  # (1, 1, h, w)
        pixels = torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)[0, 0].numpy()
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
    return torch.from_numpy(to_signed(resize(_pad(np.asarray(pixels, dtype=np.float32)), (size, size)))).unsqueeze(0)


def from_network(image: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `to_network`: (1, S, S) or (S, S) in [-1, 1] -> float32 (H, W) = shape, in [0, 1]."""
    square = image.detach().float().cpu().reshape(image.shape[-2:]).numpy()
    top, left, side = _margins(shape)
    return resize(to_unit(square), (side, side))[top:top + shape[0], left:left + shape[1]].copy()


def mask_to_network(mask: np.ndarray, size: int) -> np.ndarray:
    """bool (H, W) -> bool (size, size), placed as `to_network` places its image."""
    return resize_mask(_pad(np.asarray(mask, dtype=bool)), (size, size))


def _margins(shape: tuple[int, int]) -> tuple[int, int, int]:
    """(rows above, columns to the left, side) of an image that is centred on a square."""
    side = max(shape)
    return (side - shape[0]) // 2, (side - shape[1]) // 2, side


def _pad(pixels: np.ndarray) -> np.ndarray:
    top, left, side = _margins(pixels.shape)
    square = np.zeros((side, side), pixels.dtype)
    square[top:top + pixels.shape[0], left:left + pixels.shape[1]] = pixels
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

    def mean(top, bottom, left, right):  # of a part, in hundredths of the sides
        return thumb[top * THUMB // 100:bottom * THUMB // 100, left * THUMB // 100:right * THUMB // 100].mean()

    lungs = (mean(25, 60, 20, 38) + mean(25, 60, 62, 80)) / 2
    air = np.median([mean(0, 10, 2, 12), mean(0, 10, 88, 98), mean(80, 95, 0, 6), mean(80, 95, 94, 100)])
    return bool(2 * (mean(30, 75, 42, 58) - lungs) + (mean(80, 95, 30, 70) - lungs) + (thumb.mean() - air) / 2 < 0)
