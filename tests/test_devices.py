"""Drawn devices: their rates, what both images show of them, and the record of a simulation with them."""

import dataclasses
import json

import numpy as np
import pytest

from models import config
from models.runtime.files import UserError
from models.simulate import ct, devices, folder, phantom, soft_tissue
from models.simulate.anatomy import draw_anatomy
from models.simulate.extras import Extras

SIZE = 64
PLASTIC_AND_TEXT = ("marker", "buttons")
TUBES = ("endotracheal tube", "gastric tube", "central venous catheter", "chest tube", "port")


def drawn(seed, *names, size=SIZE):
    """The devices of a patient who has these kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "choose", lambda _: list(names))
        return devices.draw(draw_anatomy(seed), size)


def test_a_quarter_of_the_patients_have_a_tube_or_a_catheter():
    chosen = [devices.choose(seed) for seed in range(2000)]
    share = np.mean([any(name in TUBES for name in names) for names in chosen])
    assert 0.22 < share < 0.31
    assert set().union(*chosen) == set(devices.KINDS)
    # Who has a tube in the windpipe has others as well.
    intensive = [names for names in chosen if "endotracheal tube" in names]
    assert np.mean(["electrodes" in names for names in intensive]) > 0.75
    assert np.mean(["electrodes" in names for names in chosen]) < 0.25


def test_a_kind_is_the_same_whatever_else_the_patient_has():
    alone = drawn(3, "chest tube")
    again = drawn(3, "chest tube")
    with_more = drawn(3, "pacemaker", "chest tube")
    np.testing.assert_array_equal(alone.both, again.both)
    seen = alone.both > 0.001
    assert seen.any() and np.abs(with_more.both - alone.both - drawn(3, "pacemaker").both).max() < 1e-6
    assert np.abs(drawn(4, "chest tube").both - alone.both).max() > 0.005


@pytest.mark.parametrize("name", devices.KINDS)
def test_every_kind_is_in_both_images_and_what_is_radiopaque_as_dual_energy_leaves_it(name):
    shown = drawn(5, name)
    assert shown.both.dtype == shown.cxr_alone.dtype == np.float32 and np.isfinite(shown.both).all()
    whole = shown.both + shown.cxr_alone
    assert whole.max() > 0.002 and (whole > 0.001).mean() < 0.2
    if name in PLASTIC_AND_TEXT:
        assert not shown.cxr_alone.any()
    else:
        fades = whole > 0.005
        kept = shown.both[fades] / whole[fades]
        least, most = devices.RADIOPAQUE_KEPT
        assert fades.any() and kept.min() > least - 0.01
        # what is not all metal or PVC keeps more: the block on a pacemaker, the chamber of a port, an electrode's pad
        assert np.median(kept) < most + 0.01 or name in ("electrodes", "pacemaker", "port")


def test_the_letter_of_a_side_lies_on_that_side():
    halves = {"R": [], "L": []}
    for seed in range(60):
        shown = drawn(seed, "marker").both > 0.1
        columns = np.flatnonzero(shown.any(0))
        random = devices.detail_generator(seed, "device marker")
        text = str(random.choice(devices.implants.TEXTS))
        if text[0] in halves:
            halves[text[0]].append(columns.mean() / SIZE)
    assert max(halves["R"]) < 0.5 < min(halves["L"])


@pytest.mark.parametrize("name, fades", [("buttons", False), ("central venous catheter", True)])
def test_plastic_is_as_clear_in_both_images_of_a_drawn_patient_and_a_catheter_fades(monkeypatch, name, fades):
    monkeypatch.setattr(devices, "choose", lambda _: [])
    without = phantom.simulate(2, SIZE, extras=Extras(devices=True))
    monkeypatch.setattr(devices, "choose", lambda _: [name])
    with_device = phantom.simulate(2, SIZE, extras=Extras(devices=True))
    in_cxr = with_device.cxr - without.cxr
    in_soft = with_device.soft - without.soft
    shown = drawn(2, name)
    place = shown.both + shown.cxr_alone > 0.005
    share = in_soft[place].mean() / in_cxr[place].mean()
    assert in_cxr[place].mean() > 0.005
    assert 0.05 < share < 0.6 if fades else share > 0.8
    np.testing.assert_array_equal(with_device.mask, without.mask)


def test_both_twins_and_both_images_of_a_ct_have_the_devices(monkeypatch):
    index = np.arange(SIZE)
    inside = np.hypot(index[:, None] - 32, index[None, :] - 32) < 20
    water = np.where(inside, 8, 20).astype(np.float32)  # cm, as the next two
    bone = (0.5 * (index[:, None] // 8 % 2) * inside).astype(np.float32)
    lung = np.where(inside, 15, 0).astype(np.float32)
    monkeypatch.setattr(ct, "integrals", lambda *_: (water, bone, lung))
    monkeypatch.setattr(devices, "choose", lambda _: ["pacemaker"])
    plain = ct.simulate(None, 1, SIZE)  # pyright: ignore[reportArgumentType]  (`integrals` alone reads it)
    ill, normal = ct.simulate_twins(None, 1, SIZE, extras=Extras(devices=True))  # pyright: ignore[reportArgumentType]
    can = drawn(1, "pacemaker").cxr_alone > 0.05
    for pair in (ill, normal):
        in_cxr = (pair.cxr - plain.cxr)[can].mean()
        in_soft = (pair.soft - plain.soft)[can].mean()
        assert 0 < in_soft < in_cxr
    np.testing.assert_array_equal(normal.mask, plain.mask)


def test_without_the_option_only_the_port_and_the_letter_of_before_are_drawn(monkeypatch):
    monkeypatch.setattr(devices, "draw", None)
    anatomy = draw_anatomy(1)
    assert phantom.simulate(1, SIZE).cxr.shape == (SIZE, SIZE)
    before = phantom.surroundings(1, SIZE).devices
    np.testing.assert_array_equal(before, np.float32(phantom.SIDE) * soft_tissue.devices(anatomy, SIZE))
    assert not phantom.surroundings(1, SIZE, with_port=False).devices.any()


def test_a_simulation_without_devices_is_not_continued_with_them(tmp_path):
    settings = config.parse("", ("simulate",), ["simulate.count=1"]).simulate
    folder.simulate(tmp_path, settings, SIZE)
    with pytest.raises(UserError, match="devices False, asked is devices True"):
        folder.simulate(tmp_path, dataclasses.replace(settings, devices=True), SIZE)
    folder.simulate(tmp_path / "other", dataclasses.replace(settings, devices=True), SIZE)
    record = json.loads((tmp_path / "other" / folder.RECORD).read_text())
    assert record["devices"] is True
    assert record["version"]["devices"] == devices.VERSION
    with pytest.raises(UserError, match="devices True, asked is devices False"):
        folder.simulate(tmp_path / "other", settings, SIZE)
