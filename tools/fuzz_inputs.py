"""The bad inputs of tools/fuzz.py: files that are damaged, or odd from the start; each is a function of the random
generator that it is given.
"""

import json
import random
import string
import sys
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN  # noqa: E402

SIDE = 48  # of the images, pixels
ODD_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    12,
    15,
    16,
    17,
    32,
    255,
    256,
    4095,
    4096,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**32 - 1,
)
ODD_TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "1e9",
    "nan",
    "inf",
    "2048,5",
    "null",
    "true",
    "~",
    "[]",
    "[1,2]",
    "{}",
    "{a: b}",
    "{runs}",
    "{eval.output}",
    "..",
    "/",
    "\\",
    "a\nb",
    "\0",
    "ä",
    "€",
    "'",
    '"',
    "%s",
    "$HOME",
    "*",
    "x" * 300,
    "=",
    "1_000",
    "007",
)
EXTENSIONS = {"png": {}, "tif": {}, "jpg": {}, "bmp": {}, "gif": {}, "webp": {"lossless": True}, "jp2": {}, "pgm": {}}


# --- Pixels and bytes -------------------------------------------------------------------------------------------------


def chest(rng: random.Random) -> np.ndarray:
    """Something with the grey values of an X-ray, float64 (H, W) in [0, 1]; sometimes of an odd shape."""
    height = rng.choice((SIDE, SIDE, SIDE, 1, 2, 33))
    width = rng.choice((SIDE, SIDE, SIDE, 1, 3, 64))
    noise = np.random.default_rng(rng.getrandbits(32)).random((height, width))
    return np.clip(np.linspace(0, 1, width) * 0.6 + 0.4 * noise, 0, 1)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, left out, doubled, exchanged for numbers of headers, or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        if not content:
            break
        # Headers are where it hurts, so half of the damage is near the beginning.
        place = rng.randrange(min(len(content), 200) if rng.random() < 0.5 else len(content))
        length = rng.choice((1, 2, 4, 8, 64))
        damage = rng.randrange(7)
        if damage == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif damage == 1:
            content[place : place + length] = rng.randbytes(length)
        elif damage == 2:
            del content[place : place + length]
        elif damage == 3:
            content[place:place] = content[place : place + length]
        elif damage == 4:
            order = rng.choice(("big", "little"))
            content[place : place + 4] = rng.choice(ODD_NUMBERS).to_bytes(4, order)
        elif damage == 5:
            content[place : place + length] = bytes(length)
        else:
            del content[place:]
    return bytes(content)


def picture_file(folder: Path, rng: random.Random, name: str = "x") -> Path:
    """An image file of a random kind, whole."""
    extension = rng.choice(list(EXTENSIONS))
    pixels = chest(rng)
    levels = (pixels * 255).astype(np.uint8)
    if extension in ("png", "tif", "jp2", "pgm") and rng.random() < 0.4:
        levels = (pixels * rng.choice((1023, 4095, 65535))).astype(np.uint16)
    elif rng.random() < 0.2 and extension != "pgm":
        levels = np.repeat(levels[..., None], 3, axis=-1)
    picture = Image.fromarray(levels)
    keywords = dict(EXTENSIONS[extension])
    if extension == "tif":
        keywords["compression"] = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if extension in ("png", "jpg") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[274] = rng.randrange(10)
        keywords["exif"] = exif
    path = folder / f"{name}.{extension}"
    if extension == "pgm" and levels.dtype == np.uint16:
        header = f"P5 {levels.shape[1]} {levels.shape[0]} 65535\n".encode()
        path.write_bytes(header + levels.astype(">u2").tobytes())
    else:
        picture.save(path, **keywords)
    return path


