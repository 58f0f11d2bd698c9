"""Image files of every format are read to the right values: bits, ranges, orientation."""

import cv2
import numpy as np
import pytest
import tifffile
from image_files import COLOUR8, GREY8, GREY12, GREY16, check_refused, close, insert_chunk, png_bytes, save_any
from PIL import Image, ImageOps

from models import images
from models.runtime.files import UserError

RNG = np.random.default_rng(1)
ORIENTATION = 274  # EXIF's tag
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue (Rec. 601)


# --- PNG, TIFF, JPEG, NumPy


@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
@pytest.mark.parametrize("levels, bits", [(GREY8, 8), (GREY16, 16)])
def test_grey_levels_are_divided_by_white(tmp_path, ending, levels, bits):
    path = tmp_path / f"a.{ending}"
    save_any(path, levels)
    close(path, levels / (2.0**bits - 1), bits)


def test_eight_bit_png_is_exactly_value_over_255(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    assert np.array_equal(images.read(tmp_path / "a.png").pixels, (GREY8 / 255).astype(np.float32))


def test_content_decides_not_the_ending(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.tif", format="PNG")
    close(tmp_path / "a.tif", GREY8 / 255, 8)


def test_png_significant_bits_scaled_as_the_standard_says_and_unscaled(tmp_path):
    replicated = (GREY12 << 4 | GREY12 >> 8).astype(np.uint16)  # 12 bits scaled to 16 by repeating the highest
    for name, levels, tolerance in (("scaled", replicated, 2e-5), ("plain", GREY12, 1e-7)):
        path = tmp_path / f"{name}.png"
        path.write_bytes(insert_chunk(png_bytes(levels), b"sBIT", bytes([12])))
        close(path, GREY12 / 4095, 12, tolerance)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colour_becomes_luma_and_alpha_is_dropped(tmp_path, ending):
    alpha = RNG.integers(0, 256, (21, 34, 1), dtype=np.uint8)
    luma = COLOUR8 @ LUMA / 255
    with_alpha = np.concatenate([COLOUR8, alpha], -1)
    for name, levels in (("rgb", COLOUR8), ("rgba", with_alpha)):
        Image.fromarray(levels).save(tmp_path / f"{name}.{ending}")
        close(tmp_path / f"{name}.{ending}", luma, 8, 1e-6)
    grey_with_alpha = np.concatenate([GREY8[..., None], alpha], -1)
    Image.fromarray(grey_with_alpha, "LA").save(tmp_path / "la.png")
    close(tmp_path / "la.png", GREY8 / 255, 8)
    as_colour = np.repeat(GREY8[..., None], 3, -1)
    palette = Image.fromarray(as_colour).quantize(256)
    palette.save(tmp_path / "palette.png")
    looked_up = np.asarray(palette.convert("RGB"))[..., 0]
    close(tmp_path / "palette.png", looked_up / 255, 8)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_colour_keeps_its_bits(tmp_path, ending):
    levels = RNG.integers(0, 65536, (21, 34, 3), dtype=np.uint16)
    path = tmp_path / f"a.{ending}"
    cv2.imwrite(str(path), levels[..., ::-1])
    close(path, levels @ LUMA / 65535, 16, 1e-6)


@pytest.mark.parametrize("levels, bits", [(GREY8, 8), (GREY16, 16)])
def test_tiff_white_is_zero(tmp_path, levels, bits):
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="miniswhite")
    close(tmp_path / "a.tif", 1 - levels / (2.0**bits - 1), bits)


def test_tiff_declared_maximum_byte_order_and_packing(tmp_path):
    largest_is_4095 = [(341, 3, 1, 4095, True)]  # SMaxSampleValue, one 16-bit number
    tifffile.imwrite(tmp_path / "twelve.tif", GREY12, photometric="minisblack", extratags=largest_is_4095)
    close(tmp_path / "twelve.tif", GREY12 / 4095, 12)
    tifffile.imwrite(tmp_path / "big.tif", GREY16, byteorder=">")
    close(tmp_path / "big.tif", GREY16 / 65535, 16)
    Image.fromarray(GREY16).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    close(tmp_path / "lzw.tif", GREY16 / 65535, 16)
    tifffile.imwrite(tmp_path / "lies.tif", GREY16, photometric="minisblack", extratags=largest_is_4095)
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


def smooth_picture() -> np.ndarray:
    """uint8 (168, 272), which JPEG keeps but for a few levels."""
    enlarged = np.kron(GREY8, np.ones((8, 8), np.uint8))
    return cv2.GaussianBlur(enlarged, (0, 0), 8)


def test_jpeg_grey_and_colour(tmp_path):
    smooth = smooth_picture()
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
        header = f"P5\n# a comment\n{width} {height}\n{white}\n"
        big_endian = levels.astype(">u2").tobytes()
        path.write_bytes(header.encode() + big_endian)
        close(path, levels / white, bits)
        path.write_bytes(path.read_bytes()[:-2])
        check_refused(path)
        text = tmp_path / f"text{white}.pgm"
        numbers = "\n".join(str(level) for level in levels.ravel())
        text.write_text(f"P2 {width} {height} {white}\n{numbers}")
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
    """A file of 16-bit levels (H, W), in the format that its ending says; of a PGM Pillow would scale the values."""
    if path.suffix == ".npy":
        np.save(path, levels)
    elif path.suffix == ".pgm":
        height, width = levels.shape
        header = f"P5 {width} {height} 65535\n"
        path.write_bytes(header.encode() + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(path)


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "pgm", "jp2"])
@pytest.mark.parametrize("largest, bits", [(200, 8), (900, 10), (2500, 12), (4095, 12), (4096, 14), (16383, 14)])
def test_few_bits_in_16_are_found_and_said(tmp_path, ending, largest, bits):
    path = tmp_path / f"a.{ending}"
    shares = GREY16.astype(np.float64) / GREY16.max()
    levels = (shares * largest).round().astype(np.uint16)
    assert levels.max() == largest
    save_16(path, levels)
    white = 2**bits - 1
    close(path, levels / white, bits)
    note = images.read(path).note
    for words in (f"read as {bits} bits", f"above {white} of 65535", "eval.range"):
        assert words in note
    assert "\n" not in note
    whole = images.read(path, "container")
    np.testing.assert_allclose(whole.pixels, levels / 65535, atol=1e-7)
    assert whole.note == "" and whole.bits == 16


