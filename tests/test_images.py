"""Damaged image files are refused in one line, and what is written or resized comes back. test_raster.py is about what
files are read to."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from image_files import (
    COLOUR8,
    GREY8,
    GREY12,
    GREY16,
    check_refused,
    close,
    make_dicom,
    png_bytes,
    png_chunk,
    save_any,
)
from PIL import Image

from models import images, plausibility
from models.runtime.files import UserError

SZCH = Path(__file__).resolve().parents[2] / "shared" / "szch"
RNG = np.random.default_rng(1)


# --- Damage


def test_missing_empty_folder_and_no_image(tmp_path):
    check_refused(tmp_path / "absent.png")
    check_refused(tmp_path)
    (tmp_path / "nothing.png").touch()
    check_refused(tmp_path / "nothing.png", "the file is empty")
    (tmp_path / "text.png").write_text("no image at all, but long enough " * 9)
    check_refused(tmp_path / "text.png")
    with pytest.raises(UserError) as refused:
        images.read(tmp_path / "text.png")
    assert "object at 0x" not in str(refused.value)


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


def with_claimed_size(width: int, height: int, depth: int) -> bytes:
    """A small PNG whose header, the chunk between bytes 8 and 33, claims another size and depth."""
    content = png_bytes(GREY8)
    grey_without_options = bytes([depth, 0, 0, 0, 0])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + grey_without_options
    return content[:8] + png_chunk(b"IHDR", header) + content[33:]


def test_claimed_sizes_are_refused_from_the_header(tmp_path):
    (tmp_path / "a.png").write_bytes(with_claimed_size(10000, 10000, 16))
    check_refused(tmp_path / "a.png", "10000 x 10000")
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (9000, 9000)).flush()
    check_refused(tmp_path / "a.npy", "9000 x 9000")


@pytest.mark.parametrize("width, height", [(30000, 1000), (1, 60_000_000), (8193, 1)])
def test_thin_images_are_refused_since_they_are_padded_to_squares(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(with_claimed_size(width, height, 8))
    check_refused(tmp_path / "a.png", f"{width} x {height}", "square")
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
    for read_or_find in (lambda: images.read(name), lambda: images.find(tmp_path)):
        with pytest.raises(UserError, match="not UTF-8; rename") as error:
            read_or_find()
        str(error.value).encode()  # so that it can be printed


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
    path = tmp_path / "new" / "a.png"
    for bits, levels, written_bits in ((8, GREY8, 8), (12, GREY16, 16), (16, GREY16, 16)):
        pixels = levels / (2.0**written_bits - 1)
        images.write(path, pixels, bits)
        close(path, pixels, written_bits)
        assert np.array_equal(np.asarray(Image.open(path)), levels)
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
    for name in ("10.png", "2.tif", "a1.JPG", ".2.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")  # a directory of DICOM files, and no image
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
    means = pixels.reshape(8, 3, 9, 4).mean((1, 3))  # of 3 x 4 pixels
    np.testing.assert_allclose(images.resize(pixels, (8, 9)), means, atol=1e-6)


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
    mask[:4, :4] = True
    mask[4, 4] = True
    expected = np.zeros((4, 4), bool)
    expected[:2, :2] = True
    small = images.resize_mask(mask, (4, 4))
    assert small.dtype == bool and np.array_equal(small, expected)


@pytest.mark.parametrize("shape", [(64, 64), (64, 41), (40, 64), (63, 64)])
def test_network_round_trip_without_squeezing(shape):
    pixels = RNG.random(shape, dtype=np.float32)
    square = images.to_network(pixels, 64)
    assert square.shape == (1, 64, 64) and square.dtype == torch.float32
    height, width = shape
    top = (64 - height) // 2
    left = (64 - width) // 2
    middle = square[0, top : top + height, left : left + width]
    np.testing.assert_allclose(middle, 2 * pixels - 1, atol=1e-6)
    padding = square[0].clone()
    padding[top : top + height, left : left + width] = -1
    assert (padding == -1).all()  # black
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
    height = int(small.any(1).sum())
    width = int(small.any(0).sum())
    assert small.shape == (128, 128)
    assert abs(height - width) <= 1  # a circle stays one
    as_image = images.to_network(disc.astype(np.float32), 128)[0]
    assert np.array_equal(as_image > 0, small)


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
    fine = plausibility.check(images.read(tmp_path / "fine.png"))
    assert not plausibility.constant(fine.pixels)


@pytest.mark.slow
def test_polarity_of_simulated_patients():
    phantom = pytest.importorskip("models.simulate.phantom")
    for seed in range(6):
        cxr = phantom.simulate(seed, 96).cxr
        assert not plausibility.inverted(cxr)
        assert plausibility.inverted(1 - cxr)


@pytest.mark.skipif(not SZCH.is_dir(), reason=f"no real pairs in {SZCH}")
def test_polarity_of_real_patients():
    for path in images.find(SZCH / "CXR").values():
        picture = images.read(path)
        assert picture.bits == 8
        assert not plausibility.inverted(picture.pixels)
        assert plausibility.inverted(1 - picture.pixels)
        assert not plausibility.inverted(picture.pixels[:, 100:-100])  # collimated
