"""What the tests of image files share: grey values, files of every kind, and what is expected of reading them."""

import io
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from models import images
from models.runtime.files import UserError

_RNG = np.random.default_rng(0)
GREY8 = _RNG.integers(0, 256, (21, 34), dtype=np.uint8)
GREY16 = _RNG.integers(0, 65536, (21, 34), dtype=np.uint16)
GREY12 = (GREY16 >> 4).astype(np.uint16)
COLOUR8 = _RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)


def check_refused(path, *words):
    """The one-line refusal of a file, which names it and holds the words."""
    with pytest.raises(UserError) as error:
        images.read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text, text
    for word in words:
        assert word in text, text


def close(path, expected, bits, tolerance=1e-7):
    """The file is read to these pixels, (H, W) in [0, 1], and this number of significant bits."""
    picture = images.read(path)
    assert picture.pixels.dtype == np.float32 and picture.pixels.shape == expected.shape
    assert picture.bits == bits and picture.path == path
    np.testing.assert_allclose(picture.pixels, expected, rtol=0, atol=tolerance)


def make_dicom(path, stored, bits=12, **tags):
    """A grey DICOM file of stored values (H, W); tags: attributes beside, or instead of, those that it needs."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")  # 1: signed
    dataset.PixelData = stored.tobytes()
    for key, value in tags.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def dicom_table(curve, bits, announced=None):
    """An item of a sequence of lookup tables: values from 0 on, of so many bits; announced: how many it claims."""
    item = pydicom.Dataset()
    item.LUTDescriptor = [announced or len(curve), 0, bits]
    item.LUTData = curve.tolist()
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    return item


def save_any(path, levels):
    """A file of 8-bit levels (H, W), in the format that its ending says."""
    if path.suffix == ".dcm":
        make_dicom(path, levels, 8)
    elif path.suffix == ".npy":
        np.save(path, levels)
    else:
        Image.fromarray(levels).save(path)


def insert_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with one chunk more behind IHDR, whose end is at byte 33."""
    return png[:33] + png_chunk(name, data) + png[33:]


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk as it lies in the file: length, name, data, checksum."""
    length = len(data).to_bytes(4, "big")
    checksum = zlib.crc32(name + data).to_bytes(4, "big")
    return length + name + data + checksum


def png_bytes(levels) -> bytes:
    """The content of a PNG file of uint8 or uint16 levels (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()