def test_what_uses_a_quarter_of_its_range_stays_as_it_is(tmp_path):
    levels = (GREY16 >> 2).astype(np.uint16)
    levels[0, 0] = 16384
    Image.fromarray(levels).save(tmp_path / "a.png")
    close(tmp_path / "a.png", levels / 65535, 16)
    assert images.read(tmp_path / "a.png").note == ""
    dark = GREY8 >> 4  # 8 bits are never stretched
    Image.fromarray(dark).save(tmp_path / "b.png")
    close(tmp_path / "b.png", dark / 255, 8)
    assert images.read(tmp_path / "b.png").note == ""


def test_white_is_zero_in_few_bits(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY12, photometric="miniswhite")
    close(tmp_path / "a.tif", 1 - GREY12 / 4095, 12)


def test_16_bit_colour_of_few_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(GREY12[..., None], 3, -1))
    close(tmp_path / "a.png", GREY12 / 4095, 12, 1e-6)


def test_tiff_maximum_as_declared_or_as_counted(tmp_path):
    levels = np.minimum(GREY12, 3900)
    for declared, bits in ((4095, 12), (3900, 12), (65535, 16)):
        largest = [(281, 3, 1, declared, True)]  # MaxSampleValue, one 16-bit number
        tifffile.imwrite(tmp_path / "a.tif", levels, photometric="minisblack", extratags=largest)
        close(tmp_path / "a.tif", levels / (2**bits - 1), bits)
        assert images.read(tmp_path / "a.tif").note == ""


def test_given_limits(tmp_path):
    Image.fromarray(GREY12).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png", (1000, 3000))
    expected = np.clip((GREY12 - 1000.0) / 2000, 0, 1)
    np.testing.assert_allclose(picture.pixels, expected, atol=1e-7)
    assert "eval.range" in picture.note
    assert "%" in picture.note  # the share that is cut
    assert images.read(tmp_path / "a.png", (0, 4095)).note == ""
    signed = GREY12.astype(np.int16) - 2048
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    np.save(tmp_path / "signed.npy", signed)
    np.save(tmp_path / "float.npy", signed.astype(np.float64))
    for name in ("signed.tif", "signed.npy", "float.npy"):
        check_refused(tmp_path / name)
        picture = images.read(tmp_path / name, (-2048, 2047))
        np.testing.assert_allclose(picture.pixels, GREY12 / 4095, atol=1e-7)
    Image.fromarray(GREY8).save(tmp_path / "eight.png")
    with pytest.raises(UserError, match="hold at most 255"):
        images.read(tmp_path / "eight.png", (0, 4095))


