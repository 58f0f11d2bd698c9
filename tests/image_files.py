"""What the tests of image files share: grey values, files of every kind, and what is expected of reading them."""

import numpy as np
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


def check_refused(path, *words):
    """The one-line refusal of a file, which names it and holds the words."""
    with pytest.raises(UserError) as error:
        images.read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text, text
    for word in words:
        assert word in text, text


def close(path, expected, bits, tolerance=1e-7):
    picture = images.read(path)
    assert picture.pixels.dtype == np.float32 and picture.pixels.shape == expected.shape
    assert picture.bits == bits and picture.path == path
    np.testing.assert_allclose(picture.pixels, expected, rtol=0, atol=tolerance)


def make_dicom(path, stored, bits=12, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation, dataset.PixelData = int(stored.dtype.kind == "i"), stored.tobytes()
    for key, value in tags.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def save_any(path, levels):
    if path.suffix == ".dcm":
        make_dicom(path, levels, 8)
    elif path.suffix == ".npy":
        np.save(path, levels)
    else:
        Image.fromarray(levels).save(path)
