"""What the trainings load: which pairs, which images, cached latents."""

import numpy as np
import pytest
import torch
from conftest import TINY, run_script
from PIL import Image
from test_augment import augmentation

from models import images
from models.data import checks, datasets, inputs, lists
from models.runtime.files import UserError
from models.simulate import phantom


@pytest.fixture
def root(tmp_path):
    """A data folder of three simulated pairs, the third without a mask."""
    for i in range(3):
        patient = phantom.simulate(i, 64)
        images.write(tmp_path / "CXR" / f"{i}.png", patient.cxr)
        images.write(tmp_path / "BS" / f"{i}.png", patient.soft)
        if i < 2:
            images.write(tmp_path / "Mask" / f"{i}.png", patient.mask.astype(np.float32))
    return tmp_path


def upper_half(cxr):
    """Stands for the lungs, which are not to be found in images this small."""
    return np.arange(len(cxr))[:, None] * np.ones_like(cxr) < len(cxr) / 2


@pytest.fixture(autouse=True)
def lungs_in_the_upper_half(monkeypatch):
    monkeypatch.setattr(datasets.lungs, "lung_mask", upper_half)


def test_image_source_gives_whole_and_masked_images(root):
    pairs = lists.find_pairs(root)
    source = datasets.ImageSource(pairs, 32, True, workers=0)
    assert len(source.names) == 12 and len(datasets.ImageSource(pairs, 32, False, workers=0).names) == 6
    batches = list(source.batches([[0, 2], [11]]))
    assert [tuple(batch["image"].shape) for batch in batches] == [(2, 1, 32, 32), (1, 1, 32, 32)]
    soft = images.read(root / "BS" / "2.png").pixels
    expected = images.to_network(soft * upper_half(soft), 32)  # no mask file: the lungs are found
    assert source.names[11] == "2 (masked_soft)" and torch.equal(batches[1]["image"][0], expected)
    mask = images.read_mask(root / "Mask" / "0.png")
    assert torch.equal(source[2, 0], images.to_network(images.read(root / "CXR" / "0.png").pixels * mask, 32))


@pytest.mark.slow
def test_workers_load_the_same_as_the_process_itself(root):
    pairs = lists.find_pairs(root)
    alone, helped = (datasets.ImageSource(pairs, 32, False, workers=workers) for workers in (0, 2))
    index_lists = [[3, 1], [0, 5], [2]]
    for a, b in zip(alone.batches(index_lists), helped.batches(index_lists)):
        assert torch.equal(a["image"], b["image"])


def encoder(calls):
    def encode(batch):
        calls.append(len(batch))
        return torch.nn.functional.avg_pool2d(batch, 8).repeat(1, 4, 1, 1)

    return encode


@pytest.mark.slow
def test_latents_are_encoded_once_and_anew_when_an_image_changes(root, tmp_path):
    pairs, calls = lists.find_pairs(root), []
    arguments = (encoder(calls), "key", pairs, 32, True, tmp_path / "latents", 5)
    first = datasets.cached_latents(*arguments)
    assert sum(calls) == 12 and set(first["0"]) == set(datasets.WHOLE + datasets.MASKED)
    second = datasets.cached_latents(*arguments)
    assert sum(calls) == 12 and all(torch.equal(first[n][k], second[n][k]) for n in first for k in first[n])
    images.write(root / "CXR" / "1.png", np.clip(images.read(root / "CXR" / "1.png").pixels * 0.8, 0, 1))
    third = datasets.cached_latents(*arguments)
    assert (
        sum(calls) == 14
        and not torch.equal(third["1"]["cxr"], first["1"]["cxr"])
        and torch.equal(third["1"]["soft"], first["1"]["soft"])
    )
    datasets.cached_latents(encoder(calls), "other weights", *arguments[2:])
    assert sum(calls) == 14 + 12


def test_of_more_latents_than_memory_shall_hold_each_batch_is_read_from_the_files(root, tmp_path, monkeypatch):
    arguments = (encoder([]), "key", lists.find_pairs(root), 32, True, tmp_path / "latents", 5)
    kept = datasets.LatentSource(datasets.cached_latents(*arguments))
    monkeypatch.setattr(datasets, "KEEP_BYTES", 0)
    latents = datasets.cached_latents(*arguments)
    read = datasets.LatentSource(latents)
    assert all(isinstance(file, str) for files in latents.values() for file in files.values())
    assert read.names == kept.names
    for expected, found in zip(kept.batches([[4, 0], [2, 5]]), read.batches([[4, 0], [2, 5]])):
        assert all(torch.equal(expected[key], found[key]) for key in ("cxr", "soft"))

    broken = sorted((tmp_path / "latents").rglob("*.npy"))[0]
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{broken.name}.*remove it"):
        datasets.cached_latents(*arguments)