def test_limits_as_a_setting():
    for text, limits in (
        ("auto", "auto"),
        ("container", "container"),
        ("4095", (0, 4095)),
        ("-1024..3071", (-1024, 3071)),
        ("0..1.5", (0, 1.5)),
    ):
        assert images.parse_limits(text) == limits
    for wrong in ("automatic", "", "5..", "..5", "3..3", "9..2", "-5", "0", "nan", "1e3"):
        with pytest.raises(UserError, match="eval.range="):
            images.parse_limits(wrong)


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "pgm"])
def test_few_bits_are_written_back_as_few_bits(tmp_path, ending):
    """The result's grey values are the input's: an unchanged image comes back to the number, and is read to the same
    pixels."""
    path = tmp_path / f"a.{ending}"
    save_16(path, GREY12)
    out = tmp_path / "out.png"
    for limits, expected in (
        ("auto", GREY12),
        ("container", GREY12),
        ((0, 4095), GREY12),
        ((100, 4000), np.clip(GREY12, 100, 4000)),
    ):
        picture = images.read(path, limits)
        images.write_like(out, picture.pixels, picture)
        written = np.asarray(Image.open(out))
        assert written.dtype == np.uint16, limits
        assert np.array_equal(written, expected), limits
        again = images.read(out)
        assert np.array_equal(again.pixels, picture.pixels), limits
        assert again.note == "", limits
        by_opencv = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(by_opencv, written), limits


@pytest.mark.parametrize("black, white", [(20, 127), (0, 127)])  # the second is a whole number of bits
def test_eight_bits_are_written_back_between_given_limits(tmp_path, black, white):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png", (black, white))
    images.write_like(tmp_path / "out.png", picture.pixels, picture)
    written = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(written, np.clip(GREY8, black, white))
    assert np.array_equal(images.read(tmp_path / "out.png").pixels, picture.pixels)


def test_dark_results_are_not_taken_for_few_bits(tmp_path):
    """What this project writes declares its range, so that a dark picture, as of a deviation, is read as it is."""
    dark = GREY8 / 255 * 0.05
    images.write(tmp_path / "a.png", dark, 16)
    close(tmp_path / "a.png", dark, 16, 1e-5)
    assert images.read(tmp_path / "a.png").note == ""


# --- Orientation


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg", "16.png", "16.tif", "colour16.tif"])
def test_exif_orientation_is_turned_and_turned_back(tmp_path, ending, orientation):
    """Upright as Pillow turns it; the result lies as the file does and says so."""
    # A file in that orientation
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{ending}"
    smooth = smooth_picture()
    levels = smooth.astype(np.uint16) * 257 if "16" in ending else smooth
    if ending == "colour16.tif":
        as_colour = np.repeat(levels[..., None], 3, -1)
        tag = (ORIENTATION, 3, 1, orientation, True)  # one 16-bit number
        tifffile.imwrite(path, as_colour, photometric="rgb", extratags=[tag])
    else:
        keywords = {"jpg": {"quality": 98}, "webp": {"lossless": True}}.get(ending, {})
        Image.fromarray(levels).save(path, exif=exif, **keywords)

    # Upright by Pillow
    stored = Image.fromarray(smooth)
    stored.info["exif"] = exif.tobytes()
    stored.getexif()[ORIENTATION] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    picture = images.read(path)
    assert picture.pixels.shape == upright.shape
    tolerance = 0.02 if ending == "jpg" else 1e-6
    np.testing.assert_allclose(picture.pixels, upright / 255, atol=tolerance)

    # And back
    out = tmp_path / "out.png"
    images.write_like(out, picture.pixels, picture)
    with Image.open(out) as result:
        assert result.getexif().get(ORIENTATION, 1) == orientation
        assert (result.height, result.width) == smooth.shape
    again = images.read(out)
    np.testing.assert_allclose(again.pixels, picture.pixels, atol=0.51 / 255)


def test_damaged_exif_is_no_orientation(tmp_path):
    (tmp_path / "a.png").write_bytes(insert_chunk(png_bytes(GREY8), b"eXIf", b"II*\0\xff\xff\xff\xff"))
    close(tmp_path / "a.png", GREY8 / 255, 8)


# --- JSRT


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
