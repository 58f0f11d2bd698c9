"""Image files are read to the right values or refused in one line, and what is written or resized comes back."""
import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

from models import images
from models.runtime.files import UserError

SZCH = Path(__file__).resolve().parents[2] / "shared" / "szch"
RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (21, 34), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (21, 34), dtype=np.uint16)
GREY12 = (GREY16 >> 4).astype(np.uint16)
COLOUR8 = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)


def refused(path, *words):
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


def insert_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A chunk behind IHDR, whose end is at byte 33."""
    return png[:33] + len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") + png[33:]


def png_bytes(levels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


# --- PNG, TIFF, JPEG, NumPy

@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
@pytest.mark.parametrize("levels, bits", [(GREY8, 8), (GREY16, 16)])
def test_grey_levels_are_divided_by_white(tmp_path, ending, levels, bits):
    path = tmp_path / f"a.{ending}"
    np.save(path, levels) if ending == "npy" else Image.fromarray(levels).save(path)
    close(path, levels / (2.0 ** bits - 1), bits)


def test_eight_bit_png_is_exactly_value_over_255(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    assert np.array_equal(images.read(tmp_path / "a.png").pixels, (GREY8 / 255).astype(np.float32))


def test_content_decides_not_the_ending(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.tif", format="PNG")
    close(tmp_path / "a.tif", GREY8 / 255, 8)


def test_png_significant_bits_scaled_as_the_standard_says_and_unscaled(tmp_path):
    scaled, plain = tmp_path / "scaled.png", tmp_path / "plain.png"
    scaled.write_bytes(insert_chunk(png_bytes((GREY12 << 4 | GREY12 >> 8).astype(np.uint16)), b"sBIT", bytes([12])))
    plain.write_bytes(insert_chunk(png_bytes(GREY12), b"sBIT", bytes([12])))
    close(scaled, GREY12 / 4095, 12, 2e-5)
    close(plain, GREY12 / 4095, 12)


def test_dark_16_bit_png_without_sbit_is_not_stretched(tmp_path):
    Image.fromarray(GREY12).save(tmp_path / "a.png")
    close(tmp_path / "a.png", GREY12 / 65535, 16)


@pytest.mark.parametrize("ending, tolerance", [("png", 1e-6), ("tif", 1e-6)])
def test_colour_becomes_luma_and_alpha_is_dropped(tmp_path, ending, tolerance):
    alpha = RNG.integers(0, 256, (21, 34, 1), dtype=np.uint8)
    luma = COLOUR8 @ np.float64([0.299, 0.587, 0.114]) / 255
    for name, levels in (("rgb", COLOUR8), ("rgba", np.concatenate([COLOUR8, alpha], -1))):
        Image.fromarray(levels).save(tmp_path / f"{name}.{ending}")
        close(tmp_path / f"{name}.{ending}", luma, 8, tolerance)
    Image.fromarray(np.concatenate([GREY8[..., None], alpha], -1), "LA").save(tmp_path / "la.png")
    close(tmp_path / "la.png", GREY8 / 255, 8)
    palette = Image.fromarray(np.repeat(GREY8[..., None], 3, -1)).quantize(256)
    palette.save(tmp_path / "palette.png")
    close(tmp_path / "palette.png", np.asarray(palette.convert("RGB"))[..., 0] / 255, 8)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_colour_keeps_its_bits(tmp_path, ending):
    levels = RNG.integers(0, 65536, (21, 34, 3), dtype=np.uint16)
    path = tmp_path / f"a.{ending}"
    cv2.imwrite(str(path), levels[..., ::-1])
    close(path, levels @ np.float64([0.299, 0.587, 0.114]) / 65535, 16, 1e-6)


@pytest.mark.parametrize("levels, bits", [(GREY8, 8), (GREY16, 16)])
def test_tiff_white_is_zero(tmp_path, levels, bits):
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="miniswhite")
    close(tmp_path / "a.tif", 1 - levels / (2.0 ** bits - 1), bits)


def test_tiff_declared_maximum_byte_order_and_packing(tmp_path):
    tifffile.imwrite(tmp_path / "twelve.tif", GREY12, photometric="minisblack", extratags=[(341, 3, 1, 4095, True)])
    close(tmp_path / "twelve.tif", GREY12 / 4095, 12)
    tifffile.imwrite(tmp_path / "big.tif", GREY16, byteorder=">")
    close(tmp_path / "big.tif", GREY16 / 65535, 16)
    Image.fromarray(GREY16).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    close(tmp_path / "lzw.tif", GREY16 / 65535, 16)
    tifffile.imwrite(tmp_path / "lies.tif", GREY16, photometric="minisblack", extratags=[(341, 3, 1, 4095, True)])
    refused(tmp_path / "lies.tif", "4095")


def test_tiff_of_floats_signed_or_several_pages(tmp_path):
    tifffile.imwrite(tmp_path / "float.tif", (GREY8 / 255).astype(np.float32))
    close(tmp_path / "float.tif", GREY8 / 255, 16)
    tifffile.imwrite(tmp_path / "hot.tif", GREY8.astype(np.float32))
    refused(tmp_path / "hot.tif", "expected 0 to 1")
    tifffile.imwrite(tmp_path / "signed.tif", GREY12.astype(np.int16))
    refused(tmp_path / "signed.tif", "signed")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GREY8] * 3), photometric="minisblack")
    refused(tmp_path / "pages.tif", "3 images")


def test_jpeg_grey_and_colour(tmp_path):
    smooth = cv2.GaussianBlur(np.kron(GREY8, np.ones((8, 8), np.uint8)), (0, 0), 8)
    Image.fromarray(smooth).save(tmp_path / "grey.jpg", quality=98)
    Image.fromarray(np.repeat(smooth[..., None], 3, -1)).save(tmp_path / "colour.jpeg", quality=98)
    close(tmp_path / "grey.jpg", smooth / 255, 8, 0.02)
    close(tmp_path / "colour.jpeg", smooth / 255, 8, 0.02)


def test_numpy_arrays(tmp_path):
    cases = {"unit": GREY8 / 255, "leading": GREY8[None] / 255, "trailing": GREY8[..., None] / 255}
    for name, values in cases.items():
        np.save(tmp_path / f"{name}.npy", values)
        close(tmp_path / f"{name}.npy", GREY8 / 255, 16)
    bad = {"wide": (GREY8 / 200, "expected 0 to 1"), "ints": (np.int32(GREY8), "int32"), "pickle": (np.array([{}]), "pickle"),
           "stack": (np.zeros((5, 8, 9)), "one image"), "holes": (np.where(GREY8 > 9, GREY8 / 255, np.nan), "NaN")}
    for name, (values, word) in bad.items():
        np.save(tmp_path / f"{name}.npy", values)
        refused(tmp_path / f"{name}.npy", word)


# --- Damage

def test_missing_empty_folder_and_no_image(tmp_path):
    refused(tmp_path / "absent.png")
    refused(tmp_path)
    (tmp_path / "nothing.png").touch()
    refused(tmp_path / "nothing.png", "the file is empty")
    (tmp_path / "text.png").write_text("no image at all, but long enough " * 9)
    refused(tmp_path / "text.png")
    with pytest.raises(UserError) as told:
        images.read(tmp_path / "text.png")
    assert "object at 0x" not in str(told.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "npy", "dcm"])
def test_truncated_files_are_noticed_at_any_length(tmp_path, ending, capfd):
    whole = tmp_path / f"whole.{ending}"
    save_any(whole, np.kron(GREY8, np.ones((4, 4), np.uint8)))
    images.read(whole)
    content = whole.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95, 0.995):
        path = tmp_path / f"{share}.{ending}"
        path.write_bytes(content[:int(share * len(content))])
        refused(path)
    assert capfd.readouterr().err == ""  # decoders are not to talk beside the one line


def test_a_changed_byte_in_a_png_is_noticed(tmp_path):
    content = bytearray(png_bytes(GREY8))
    content[len(content) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "damaged")


def test_several_frames_in_a_png(tmp_path):
    frames = [Image.fromarray(GREY8), Image.fromarray(255 - GREY8)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "a.png", "2 images")


def test_claimed_sizes_are_refused_from_the_header(tmp_path):
    header = (10000).to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 0])
    content = png_bytes(GREY8)
    path = tmp_path / "a.png"
    path.write_bytes(content[:8] + insert_chunk(content[:33], b"IHDR", header)[33:] + content[33:])
    refused(path, "10000 x 10000")
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (9000, 9000)).flush()
    refused(tmp_path / "a.npy", "9000 x 9000")


# --- DICOM

def make_dicom(path, stored, bits=12, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
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


def test_dicom_without_window_uses_the_range_of_its_bits(tmp_path):
    make_dicom(tmp_path / "a.dcm", GREY12)
    close(tmp_path / "a.dcm", GREY12 / 4095, 12)
    make_dicom(tmp_path / "b.dcm", GREY12, RescaleSlope=2, RescaleIntercept=-1000)
    close(tmp_path / "b.dcm", GREY12 / 4095, 12)
    make_dicom(tmp_path / "c.dcm", GREY12 | 0xF000)  # overlays in the unused bits
    close(tmp_path / "c.dcm", GREY12 / 4095, 12)
    signed = GREY12.astype(np.int16) - 2048
    make_dicom(tmp_path / "d.dcm", signed)
    close(tmp_path / "d.dcm", GREY12 / 4095, 12)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_dicom_window_as_pydicom_applies_it(tmp_path, function):
    dataset = make_dicom(tmp_path / "a.dcm", GREY12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[2500, 40],
                         WindowWidth=[1800, 400], VOILUTFunction=function)
    expected = apply_windowing(apply_modality_lut(GREY12, dataset), dataset)  # in the range of the rescaled values
    low, high = -1000, 4095 * 2 - 1000
    close(tmp_path / "a.dcm", (expected - low) / (high - low), 12, 1e-6)


def test_dicom_monochrome1_is_inverted_after_the_window(tmp_path):
    window = {"WindowCenter": 3000, "WindowWidth": 1000}
    make_dicom(tmp_path / "one.dcm", GREY12, PhotometricInterpretation="MONOCHROME1", **window)
    make_dicom(tmp_path / "two.dcm", GREY12, **window)
    two = images.read(tmp_path / "two.dcm").pixels
    assert 0.3 < (two == 0).mean() < 0.8  # the window cuts, so the order matters
    close(tmp_path / "one.dcm", 1 - two, 12)


def test_dicom_voi_table(tmp_path):
    table = pydicom.Dataset()
    curve = (np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16)
    table.LUTDescriptor, table.LUTData = [4096, 0, 10], curve.tolist()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    make_dicom(tmp_path / "a.dcm", GREY12, VOILUTSequence=pydicom.Sequence([table]))
    close(tmp_path / "a.dcm", curve[GREY12] / 1023, 12)


def test_dicom_refusals_come_before_unpacking(tmp_path):
    make_dicom(tmp_path / "frames.dcm", GREY12, NumberOfFrames=2)
    refused(tmp_path / "frames.dcm", "2 frames")
    make_dicom(tmp_path / "giant.dcm", GREY12, Rows=60000, Columns=60000)
    refused(tmp_path / "giant.dcm", "60000 x 60000")
    make_dicom(tmp_path / "zero.dcm", GREY12, WindowCenter=1, WindowWidth=0)
    refused(tmp_path / "zero.dcm", "window width")
    dataset = make_dicom(tmp_path / "bomb.dcm", GREY8, 8)
    segment = bytes([129, 0]) * 500_000  # 128 zeros each: 64 MB for 714 pixels
    header = np.array([1, 64] + [0] * 14, "<u4").tobytes()
    dataset.PixelData = pydicom.encaps.encapsulate([header + segment])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    refused(tmp_path / "bomb.dcm", "unpack")


def test_pydicoms_own_files():
    plain, packed = (images.read(get_testdata_file(name)).pixels for name in ("MR_small.dcm", "MR_small_RLE.dcm"))
    assert np.array_equal(plain, packed) and not images.constant(plain)
    images.read(get_testdata_file("image_dfl.dcm"))  # deflated
    refused(get_testdata_file("rtplan.dcm"), "no pixel data")
    refused(get_testdata_file("MR_truncated.dcm"))


def test_missing_decoder_names_what_to_install(monkeypatch):
    path = get_testdata_file("MR_small_jpeg_ls_lossless.dcm")
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    refused(path, "pip install pylibjpeg", "JPEG-LS")


def test_derived_dicom_keeps_patient_depth_and_size_and_is_new(tmp_path):
    source = make_dicom(tmp_path / "in.dcm", GREY12, PatientName="Doe^Jane", PatientID="7", StudyInstanceUID=generate_uid(),
                        SeriesInstanceUID=generate_uid(), WindowCenter=2000, WindowWidth=3000, PixelPaddingValue=0,
                        PixelSpacing=[0.2, 0.2], PhotometricInterpretation="MONOCHROME1")
    before = (tmp_path / "in.dcm").read_bytes()
    result = RNG.random(GREY12.shape)
    images.write_dicom(tmp_path / "out" / "a.dcm", result, tmp_path / "in.dcm", "bone-suppressed, not for diagnosis")
    close(tmp_path / "out" / "a.dcm", result, 12, 0.51 / 4095)
    derived = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "PixelSpacing", "SOPClassUID"):
        assert derived[keyword].value == source[keyword].value
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert derived[keyword].value != source[keyword].value
    assert derived.file_meta.MediaStorageSOPInstanceUID == derived.SOPInstanceUID
    assert derived.ImageType == ["DERIVED", "SECONDARY"] and derived.SeriesDescription == "bone-suppressed, not for diagnosis"
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (tmp_path / "in.dcm").read_bytes() == before and os.listdir(tmp_path / "out") == ["a.dcm"]
    make_dicom(tmp_path / "odd.dcm", GREY8[:, :33], 8)
    images.write_dicom(tmp_path / "odd out.dcm", GREY8[:, :33] / 255, tmp_path / "odd.dcm", "x")
    close(tmp_path / "odd out.dcm", GREY8[:, :33] / 255, 8)
    packed = get_testdata_file("MR_small_RLE.dcm")
    images.write_dicom(tmp_path / "packed.dcm", images.read(packed).pixels, packed, "x")
    close(tmp_path / "packed.dcm", images.read(packed).pixels, 16, 1e-5)
    colour = get_testdata_file("SC_rgb_small_odd.dcm")
    images.write_dicom(tmp_path / "grey.dcm", images.read(colour).pixels, colour, "x")
    close(tmp_path / "grey.dcm", images.read(colour).pixels, 8, 0.51 / 255)
    assert "PlanarConfiguration" not in pydicom.dcmread(tmp_path / "grey.dcm")


def test_raw_jsrt_files(tmp_path):
    levels = RNG.integers(0, 4096, (2048, 2048), dtype=np.uint16)
    levels.astype(">u2").tofile(tmp_path / "JPCLN001.IMG")
    close(tmp_path / "JPCLN001.IMG", 1 - levels / 4095, 12)
    assert list(images.find(tmp_path)) == ["JPCLN001"]
    (tmp_path / "short.IMG").write_bytes(b"x" * 99)
    refused(tmp_path / "short.IMG", "99 bytes")
    levels[7, 7] = 5000
    levels.astype(">u2").tofile(tmp_path / "wrong.img")
    refused(tmp_path / "wrong.img", "5000")


# --- Masks, writing, finding

def test_masks_of_255_of_1_and_empty_ones(tmp_path):
    inside = GREY8 > 100
    for white in (1, 255):
        Image.fromarray(inside.astype(np.uint8) * np.uint8(white)).save(tmp_path / "mask.png")
        mask = images.read_mask(tmp_path / "mask.png")
        assert mask.dtype == bool and np.array_equal(mask, inside)
    Image.fromarray(np.zeros_like(GREY8)).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="black.png is empty"):
        images.read_mask(tmp_path / "black.png")


def test_written_files_give_their_values_back(tmp_path):
    for bits, levels in ((8, GREY8), (12, GREY16), (16, GREY16)):
        white = 255 if bits == 8 else 65535
        images.write(tmp_path / "new" / "a.png", levels / white, bits)
        close(tmp_path / "new" / "a.png", levels / white, 8 if bits == 8 else 16)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), levels)
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_writing_rounds_and_clips(tmp_path):
    images.write(tmp_path / "a.png", np.array([[0.6, 254.6, 99.4, -50, 900]]) / 255)
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[1, 255, 99, 0, 255]]
    with pytest.raises(ValueError, match="finite"):
        images.write(tmp_path / "a.png", np.array([[np.nan]]))


def test_colour_panels_are_red_first(tmp_path):
    images.write_rgb(tmp_path / "a.png", COLOUR8 / 255)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), COLOUR8)


def test_writing_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        images.write(tmp_path / "file" / "a.png", GREY8 / 255)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        images.write(tmp_path / "b.png", GREY8 / 255)
    assert sorted(os.listdir(tmp_path)) == ["b.png", "file"]  # nothing half-written stays


def test_find_in_natural_order_and_its_refusals(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        images.find(tmp_path / "absent")
    with pytest.raises(UserError, match="no image"):
        images.find(tmp_path)
    for name in ("10.png", "2.tif", "a1.JPG", ".2.png", "notes.txt", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" if name == "DICOMDIR" else b"x")
    make_dicom(tmp_path / "1.2.840.7", GREY12)
    (tmp_path / "3.png").mkdir()
    assert list(images.find(tmp_path)) == ["1.2.840.7", "2", "10", "a1"]
    (tmp_path / "2.png").touch()
    with pytest.raises(UserError, match="same name"):
        images.find(tmp_path)


# --- Sizes

def test_shrinking_is_the_mean_of_the_area():
    pixels = RNG.random((24, 36), dtype=np.float32)
    np.testing.assert_allclose(images.resize(pixels, (8, 9)), pixels.reshape(8, 3, 9, 4).mean((1, 3)), atol=1e-6)


def test_growing_keeps_straight_lines_and_the_range():
    ramp = np.tile(np.linspace(0.2, 0.8, 30, dtype=np.float32), (20, 1))
    grown = images.resize(ramp, (40, 90))
    slope = np.diff(grown[:, 9:-9], axis=1)
    np.testing.assert_allclose(slope, (0.6 / 29) / 3, atol=1e-6)
    edges = images.resize((GREY8 > 127).astype(np.float32), (99, 111))
    assert edges.shape == (99, 111) and edges.min() == 0 and edges.max() == 1


def test_same_size_changes_nothing_and_shares_nothing():
    pixels = RNG.random((7, 9), dtype=np.float32)
    same = images.resize(pixels, (7, 9))
    assert np.array_equal(same, pixels) and not np.shares_memory(same, pixels)


def test_mask_resize_is_the_majority():
    mask = np.zeros((8, 8), bool)
    mask[:4, :4], mask[4, 4] = True, True
    expected = np.zeros((4, 4), bool)
    expected[:2, :2] = True
    small = images.resize_mask(mask, (4, 4))
    assert small.dtype == bool and np.array_equal(small, expected)


@pytest.mark.parametrize("shape", [(64, 64), (64, 41), (40, 64), (63, 64)])
def test_network_round_trip_without_squeezing(shape):
    pixels = RNG.random(shape, dtype=np.float32)
    square = images.to_network(pixels, 64)
    assert square.shape == (1, 64, 64) and square.dtype == torch.float32
    top, left = (64 - shape[0]) // 2, (64 - shape[1]) // 2
    np.testing.assert_allclose(square[0, top:top + shape[0], left:left + shape[1]], 2 * pixels - 1, atol=1e-6)
    assert square[0].numel() - int((square[0] == -1).sum()) <= pixels.size  # the padding is black
    for image in (square, square[0], square.bfloat16()):
        back = images.from_network(image, shape)
        assert back.shape == shape and back.dtype == np.float32
        np.testing.assert_allclose(back, pixels, atol=1e-6 if image.dtype == torch.float32 else 1e-2)


def test_network_sizes_other_than_the_image(tmp_path):
    smooth = cv2.GaussianBlur(RNG.random((300, 201), dtype=np.float32), (0, 0), 12)
    back = images.from_network(images.to_network(smooth, 128), (300, 201))
    assert back.shape == (300, 201) and np.abs(back - smooth)[8:-8, 8:-8].max() < 5e-3
    disc = np.hypot(*np.mgrid[-150:150, -100:101]) < 60
    small = images.mask_to_network(disc, 128)
    rows, columns = small.any(1).sum(), small.any(0).sum()
    assert small.shape == (128, 128) and abs(int(rows) - int(columns)) <= 1  # a circle stays one
    np.testing.assert_allclose(images.to_network(disc.astype(np.float32), 128)[0] > 0, small, atol=0)


def test_ranges_are_inverse():
    values = torch.linspace(-1, 1, 5)
    assert images.to_unit(values).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(images.to_signed(images.to_unit(values)), values)


# --- Plausibility

def test_constant_images_are_refused(tmp_path):
    images.write(tmp_path / "flat.png", np.full((9, 9), 0.5))
    with pytest.raises(UserError, match="flat.png"):
        images.check(images.read(tmp_path / "flat.png"))
    images.write(tmp_path / "fine.png", GREY8 / 255)
    assert not images.constant(images.check(images.read(tmp_path / "fine.png")).pixels)


def test_polarity_of_simulated_patients():
    phantom = pytest.importorskip("models.phantom")
    for seed in range(6):
        cxr = phantom.simulate(seed, 96).cxr
        assert not images.inverted(cxr) and images.inverted(1 - cxr)


@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_polarity_of_real_patients():
    for path in images.find(SZCH / "CXR").values():
        picture = images.read(path)
        assert picture.bits == 8 and not images.inverted(picture.pixels) and images.inverted(1 - picture.pixels)
        assert not images.inverted(picture.pixels[:, 100:-100])  # collimated
