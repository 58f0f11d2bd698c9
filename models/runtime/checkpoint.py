"""Networks and their weights: a network is built from its file, whatever its form, and written with the settings that
build it again. What a file holds is read by weights_file.py."""

import hashlib
import inspect
import json
import math
from pathlib import Path
from typing import Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from .files import UserError, replacing
from .weights_file import disk_errors, first_line, read_weights

# Counts and sizes in a header beyond any network's; they only guard against building what its tensors cannot fit.
LARGEST_SIZE = 1 << 20  # largest absolute value of any number in the settings
LONGEST_LIST = 32  # entries

# types that a file's numbers may have; in a network they are float32
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)  # init_from returns the class that it is given


class Network(nn.Module):
    """A network that knows the keywords it was built from, so that one file of weights is enough to build it again.

    A subclass sets `self.settings` in its constructor, after super().__init__(), to the keywords of the constructor.
    Its `settings_of(state, modules)` derives them from the tensors of a checkpoint without a header (state: name ->
    tensor; modules: name -> attributes of the pickled module, empty for a plain state_dict) and raises KeyError,
    IndexError, ValueError or ZeroDivisionError for those of another network.
    `earlier`: keywords that headers of earlier versions do not name, with what those versions had.
    `notes` are further entries of the header, such as what the network was trained for; `load` and `save` keep them.
    """

    earlier: dict = {}

    def __init__(self):
        super().__init__()
        self.settings: dict = {}
        self.notes: dict = {}

    @staticmethod
    def settings_of(state: dict, modules: dict) -> dict:
        raise KeyError("a header")  # for networks of which no foreign checkpoints are read

    @classmethod
    def load(cls, path: str | Path, defaults: dict | None = None, **keywords) -> Self:
        """The network in a file of this project or in a released .pth; in eval mode, float32, on the CPU.

        defaults: settings for what the file does not say (for example {"qkv_by_head": True}).
        keywords: settings that replace what the file says.
        Raises UserError for a missing, damaged or foreign file and for weights of another architecture.
        """
        # The settings: this project's files carry them; of a released .pth, names and shapes of the tensors tell them.
        state, header, modules = read_weights(path)
        if header is None:
            try:
                settings = cls.settings_of(state, modules)
            except (KeyError, IndexError, ValueError, ZeroDivisionError):
                raise UserError(f"{path} does not hold the weights of {cls.__name__} ({_describe(state)})") from None
        elif header["network"] != cls.__name__:
            raise UserError(f"{path} holds the weights of {header['network']}, not of {cls.__name__}")
        else:
            settings = {**cls.earlier, **header["settings"]}
        check_settings(cls, settings, path, len(state))

        # on the meta device the network takes no memory until the file's own tensors are put into it
        try:
            with torch.device("meta"):
                network = cls(**{**(defaults or {}), **settings, **keywords})
        except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            reason = first_line(error)
            raise UserError(f"no {cls.__name__} can be built from the settings in {path}: {reason}") from None

        # a network for inference; a training builds its own and takes only the weights (init_from)
        fill(network, state, path)
        network.notes = {key: value for key, value in (header or {}).items() if key not in ("network", "settings")}
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path, state: dict | None = None, **notes) -> None:
        """Write the weights with the settings that rebuild the network.

        state: tensors of the same names to write instead, such as an average. notes: further entries of the header,
        beside those in `self.notes`.
        """
        header = {"network": type(self).__name__, "settings": self.settings, **self.notes, **notes}
        # a copy of each, because safetensors refuses tensors that share memory or are not contiguous
        tensors = {}
        for name, tensor in (state or self.state_dict()).items():
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        with replacing(path) as temporary, disk_errors():
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})