def dicom_file(folder: Path, rng: random.Random, name: str = "x") -> Path:
    """A DICOM file whose header is odd in a few attributes."""
    bits = rng.choice((8, 10, 12, 16))
    levels = (chest(rng) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = rng.choice((ExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian))
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(rng.random())])
    path = folder / f"{name}.dcm"
    dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    header = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "PatientName": "Doe^Jane",
        "PatientID": "1",
        "Rows": levels.shape[0],
        "Columns": levels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": rng.choice(("MONOCHROME1", "MONOCHROME2")),
        "BitsAllocated": 8 * levels.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
    }
    odd = {
        "Rows": rng.choice(ODD_NUMBERS[:17]),
        "BitsStored": rng.choice(ODD_NUMBERS[:10]),
        "BitsAllocated": rng.choice((1, 8, 16, 32)),
        "HighBit": rng.randrange(20),
        "PixelRepresentation": rng.choice((0, 1, 1, 2)),
        "PhotometricInterpretation": rng.choice(("RGB", "PALETTE COLOR", "", "YBR_FULL")),
        "SamplesPerPixel": rng.choice((0, 3)),
        "NumberOfFrames": rng.choice(("0", "2", "", "1")),
        "PixelPaddingValue": rng.choice(ODD_NUMBERS[:17]),
        "WindowCenter": rng.choice(("", "2048", "1e300", "-5", "2048\\40")),
        "WindowWidth": rng.choice(("", "0", "1", "4096", "-1")),
        "RescaleSlope": rng.choice(("", "0", "1", "-2", "1e-300", "1e300")),
        "RescaleIntercept": rng.choice(("", "0", "-1024")),
        "VOILUTFunction": rng.choice(("SIGMOID", "LINEAR_EXACT", "ODD", "")),
        "SeriesNumber": rng.choice(("", "-3", "7")),
        "VOILUTSequence": pydicom.Sequence([_odd_table(rng)] * rng.randrange(2)),
        "ModalityLUTSequence": pydicom.Sequence([_odd_table(rng)] * rng.randrange(2)),
    }
    for keyword in rng.sample(list(odd), rng.choice((0, 1, 1, 2, 4))):
        header[keyword] = odd[keyword]
    if rng.random() < 0.2:
        del header[rng.choice(list(header))]
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    if "PixelPaddingValue" in dataset:
        dataset["PixelPaddingValue"].VR = "US"  # pydicom would ask PixelRepresentation, which may be missing
    dataset.PixelData = levels.tobytes() + bytes(levels.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    if rng.random() < 0.15 and len(dataset.PixelData) % 2 == 0:
        dataset.PixelData = pydicom.encaps.encapsulate([rng.randbytes(500)])
        dataset["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = RLELossless
    dataset.save_as(path, implicit_vr=meta.TransferSyntaxUID == ImplicitVRLittleEndian, little_endian=True)
    return path


def _odd_table(rng: random.Random) -> pydicom.Dataset:
    """An item of a sequence of lookup tables, whose descriptor may not fit."""
    table = pydicom.Dataset()
    length = rng.choice((0, 1, 256, 4096))
    table.add_new("LUTDescriptor", "US", [length, rng.choice((0, 5, 65535)), rng.choice((0, 8, 10, 16, 40))])
    table.add_new("LUTData", "US", [rng.randrange(65536) for _ in range(rng.choice((1, 2, 256, 4096)))])
    return table


# --- Names and weights ------------------------------------------------------------------------------------------------


def odd_name(rng: random.Random) -> str:
    """A file name such as archives and other systems leave."""
    letters = string.ascii_letters + string.digits + " .,;#%&'()[]{}=+~@^$!-_\n\t\"\\*?<>|:äß€漢😀\udcff\u202e"
    length = rng.choice((1, 3, 10, 40, 80))
    name = "".join(rng.choice(letters) for _ in range(length))
    return name.strip("./") or "x"


def tiny_network(rng: random.Random) -> torch.nn.Module:
    """An autoencoder or a noise estimator, of some kilobytes."""
    if rng.random() < 0.5:
        return MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)
    return ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))


def with_odd_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose own header, in its metadata, is another."""
    length = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["header"])
    settings = inner["settings"]
    key = rng.choice(list(settings))
    odd = (None, -1, 0, 10**9, "x", [], {}, 1.5, True, [1, 2, 3], [10**9, 8])
    changed = rng.choice(
        (
            [],
            "x",
            {},
            {"network": inner["network"]},
            {**inner, "network": rng.choice(odd)},
            {**inner, "settings": rng.choice(odd)},
            {**inner, "settings": {**settings, key: rng.choice(odd)}},
            {**inner, "settings": {**settings, "of_a_newer_version": 1}},
        )
    )
    outer["__metadata__"]["header"] = json.dumps(changed) if rng.random() < 0.9 else "no JSON"
    header = json.dumps(outer).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