def test_processes_share_the_encoding(root, tmp_path):
    pairs, calls = lists.find_pairs(root), []
    arguments = (encoder(calls), "key", pairs, 32, False, tmp_path / "latents", 4)
    assert datasets.cached_latents(*arguments, shard=slice(0, None, 2)) == {} and sum(calls) == 3
    datasets.cached_latents(*arguments)
    assert sum(calls) == 6


def test_a_damaged_latent_is_named(root, tmp_path):
    arguments = (encoder([]), "key", lists.find_pairs(root), 32, False, tmp_path / "latents", 4)
    datasets.cached_latents(*arguments)
    broken = sorted((tmp_path / "latents").rglob("*.npy"))[0]
    broken.write_bytes(b"")
    with pytest.raises(UserError, match=f"{broken.name}.*remove it"):
        datasets.cached_latents(*arguments)


def test_latent_source_pairs_whole_with_whole_and_masked_with_masked():
    latents = {
        name: {
            kind: torch.full((4, 2, 2), float(10 * i + j)) for j, kind in enumerate(datasets.WHOLE + datasets.MASKED)
        }
        for i, name in enumerate("ab")
    }
    source = datasets.LatentSource(latents)
    assert source.names == ["a (cxr)", "b (cxr)", "a (masked_cxr)", "b (masked_cxr)"]
    batch = next(source.batches([[1, 2]]))
    assert batch["cxr"][:, 0, 0, 0].tolist() == [10, 2] and batch["soft"][:, 0, 0, 0].tolist() == [11, 3]
    assert (
        len(
            datasets.LatentSource(
                {name: {kind: kinds[kind] for kind in datasets.WHOLE} for name, kinds in latents.items()}
            ).names
        )
        == 2
    )


@pytest.mark.slow
def test_augmented_images_change_with_the_epoch_and_with_nothing_else(root):
    pairs, changes = lists.find_pairs(root), augmentation(flip=True, rotate=5, scale=0.1, contrast=0.1, gamma=0.1)
    alone, helped = (datasets.ImageSource(pairs, 32, True, workers, changes, seed=1) for workers in (0, 2))
    index_lists = [[0, 1, 2, 3]]
    epochs = [next(alone.batches(index_lists, epoch))["image"] for epoch in (0, 1, 0)]
    assert torch.equal(epochs[0], epochs[2]) and not torch.allclose(epochs[0], epochs[1], atol=0.01)
    assert torch.equal(next(helped.batches(index_lists, 1))["image"], epochs[1])
    expected = datasets.augmented(lambda kind: datasets.load(pairs["0"], kind, 32), "masked_soft", changes, "1/1/0")
    assert torch.equal(epochs[1][3], expected)  # all four images of a patient alike


@pytest.mark.slow
def test_latents_of_augmented_versions_are_kept_apart_and_taken_in_turn(root, tmp_path):
    pairs, calls = lists.find_pairs(root), []
    changes = augmentation(rotate=5, scale=0.1, contrast=0.1, gamma=0.1, bone=0.9)
    arguments = (encoder(calls), "key", pairs, 32, False, tmp_path / "latents", 4)
    plain = datasets.cached_latents(*arguments)
    versions = [
        datasets.cached_latents(*arguments, augmentation=changes, version=version) for version in ("0/0", "0/1")
    ]
    assert sum(calls) == 18 and len(list((tmp_path / "latents").rglob("*.npy"))) == 18
    again = datasets.cached_latents(*arguments, augmentation=changes, version="0/1")
    assert sum(calls) == 18 and torch.equal(again["1"]["soft"], versions[1]["1"]["soft"])
    source = datasets.LatentSource(*versions)
    batches = [next(source.batches([[1, 0]], epoch)) for epoch in range(3)]
    for epoch, batch in enumerate(batches):
        assert torch.equal(batch["cxr"][0], versions[epoch % 2]["1"]["cxr"]) and torch.equal(
            batch["soft"][1], versions[epoch % 2]["0"]["soft"]
        )
    assert not torch.equal(batches[0]["cxr"], batches[1]["cxr"]) and not torch.equal(
        plain["1"]["cxr"], versions[0]["1"]["cxr"]
    )
    expected = datasets.augmented(lambda kind: datasets.load(pairs["1"], kind, 32), "cxr", changes, "0/1/1")
    assert torch.equal(encoder([])(expected[None])[0], versions[1]["1"]["cxr"])


def test_an_augmented_cxr_is_encoded_anew_when_its_soft_tissue_changes(root, tmp_path):
    """Its bone is changed by means of the soft-tissue image, so a latent of the old one would be wrong."""
    pairs = {"0": lists.find_pairs(root)["0"]}
    changes = augmentation(bone=0.9)
    calls = []
    arguments = (encoder(calls), "key", pairs, 32, False, tmp_path / "latents", 4)
    before = datasets.cached_latents(*arguments, augmentation=changes, version="0/0")
    images.write(root / "BS" / "0.png", images.read(root / "BS" / "1.png").pixels)
    after = datasets.cached_latents(*arguments, augmentation=changes, version="0/0")
    assert not torch.equal(before["0"]["cxr"], after["0"]["cxr"])


