"""Image files are read to the right values or refused in one line, and what is written or resized comes back."""

import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from image_files import GREY8, GREY12, GREY16, check_refused, close, make_dicom, save_any
from PIL import Image, ImageOps

from models import images, plausibility
from models.runtime.files import UserError

SZCH = Path(__file__).resolve().parents[2] / "shared" / "szch"
RNG = np.random.default_rng(1)
COLOUR8 = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)


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
    close(path, levels / (2.0**bits - 1), bits)


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
    close(tmp_path / "a.tif", 1 - levels / (2.0**bits - 1), bits)


def test_tiff_declared_maximum_byte_order_and_packing(tmp_path):
    tifffile.imwrite(tmp_path / "twelve.tif", GREY12, photometric="minisblack", extratags=[(341, 3, 1, 4095, True)])
    close(tmp_path / "twelve.tif", GREY12 / 4095, 12)
    tifffile.imwrite(tmp_path / "big.tif", GREY16, byteorder=">")
    close(tmp_path / "big.tif", GREY16 / 65535, 16)
    Image.fromarray(GREY16).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    close(tmp_path / "lzw.tif", GREY16 / 65535, 16)
    tifffile.imwrite(tmp_path / "lies.tif", GREY16, photometric="minisblack", extratags=[(341, 3, 1, 4095, True)])
    check_refused(tmp_path / "lies.tif", "4095")


def test_tiff_of_floats_signed_or_several_pages(tmp_path):
    tifffile.imwrite(tmp_path / "float.tif", (GREY8 / 255).astype(np.float32))
    close(tmp_path / "float.tif", GREY8 / 255, 16)
    tifffile.imwrite(tmp_path / "hot.tif", GREY8.astype(np.float32))
    check_refused(tmp_path / "hot.tif", "expected 0 to 1")
    tifffile.imwrite(tmp_path / "signed.tif", GREY12.astype(np.int16))
    check_refused(tmp_path / "signed.tif", "signed")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GREY8] * 3), photometric="minisblack")
    check_refused(tmp_path / "pages.tif", "3 images")


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
    bad = {
        "wide": (GREY8 / 200, "expected 0 to 1"),
        "ints": (np.int32(GREY8), "int32"),
        "pickle": (np.array([{}]), "pickle"),
        "stack": (np.zeros((5, 8, 9)), "one image"),
        "holes": (np.where(GREY8 > 9, GREY8 / 255, np.nan), "NaN"),
    }
    for name, (values, word) in bad.items():
        np.save(tmp_path / f"{name}.npy", values)
        check_refused(tmp_path / f"{name}.npy", word)


@pytest.mark.parametrize("ending", ["bmp", "gif", "webp", "jp2", "j2k", "pgm", "pnm"])
def test_other_eight_bit_files(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    keywords = {"webp": {"lossless": True}, "pnm": {"format": "PPM"}}.get(ending, {})
    Image.fromarray(GREY8).save(path, **keywords)
    close(path, GREY8 / 255, 8, 1e-6)
    assert list(images.find(tmp_path)) == ["a"]


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animations_are_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY8).save(path, save_all=True, append_images=[Image.fromarray(255 - GREY8)])
    check_refused(path, "2 images")


def test_16_bit_pgm_and_jpeg_2000(tmp_path):
    height, width = GREY16.shape
    for white, levels, bits in ((65535, GREY16, 16), (4095, GREY12, 12)):
        path = tmp_path / f"{white}.pgm"
        path.write_bytes(f"P5\n# a comment\n{width} {height}\n{white}\n".encode() + levels.astype(">u2").tobytes())
        close(path, levels / white, bits)
        path.write_bytes(path.read_bytes()[:-2])
        check_refused(path)
        text = tmp_path / f"text{white}.pgm"
        text.write_text(f"P2 {width} {height} {white}\n" + "\n".join(str(level) for level in levels.ravel()))
        close(text, levels / white, bits, 1e-5)
    Image.fromarray(GREY16).save(tmp_path / "a.jp2", irreversible=False)
    close(tmp_path / "a.jp2", GREY16 / 65535, 16)
    # A codestream of 12 bits: the precision is byte 42 behind its start.
    content = bytearray((tmp_path / "a.jp2").read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")
    assert content[start + 42] == 15
    content[start + 42] = 11
    (tmp_path / "b.jp2").write_bytes(content)
    assert images.read(tmp_path / "b.jp2").bits == 12


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64])
def test_float_tiff_of_any_width(tmp_path, number):
    values = (GREY8 / 255).astype(number)
    tifffile.imwrite(tmp_path / "a.tif", values)
    close(tmp_path / "a.tif", values.astype(np.float64), 16)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([values] * 2), photometric="minisblack")
    check_refused(tmp_path / "stack.tif", "2 images")


