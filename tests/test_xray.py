"""Rays through volumes against closed forms, and the subtraction of two energies against physics."""

import numpy as np
import pytest

from models.simulate import xray

# --- Rays -------------------------------------------------------------------------------------------------------------


def solid(inside, shape=(60, 80, 80), spacing=(3.0, 2.0, 2.0)):
    """A volume of 1 where `inside(z, y, x)` in mm holds, as shares of the voxels."""
    grids = np.meshgrid(
        *(step * (np.arange(3 * count) - (3 * count - 1) / 2) / 3 for count, step in zip(shape, spacing)), indexing="ij"
    )
    share = inside(*grids).reshape(shape[0], 3, shape[1], 3, shape[2], 3).mean((1, 3, 5))
    return xray.Volume(np.rint(share[..., None] / 1e-4).astype(np.uint16), spacing, 1e-4)


@pytest.mark.slow
def test_rays_through_a_cylinder_have_the_lengths_of_its_chords():
    radius, size, field = 50.0, 120, 150.0
    volume = solid(lambda z, y, x: np.hypot(x, z) < radius)
    seen = xray.project(volume, xray.Pose(field=field), size)[..., 0]
    focus = xray.FOCUS - 3.0 * 60 / 2 - 30
    mm = ((np.arange(size) + 0.5) / size - 0.5) * field
    x, y = mm[None], mm[:, None]
    nearest = np.abs(x) * focus / np.hypot(focus, x)  # of the ray to the axis
    chord = 2 * np.sqrt(np.maximum(radius**2 - nearest**2, 0)) * np.sqrt(1 + y**2 / (focus**2 + x**2)) / 10
    within = (nearest < 0.9 * radius) & (np.abs(y) < 65)
    assert seen[within] == pytest.approx(chord[within], rel=0.02)
    assert seen[:, np.abs(mm) > 56].max() == 0


@pytest.mark.slow
def test_a_ball_looks_the_same_from_everywhere():
    volume = solid(lambda z, y, x: x**2 + y**2 + z**2 < 40**2)
    straight = xray.project(volume, xray.Pose(field=150), 100)[..., 0]
    assert straight.max() == pytest.approx(8.0, rel=0.02)
    turned = xray.project(volume, xray.Pose(turn=(0.3, -0.2, 0.5), field=150), 100)[..., 0]
    assert np.abs(turned - straight).max() < 0.35 and turned.sum() == pytest.approx(straight.sum(), rel=0.01)
    wide = xray.project(volume, xray.Pose(stretch=(1.5, 1, 1), field=150), 100)[..., 0]
    assert wide.sum() == pytest.approx(1.5 * straight.sum(), rel=0.01)
    moved = xray.project(volume, xray.Pose(centre=(15.0, -30.0), field=150), 100)[..., 0]
    assert np.abs(np.roll(moved, (20, -10), (0, 1)) - straight)[25:75, 25:75].max() < 0.35


@pytest.mark.slow
def test_what_lies_nearer_to_the_source_looks_larger():
    discs = [solid(lambda z, y, x, at=at: (np.hypot(x, y) < 30) & (np.abs(z - at) < 3)) for at in (-60, 60)]
    front, back = ((xray.project(disc, xray.Pose(field=150), 150)[..., 0] > 0.3).sum() for disc in discs)
    focus = xray.FOCUS - 3.0 * 60 / 2 - 30
    assert back / front == pytest.approx(((focus + 60) / (focus - 60)) ** 2, rel=0.02)


# --- Two energies -----------------------------------------------------------------------------------------------------

LINES = [np.array([0, 0, 1.0, 0, 0, 0]), np.array([0, 0, 0, 0, 1.0, 0])]  # 50 and 80 keV
THICKNESSES = np.meshgrid(np.linspace(1, 30, 30), np.linspace(0, 3, 16))


def test_one_spectral_line_obeys_the_tables():
    water, bone = 10.0, 2.0  # cm; mu / rho of NIST at 50 keV, 1.92 g / cm^3
    assert xray.attenuation(water, bone, LINES[0]) == pytest.approx(
        0.2269 * (water - bone) + 1.92 * 0.4242 * bone, rel=1e-5
    )


def test_two_spectral_lines_take_away_all_bone():
    water, bone = THICKNESSES
    low, high = (xray.attenuation(water, bone, line) for line in LINES)
    assert np.abs(xray.subtract(high, low, *LINES) - 0.1837 * water).max() < 2e-3
    assert np.abs(high - 0.1837 * water).max() > 0.4


def test_real_spectra_take_away_nearly_all_bone_and_no_tissue():
    water, bone = THICKNESSES
    low, high = (xray.attenuation(water, bone, spectrum) for spectrum in (xray.LOW, xray.HIGH))
    soft, truth = xray.subtract(high, low, xray.LOW, xray.HIGH), xray.attenuation(water, 0.0, xray.HIGH)
    none = bone == 0
    assert np.abs(soft - high)[none].max() < 2e-3
    left = np.abs(soft - truth)[~none] / (high - truth)[~none]
    assert 0.001 < left.max() < 0.35 and np.median(left) < 0.1