def test_training_pairs_follow_the_lists(root, tmp_path):
    folder = tmp_path / "lists"
    lists.write_list(folder / "x_trainset.txt", ["2.png", "0.png"])
    train, validation = lists.training_pairs(root, folder, "x")
    assert list(train) == ["2", "0"] and validation == {}
    lists.write_list(folder / "x_valset.txt", ["7.png"])
    with pytest.raises(UserError, match="x_valset.txt names images .* 7"):
        lists.training_pairs(root, folder, "x")


@pytest.mark.slow
def test_trainings_say_of_ranges_that_no_file_declares(tmp_path, capsys):
    """12 bits in 16: read as 12 bits, and said; a pair of two depths is refused, before anything is built."""
    root = tmp_path / "data"
    for number in range(9):
        for folder in ("CXR", "BS"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            levels = np.full((64, 64), 4000, np.uint16)
            levels[number] = 0
            Image.fromarray(levels).save(root / folder / f"{number}.png")
    pairs = lists.find_pairs(root)
    checks.check_ranges(pairs, root)
    told = capsys.readouterr().err
    assert "read as 12 bits" in told and "(of 9)" in told and f"data.source={root}" in told

    # the last pair is none of the sample, by which the others are found
    Image.fromarray(levels // 4).save(root / "BS" / "8.png")
    lists.write_list(tmp_path / "lists" / "data_trainset.txt", [f"{name}.png" for name in pairs])
    settings = ("data.root=data", "data.lists=lists", "comparison.method=gusarev", "comparison.gusarev.ms_ssim=0")
    for script in ("vq-gan_train.py", "ldm_train.py", "lcm_train.py", "comparison_train.py"):
        status, _, told = run_script(script, *TINY, *settings, folder=tmp_path)
        assert status == 2 and "BS/8.png is read as 10 bits, but data/CXR/8.png as 12" in told.splitlines()[-1]
        assert not (tmp_path / "runs").exists()

    # what declares its range is not read twice
    for folder in ("CXR", "BS"):
        for number in range(9):
            images.write(root / folder / f"{number}.png", np.eye(64), 16)
    (root / "BS" / "8.png").write_bytes(b"none")
    checks.check_ranges(pairs, root)
    assert capsys.readouterr().err == ""


def test_what_is_evaluated(root, tmp_path):
    assert list(inputs.find_inputs(root / "CXR", root)) == ["0", "1", "2"] and list(
        inputs.find_inputs(root / "CXR" / "1.png", root)
    ) == ["1"]
    lists.write_list(tmp_path / "list.txt", ["2.png", "1.png"])
    assert list(inputs.find_inputs(tmp_path / "list.txt", root)) == ["2", "1"]
    lists.write_list(tmp_path / "list.txt", ["2.png", "9.png"])
    with pytest.raises(UserError, match="list.txt names images .* 9"):
        inputs.find_inputs(tmp_path / "list.txt", root)
    with pytest.raises(UserError, match="neither an image"):
        inputs.find_inputs(tmp_path / "none", root)


def test_truth_and_mask_are_looked_for_beside_a_cxr_folder_only(root, tmp_path):
    assert inputs.images_beside(root / "CXR", "BS")["1"] == root / "BS" / "1.png"
    assert "2" not in inputs.images_beside(root / "CXR", "Mask")
    images.write(tmp_path / "elsewhere" / "1.png", np.eye(64))
    assert inputs.images_beside(tmp_path / "elsewhere", "BS") == {}


@pytest.mark.slow
def test_training_images_are_cut_and_their_bone_changed_alike_in_every_process(root):
    """A part of the image, another one in each epoch; without bone a CXR is its soft tissue."""
    pairs, no_bone = lists.find_pairs(root), augmentation(bone=1.0)
    alone, helped = (datasets.ImageSource(pairs, 64, True, workers, no_bone, 24, seed=4) for workers in (0, 1))
    index_lists = [[0, 4], [8]]
    for epoch in (0, 1):
        for a, b in zip(alone.batches(index_lists, epoch), helped.batches(index_lists, epoch)):
            assert a["image"].shape[1:] == (1, 24, 24) and torch.equal(a["image"], b["image"])
    assert not torch.equal(alone[0, 0], alone[0, 1])
    whole, key = datasets.ImageSource(pairs, 64, True, 0, no_bone, 0, seed=4), "4/0/0"
    cxr, soft, plain = whole[0, 0], whole[1, 0], datasets.load(pairs["0"], "cxr", 64)
    share = (cxr - soft).sum() / (plain - soft).sum()
    assert 0 < share < 1 and torch.allclose(cxr, torch.lerp(soft, plain, share), atol=1e-3)
    places = [
        (top, left)
        for top in range(41)
        for left in range(41)
        if torch.equal(cxr[:, top : top + 24, left : left + 24], alone[0, 0])
    ]
    assert len(places) == 1 and torch.equal(datasets.crop(cxr, 24, f"{key}/cxr"), alone[0, 0])
