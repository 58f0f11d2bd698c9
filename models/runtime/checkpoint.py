"""What is written and read: network weights (safetensors), training states (.pt), the released checkpoints (pickled modules).

Nothing that a file contains is ever executed. Every file is written beside its place and moved into it.
"""
import hashlib
import inspect
import json
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .files import UserError, replacing

# Modules whose classes a released checkpoint may name. They are never imported: inert stand-ins take their place.
RELEASED = re.compile(r"(modules|generative\.networks|monai\.networks|torch\.nn\.modules|__main__)\.[\w.]+")
READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile)


class Network(nn.Module):
    """A network that knows the keywords it was built from, so that its weights can be written and read as one file.

    A subclass says in `settings_of(state, modules)` how to tell its keywords from the tensors of a checkpoint that
    holds none (state: name -> tensor; modules: name -> attributes of the pickled module, empty for a plain state_dict).
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        build = cls.__init__

        def remember(self, *args, **keywords):
            bound = inspect.signature(build).bind(self, *args, **keywords)
            bound.apply_defaults()
            build(self, *args, **keywords)
            self.settings = {key: value for key, value in bound.arguments.items() if key != "self"}

        cls.__init__ = remember

    @classmethod
    def load(cls, path: str | Path, **keywords) -> "Network":
        """The network in a file of this project or in a released .pth; eval mode, float32, CPU.

        keywords: settings that win over what the file says; named default_<setting>, they fill in what a file without a header
        does not say (for example default_qkv_by_head).
        Raises UserError for a missing, damaged or foreign file and for weights of another architecture.
        """
        state, header, modules = read_weights(path)
        if header is None:
            try:
                settings = cls.settings_of(state, modules)
            except (KeyError, IndexError, ValueError):
                raise UserError(f"{path} does not hold the weights of {cls.__name__} ({_describe(state)})") from None
        elif header["network"] != cls.__name__:
            raise UserError(f"{path} holds the weights of {header['network']}, not of {cls.__name__}")
        else:
            settings = header["settings"]
        defaults = {key.removeprefix("default_"): value for key, value in keywords.items() if key.startswith("default_")}
        chosen = {key: value for key, value in keywords.items() if not key.startswith("default_")}
        with torch.device("meta"):
            network = cls(**{**defaults, **settings, **chosen})
        fill(network, state, path)
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path, state: dict | None = None, **notes) -> None:
        """Write the weights (or another state of the same names, such as an average) with the settings that rebuild the network."""
        header = {"network": type(self).__name__, "settings": self.settings, **notes}
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in (state or self.state_dict()).items()}
        with replacing(path) as temporary, disk_errors():
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})


def fit(network: nn.Module, state: dict, path: str | Path) -> None:
    """Raise UserError where a file's tensors are not, by name and shape, those of a network."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        first = wrong[0]
        raise UserError(f"{path} holds weights of another architecture: {first} is {found.get(first, 'absent')}, "
                        f"expected {expected.get(first, 'absent')} ({len(wrong)} such entries)")


def fill(network: nn.Module, state: dict, path: str | Path) -> None:
    """Put tensors into a network built on the meta device; every name and shape must fit."""
    fit(network, state, path)
    network.load_state_dict(dict(zip(state, map(_own, state.values()))), assign=True)
    memory = [tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()]
    if len(set(memory)) < len(memory):  # tensors of the file that share memory; the network's must not
        network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a network holds it: contiguous, floats as float32; copied only where it must be, for files of gigabytes."""
    tensor = tensor.detach()
    tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def require(*paths: str | Path) -> None:
    """Raise UserError where one of these weights files is not there."""
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"no weights at {path}; train them first, or name the file (vqgan.weights=, ldm.weights=, lcm.weights=)")


def read_weights(path: str | Path) -> tuple[dict, dict | None, dict]:
    """(name -> tensor, header or None, module name -> attributes) of a weights file, whatever its form."""
    require(path)
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                header = (file.metadata() or {}).get("header")
                state = {name: file.get_tensor(name) for name in file.keys()}
            return state, json.loads(header) if header else None, {}
        state, modules = _read_pickled(path)
        return state, None, modules
    except UserError:
        raise
    except (*READ_ERRORS, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a weights file or is damaged: {_first_line(error)}") from None


class _StandIn:
    """In place of a class that a released checkpoint names: it holds attributes and does nothing."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.__dict__.update(state)