def test_big_endian_numpy_arrays(tmp_path):
    np.save(tmp_path / "a.npy", GREY16.astype(">u2"))
    close(tmp_path / "a.npy", GREY16 / 65535, 16)
    np.save(tmp_path / "b.npy", (GREY16 / 65535).astype(">f8"))
    close(tmp_path / "b.npy", GREY16 / 65535, 16)


# --- Ranges


def save_16(path, levels):
    if path.suffix == ".npy":
        np.save(path, levels)
    elif path.suffix == ".pgm":
        path.write_bytes(f"P5 {levels.shape[1]} {levels.shape[0]} 65535\n".encode() + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(path)


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "pgm", "jp2"])
@pytest.mark.parametrize("largest, bits", [(200, 8), (900, 10), (2500, 12), (4095, 12), (4096, 14), (16383, 14)])
def test_few_bits_in_16_are_found_and_said(tmp_path, ending, largest, bits):
    path = tmp_path / f"a.{ending}"
    levels = (GREY16.astype(np.float64) / GREY16.max() * largest).round().astype(np.uint16)
    assert levels.max() == largest
    save_16(path, levels)
    white = 2**bits - 1
    close(path, levels / white, bits)
    picture = images.read(path)
    assert f"read as {bits} bits" in picture.note and f"above {white} of 65535" in picture.note
    assert "\n" not in picture.note and "eval.range" in picture.note
    whole = images.read(path, "container")
    np.testing.assert_allclose(whole.pixels, levels / 65535, atol=1e-7)
    assert whole.note == "" and whole.bits == 16


def test_what_uses_a_quarter_of_its_range_stays_as_it_is(tmp_path):
    levels = (GREY16 >> 2).astype(np.uint16)
    levels[0, 0] = 16384
    Image.fromarray(levels).save(tmp_path / "a.png")
    close(tmp_path / "a.png", levels / 65535, 16)
    assert images.read(tmp_path / "a.png").note == ""
    Image.fromarray((GREY8 >> 4)).save(tmp_path / "b.png")  # 8 bits are never stretched
    close(tmp_path / "b.png", (GREY8 >> 4) / 255, 8)
    assert images.read(tmp_path / "b.png").note == ""


def test_white_is_zero_in_few_bits(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY12, photometric="miniswhite")
    close(tmp_path / "a.tif", 1 - GREY12 / 4095, 12)


def test_16_bit_colour_of_few_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(GREY12[..., None], 3, -1))
    close(tmp_path / "a.png", GREY12 / 4095, 12, 1e-6)


def test_tiff_maximum_as_declared_or_as_counted(tmp_path):
    for declared, bits in ((4095, 12), (3900, 12), (65535, 16)):
        levels = np.minimum(GREY12, 3900)
        tifffile.imwrite(tmp_path / "a.tif", levels, photometric="minisblack", extratags=[(281, 3, 1, declared, True)])
        close(tmp_path / "a.tif", levels / (2**bits - 1), bits)
        assert images.read(tmp_path / "a.tif").note == ""


def test_given_limits(tmp_path):
    Image.fromarray(GREY12).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png", (1000, 3000))
    np.testing.assert_allclose(picture.pixels, np.clip((GREY12 - 1000.0) / 2000, 0, 1), atol=1e-7)
    assert "eval.range" in picture.note and "%" in picture.note
    assert images.read(tmp_path / "a.png", (0, 4095)).note == ""
    signed = GREY12.astype(np.int16) - 2048
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    np.save(tmp_path / "signed.npy", signed)
    np.save(tmp_path / "float.npy", signed.astype(np.float64))
    for name in ("signed.tif", "signed.npy", "float.npy"):
        check_refused(tmp_path / name)
        np.testing.assert_allclose(images.read(tmp_path / name, (-2048, 2047)).pixels, GREY12 / 4095, atol=1e-7)
    Image.fromarray(GREY8).save(tmp_path / "eight.png")
    with pytest.raises(UserError, match="hold at most 255"):
        images.read(tmp_path / "eight.png", (0, 4095))


