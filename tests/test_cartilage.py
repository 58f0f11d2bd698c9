"""Calcified cartilage of drawn ribs: where it lies, that it is bone, and the record of a simulation with it."""

import dataclasses

import numpy as np
import pytest

from models import config
from models.runtime.files import UserError
from models.simulate import cartilage, folder, phantom, skeleton
from models.simulate.anatomy import draw_anatomy
from models.simulate.extras import Extras

SIZE = 64


def test_about_half_of_the_patients_have_it_in_front_of_their_ribs():
    found = [cartilage.thickness(draw_anatomy(seed), SIZE) for seed in range(60)]
    assert 0.3 < np.mean([thickness.any() for thickness in found]) < 0.7
    np.testing.assert_array_equal(found[1], cartilage.thickness(draw_anatomy(1), SIZE))
    rows, columns = np.nonzero(np.sum(found, axis=0) > 0.001)
    assert 0.15 * SIZE < rows.min() and rows.max() < 0.95 * SIZE
    assert 0.15 * SIZE < columns.min() and columns.max() < 0.85 * SIZE


@pytest.mark.parametrize("rib", range(cartilage.RIBS))
def test_it_runs_from_a_ribs_front_end_towards_the_breast_bone(rib):
    front_end = skeleton.ribs(draw_anatomy(2)).path[skeleton.RIBS + rib, -1]  # a left one
    course = cartilage._course(front_end, rib, 1.0)
    assert course[0] == pytest.approx(front_end[:2], abs=1e-6)
    assert course[-1] == pytest.approx((cartilage.STERNUM_X, cartilage.STERNUM_Y[rib]), abs=1e-6)
    assert np.all(np.diff(course[:, 0]) < 0)
    assert len(cartilage._course(front_end, rib, 0.5)) < 0.6 * len(course)


def test_it_is_bone_which_the_soft_tissue_lacks(monkeypatch):
    monkeypatch.setattr(cartilage, "SHARE", 1.0)
    anatomy = draw_anatomy(11)
    calcified = cartilage.thickness(anatomy, SIZE) > 0.004
    without = phantom.simulate(11, SIZE)
    with_it = phantom.simulate(11, SIZE, extras=Extras(cartilage=True))
    in_cxr = (with_it.cxr - without.cxr)[calcified].mean()
    in_soft = np.abs(with_it.soft - without.soft)[calcified].mean()
    assert calcified.any() and in_cxr > 0.01 and in_soft < 0.3 * in_cxr


def test_a_simulation_without_it_is_not_continued_with_it(tmp_path):
    settings = config.parse("", ("simulate",), ["simulate.count=1"]).simulate
    folder.simulate(tmp_path, settings, SIZE)
    with pytest.raises(UserError, match="cartilage False, asked is cartilage True"):
        folder.simulate(tmp_path, dataclasses.replace(settings, cartilage=True), SIZE)