def _read_pickled(path: Path) -> tuple[dict, dict]:
    """A whole pickled module, or a state_dict, through PyTorch's restricted unpickler.

    The classes of the published code are replaced by inert stand-ins; any other name refuses the file before it is read.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint of torch.save (torch 1.6 or later), or it is cut short")
    names = get_unsafe_globals_in_checkpoint(path)
    foreign = [name for name in names if not RELEASED.fullmatch(name)]
    if foreign:
        raise UserError(f"{path} asks for {foreign[0]}, which no weights file needs; it was not opened")
    stand_ins = {name: type(name.rsplit(".", 1)[1], (_StandIn,), {}) for name in names}
    with safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, _StandIn):
        state, modules = {}, {}
        _collect(content, "", state, modules)
        return state, modules
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds neither a module nor a state_dict")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}, {}


def _collect(module: _StandIn, prefix: str, state: dict, modules: dict) -> None:
    """Walk a pickled nn.Module as nn.Module.state_dict() would."""
    attributes = vars(module)
    modules[prefix[:-1]] = {"class": type(module).__name__, **attributes}
    transient = attributes.get("_non_persistent_buffers_set") or set()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (attributes.get(kind) or {}).items():
            if tensor is not None and name not in transient:
                state[prefix + name] = tensor
    for name, child in (attributes.get("_modules") or {}).items():
        if isinstance(child, _StandIn):
            _collect(child, f"{prefix}{name}.", state, modules)


def save_state(folder: str | Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write state_<step>.pt, then remove all but the newest `keep` states, and later ones: those were damaged when this run began."""
    folder = Path(folder)
    path = folder / f"state_{step:08d}.pt"
    with replacing(path) as temporary, disk_errors(), open(temporary, "wb") as file:
        torch.save(state, file)
    states = sorted(folder.glob("state_*.pt"))
    kept = [state for state in states if state <= path][-keep:]
    for old in states:
        if old not in kept:
            old.unlink()
    return path


def newest_state(folder: str | Path, warn=print) -> tuple[dict, Path] | None:
    """The newest whole training state of a folder and its file, or None where there is no state at all.

    A damaged file is named through `warn` and passed over for the one before it. Raises UserError when all are damaged:
    a training never starts afresh without saying so.
    """
    paths = sorted(Path(folder).glob("state_*.pt"), reverse=True)
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # every entry against its checksum
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
            return torch.load(path, map_location="cpu", weights_only=True), path
        except pickle.UnpicklingError:
            raise UserError(f"{path} is not a training state of this project: it holds more than tensors and plain values, and was not "
                            "opened; move it away") from None
        except READ_ERRORS as error:
            warn(f"passing over {path}, which is damaged: {_first_line(error)}")
    if paths:
        raise UserError(f"no training state in {folder} is whole; remove {folder} to start afresh")
    return None


@contextmanager
def disk_errors():
    """What the libraries raise when a file cannot be written, as the OSError that it is."""
    try:
        yield
    except (RuntimeError, safetensors.SafetensorError) as error:
        cause = error
        while cause is not None and not isinstance(cause, OSError):  # torch.save raises its own error over it
            cause = cause.__context__
        number = re.search(r"os error (\d+)", str(error))  # what safetensors says
        if cause is None and number:
            cause = OSError(int(number[1]), os.strerror(int(number[1])))
        raise (cause or OSError(_first_line(error))) from error


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content, 16 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _describe(state: dict) -> str:
    first = next(iter(state), None)
    return f"{len(state)} tensors, the first {first} {tuple(state[first].shape)}" if first else "no tensors"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