def test_limits_as_a_setting():
    assert images.parse_limits("auto") == "auto" and images.parse_limits("container") == "container"
    assert images.parse_limits("4095") == (0, 4095)
    assert images.parse_limits("-1024..3071") == (-1024, 3071) and images.parse_limits("0..1.5") == (0, 1.5)
    for wrong in ("automatic", "", "5..", "..5", "3..3", "9..2", "-5", "0", "nan", "1e3"):
        with pytest.raises(UserError, match="eval.range="):
            images.parse_limits(wrong)


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "pgm"])
def test_few_bits_are_written_back_as_few_bits(tmp_path, ending):
    """The result's grey values are the input's: an unchanged image comes back to the number, and is read to the same
    pixels."""
    path = tmp_path / f"a.{ending}"
    save_16(path, GREY12)
    for limits in ("auto", "container", (0, 4095), (100, 4000)):
        picture = images.read(path, limits)
        images.write_like(tmp_path / "out.png", picture.pixels, picture)
        written = np.asarray(Image.open(tmp_path / "out.png"))
        expected = np.clip(GREY12, 100, 4000) if limits == (100, 4000) else GREY12
        assert written.dtype == np.uint16 and np.array_equal(written, expected), limits
        again = images.read(tmp_path / "out.png")
        assert np.array_equal(again.pixels, picture.pixels) and again.note == "", limits
        assert np.array_equal(cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED), written)


def test_eight_bits_are_written_back_between_given_limits(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png", (20, 127))
    images.write_like(tmp_path / "out.png", picture.pixels, picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.clip(GREY8, 20, 127))
    assert np.array_equal(images.read(tmp_path / "out.png").pixels, picture.pixels)


def test_dark_results_are_not_taken_for_few_bits(tmp_path):
    """What this project writes declares its range, so that a dark picture, as of a deviation, is read as it is."""
    images.write(tmp_path / "a.png", GREY8 / 255 * 0.05, 16)
    close(tmp_path / "a.png", GREY8 / 255 * 0.05, 16, 1e-5)
    assert images.read(tmp_path / "a.png").note == ""


# --- Orientation


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg", "16.png", "16.tif", "colour16.tif"])
def test_exif_orientation_is_turned_and_turned_back(tmp_path, ending, orientation):
    """Upright as Pillow turns it; the result lies as the file does and says so."""
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{ending}"
    smooth = cv2.GaussianBlur(np.kron(GREY8, np.ones((8, 8), np.uint8)), (0, 0), 8)
    levels = smooth.astype(np.uint16) * 257 if "16" in ending else smooth
    if ending == "colour16.tif":
        tifffile.imwrite(
            path, np.repeat(levels[..., None], 3, -1), photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
        )
    else:
        keywords = {"jpg": {"quality": 98}, "webp": {"lossless": True}}.get(ending, {})
        Image.fromarray(levels).save(path, exif=exif, **keywords)
    stored = Image.fromarray(smooth)
    stored.info["exif"] = exif.tobytes()
    stored.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    picture = images.read(path)
    assert picture.pixels.shape == upright.shape
    np.testing.assert_allclose(picture.pixels, upright / 255, atol=0.02 if ending == "jpg" else 1e-6)
    images.write_like(tmp_path / "out.png", picture.pixels, picture)
    with Image.open(tmp_path / "out.png") as result:
        assert result.getexif().get(274, 1) == orientation
        assert result.size == smooth.shape[::-1]
    again = images.read(tmp_path / "out.png")
    np.testing.assert_allclose(again.pixels, picture.pixels, atol=0.51 / 255)


def test_damaged_exif_is_no_orientation(tmp_path):
    (tmp_path / "a.png").write_bytes(insert_chunk(png_bytes(GREY8), b"eXIf", b"II*\0\xff\xff\xff\xff"))
    close(tmp_path / "a.png", GREY8 / 255, 8)


# --- Damage


def test_missing_empty_folder_and_no_image(tmp_path):
    check_refused(tmp_path / "absent.png")
    check_refused(tmp_path)
    (tmp_path / "nothing.png").touch()
    check_refused(tmp_path / "nothing.png", "the file is empty")
    (tmp_path / "text.png").write_text("no image at all, but long enough " * 9)
    check_refused(tmp_path / "text.png")
    with pytest.raises(UserError) as told:
        images.read(tmp_path / "text.png")
    assert "object at 0x" not in str(told.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "npy", "dcm", "bmp", "gif", "webp", "jp2", "pgm"])