def fit(network: nn.Module, state: dict, path: str | Path) -> None:
    """Raise UserError unless a file's tensors are a network's by name, shape and type, and finite."""
    # names and shapes: the first difference and the number of them tell one architecture from another
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        first = wrong[0]
        raise UserError(
            f"{path} holds weights of another architecture: {first} is {found.get(first, 'absent')}, "
            f"expected {expected.get(first, 'absent')} ({len(wrong)} such entries)"
        )

    # numbers that a network cannot have, or that only a diverged training leaves
    for name, tensor in network.state_dict().items():
        is_float = state[name].dtype in FLOATS
        if is_float != tensor.is_floating_point():
            raise UserError(
                f"{path} holds {str(state[name].dtype).removeprefix('torch.')} numbers in {name}, expected "
                f"{'floating-point' if tensor.is_floating_point() else 'whole'} numbers"
            )
        if is_float and state[name].numel() > 0:
            # of tensors with NaN both are NaN; unlike torch.isfinite it takes no further memory
            least, largest = torch.aminmax(state[name].detach())
            if not (math.isfinite(least) and math.isfinite(largest)):
                raise UserError(
                    f"{path} holds numbers that are not finite, in {name}: its training diverged; take an "
                    "earlier file, or train again with a lower learning rate"
                )


def fill(network: nn.Module, state: dict, path: str | Path) -> None:
    """Put a file's tensors into a network that was built on the meta device. Raises UserError as `fit`."""
    fit(network, state, path)
    # assign: the file's tensors become the network's, since those on the meta device have no memory to copy to
    network.load_state_dict({name: _own(tensor) for name, tensor in state.items()}, assign=True)

    # In a file two names may share one tensor's memory. In the network a change of one would then change the other.
    memory = [tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()]
    if len(set(memory)) < len(memory):
        network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)


def init_from(network: AnyNetwork, path: str | None) -> AnyNetwork:
    """Give a fresh network the weights of a file, from which its training starts; None leaves it as it is.

    Returns the network. Raises UserError if the file is missing or damaged, or its weights do not fit.
    """
    if path is not None:
        state, *_ = read_weights(path)
        fit(network, state, path)  # load_state_dict would take weights that are not finite
        network.load_state_dict(state)
    return network


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a network holds it: contiguous, floats as float32. Copied only if it must be, as files may have
    gigabytes.
    """
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()
    tensor = tensor.contiguous()
    is_view = tensor.untyped_storage().nbytes() > tensor.nbytes  # it would keep the whole storage in memory
    return tensor.clone() if is_view else tensor


def check_settings(network: type[nn.Module], settings: dict, path: str | Path, tensors: int) -> None:
    """Raise UserError unless settings from a file are keywords of a network's constructor, of their defaults' types.

    Counts and sizes are bounded, so that a damaged or hostile header cannot make the network take hours to build:
    those that the network names in `repeats` by the number of tensors in the file.
    """
    parameters = inspect.signature(network).parameters
    for name, value in settings.items():
        if name not in parameters:
            raise UserError(
                f"{path} sets {name}, which {network.__name__} does not have in this version of the "
                "project; use a newer one"
            )
        # The default tells the type. A bool is an int in Python: it is asked for first, and taken for no number.
        default = parameters[name].default
        most = tensors if name in getattr(network, "repeats", ()) else LARGEST_SIZE
        if isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = _is_count(value, most)
        elif isinstance(default, float):
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_SIZE
        elif isinstance(default, tuple):
            fits = (
                isinstance(value, (list, tuple))
                and len(value) <= LONGEST_LIST
                and all(_is_count(item, most) for item in value)
            )
        else:
            fits = isinstance(value, type(default))
        if not fits:
            raise UserError(
                f"{path} sets {name}={str(value)[:50]}, which no {network.__name__} has; the file is damaged"
            )


def _is_count(value, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def tensor_digest(network: nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over a network's tensors: names, shapes and float32 values.

    Unlike `digest` it is of the weights, not of their file, so a released .pth and its conversion have the same, and a
    new header changes nothing. Take it before weights are cast to bf16 (compiling.prepare_for_inference).
    """
    content = hashlib.sha256()
    # sorted, since the order of tensors in a file is no property of the weights
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        content.update(f"{name} {tuple(values.shape)}\n".encode())
        content.update(values.numpy().tobytes())
    return content.hexdigest()[:16]


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _describe(state: dict) -> str:
    """Tensors in a few words, for messages."""
    if not state:
        return "no tensors"
    first = next(iter(state))
    return f"{len(state)} tensors, the first {first} {tuple(state[first].shape)}"