def test_truncated_files_are_noticed_at_any_length(tmp_path, ending, capfd):
    whole = tmp_path / f"whole.{ending}"
    save_any(whole, np.kron(GREY8, np.ones((4, 4), np.uint8)))
    images.read(whole)
    content = whole.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95, 0.995):
        path = tmp_path / f"{share}.{ending}"
        path.write_bytes(content[: int(share * len(content))])
        check_refused(path)
    assert capfd.readouterr().err == ""  # decoders are not to talk beside the one line


def test_a_changed_byte_in_a_png_is_noticed(tmp_path):
    content = bytearray(png_bytes(GREY8))
    content[len(content) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(content)
    check_refused(tmp_path / "a.png", "damaged")


def test_several_frames_in_a_png(tmp_path):
    frames = [Image.fromarray(GREY8), Image.fromarray(255 - GREY8)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    check_refused(tmp_path / "a.png", "2 images")


def test_claimed_sizes_are_refused_from_the_header(tmp_path):
    header = (10000).to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 0])
    content = png_bytes(GREY8)
    path = tmp_path / "a.png"
    path.write_bytes(content[:8] + insert_chunk(content[:33], b"IHDR", header)[33:] + content[33:])
    check_refused(path, "10000 x 10000")
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (9000, 9000)).flush()
    check_refused(tmp_path / "a.npy", "9000 x 9000")


@pytest.mark.parametrize("width, height", [(30000, 1000), (1, 60_000_000), (8193, 1)])
def test_thin_images_are_refused_since_they_are_padded_to_squares(tmp_path, width, height):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    content = png_bytes(GREY8)
    path = tmp_path / "a.png"
    path.write_bytes(content[:8] + insert_chunk(content[:33], b"IHDR", header)[33:] + content[33:])
    check_refused(path, f"{width} x {height}", "square")
    np.save(tmp_path / "long.npy", np.zeros((1, 8192), np.uint8))
    assert images.read(tmp_path / "long.npy").pixels.shape == (1, 8192)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 3)])
def test_empty_arrays_are_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    check_refused(tmp_path / "a.npy", "no pixels")


def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")
    try:
        Image.fromarray(GREY8).save(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for ask in (lambda: images.read(name), lambda: images.find(tmp_path)):
        with pytest.raises(UserError, match="not UTF-8; rename") as error:
            ask()
        str(error.value).encode()


@pytest.mark.slow
def test_raw_jsrt_files(tmp_path):
    levels = RNG.integers(0, 4096, (2048, 2048), dtype=np.uint16)
    levels.astype(">u2").tofile(tmp_path / "JPCLN001.IMG")
    close(tmp_path / "JPCLN001.IMG", 1 - levels / 4095, 12)
    assert list(images.find(tmp_path)) == ["JPCLN001"]
    (tmp_path / "short.IMG").write_bytes(b"x" * 99)
    check_refused(tmp_path / "short.IMG", "99 bytes")
    levels[7, 7] = 5000
    levels.astype(">u2").tofile(tmp_path / "wrong.img")
    check_refused(tmp_path / "wrong.img", "5000")


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
    assert images.foreign(tmp_path) == []
    for name in ("lateral.heic", "ct.nii.gz", ".hidden.heic"):
        (tmp_path / name).touch()
    assert [path.name for path in images.foreign(tmp_path)] == ["ct.nii.gz", "lateral.heic"]
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
    np.testing.assert_allclose(square[0, top : top + shape[0], left : left + shape[1]], 2 * pixels - 1, atol=1e-6)
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
        plausibility.check(images.read(tmp_path / "flat.png"))
    images.write(tmp_path / "fine.png", GREY8 / 255)
    assert not plausibility.constant(plausibility.check(images.read(tmp_path / "fine.png")).pixels)


@pytest.mark.slow
def test_polarity_of_simulated_patients():
    phantom = pytest.importorskip("models.simulate.phantom")
    for seed in range(6):
        cxr = phantom.simulate(seed, 96).cxr
        assert not plausibility.inverted(cxr) and plausibility.inverted(1 - cxr)


@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_polarity_of_real_patients():
    for path in images.find(SZCH / "CXR").values():
        picture = images.read(path)
        assert (
            picture.bits == 8
            and not plausibility.inverted(picture.pixels)
            and plausibility.inverted(1 - picture.pixels)
        )
        assert not plausibility.inverted(picture.pixels[:, 100:-100])  # collimated
