"""The content of weights files: safetensors with this project's header, and the released checkpoints (pickled modules).

Nothing that a file contains is ever executed.
"""

import json
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .files import UserError

# Modules whose classes a released checkpoint may name. They are never imported; inert stand-ins take the classes'
# places.
RELEASED = re.compile(r"(modules|generative\.networks|monai\.networks|torch\.nn\.modules|__main__)\.[\w.]+")

# torch.save does not compress, so a file unpacks to its own size. Somebody may have compressed it, but weights are
# noise, which no compression makes this much smaller.
LARGEST_EXPANSION = 4
FREE_EXPANSION = 1 << 24  # bytes: small files may be mostly zeros
# What the libraries raise for a damaged file.
READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile)


def require(*paths: str | Path) -> None:
    """Raise UserError if one of these weights files does not exist."""
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(
                f"no weights at {path}; train them first, name the file (vqgan.weights=, ldm.weights=, "
                "lcm.weights=), or take the shipped ones with --profile small"
            )


def read_weights(path: str | Path) -> tuple[dict, dict | None, dict]:
    """The content of a weights file, whatever its form: (name -> tensor, header or None, module name -> attributes).

    Only files of this project have a header, only pickled modules have attributes. Raises UserError for a missing or
    damaged file and for one that asks for code.
    """
    require(path)
    path = Path(path)
    try:
        # safetensors holds no code, and its library checks the tensors' places against the file's size
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                header = (file.metadata() or {}).get("header")
                state = {name: file.get_tensor(name) for name in file.keys()}
            return state, (_parse_header(header, path) if header else None), {}

        # everything else must be a file of torch.save
        state, modules = _read_pickled(path)
        check_tensors(state, path)
        return state, None, modules
    except UserError:
        raise
    except (*READ_ERRORS, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a weights file or is damaged: {first_line(error)}") from None


def _parse_header(text: str, path: Path) -> dict:
    """The header of a file of this project; UserError if it lacks what every header has."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header of {path} is damaged: {first_line(error)}") from None

    # what `Network.load` reads; `check_settings` looks at the settings themselves
    has_all = (
        isinstance(header, dict) and isinstance(header.get("network"), str) and isinstance(header.get("settings"), dict)
    )
    if not has_all:
        raise UserError(
            f"the header of {path} does not say which network it holds and its settings; the file is "
            "damaged or not of this project"
        )
    return header


def refuse_bomb(path: str | Path) -> None:
    """Raise UserError if a zip archive, by its directory, unpacks to far more than its size. Unpacks nothing."""
    with zipfile.ZipFile(path) as archive:
        # sizes as the archive's directory gives them
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = Path(path).stat().st_size
    if unpacked > LARGEST_EXPANSION * packed + FREE_EXPANSION:
        raise UserError(
            f"{path} has {packed} bytes, but would unpack to {unpacked}; no checkpoint does, so it was not opened"
        )


def check_tensors(state: dict, path: str | Path) -> None:
    """Raise UserError unless a file's content is {name: ordinary tensor}, together not much larger than the file.

    Strides of zero can make a tensor of gigabytes from one number.
    """
    # dense and with numbers of its own, so neither sparse nor on the meta device
    for name, tensor in state.items():
        ordinary = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (isinstance(name, str) and ordinary):
            raise UserError(f"{path} holds neither a module nor a state_dict")

    # by shape, not by storage: this is what a contiguous copy would take
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    packed = Path(path).stat().st_size
    if size > LARGEST_EXPANSION * packed + FREE_EXPANSION:
        raise UserError(f"{path} has {packed} bytes, but its tensors {size}; no checkpoint's do")


class _StandIn:
    """Stands in for a class that a released checkpoint names: it holds the attributes and does nothing."""

    # pickle calls the class, and then hands over the attributes
    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.__dict__.update(state)


def _read_pickled(path: Path) -> tuple[dict, dict]:
    """(name -> tensor, module name -> attributes) of a whole pickled module or a state_dict, by PyTorch's restricted
    unpickler.

    The classes of the published code are replaced by inert stand-ins; a file that names anything else is refused
    unread.
    """
    # which classes and functions the file asks for
    # An archive's list of names can be read without running anything; older files are one bare pickle.
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint of torch.save (torch 1.6 or later), or it is cut short")
    refuse_bomb(path)
    names = get_unsafe_globals_in_checkpoint(path)
    foreign = [name for name in names if not RELEASED.fullmatch(name)]
    if foreign:
        raise UserError(f"{path} asks for {foreign[0]}, which no weights file needs; it was not opened")

    # one class for each name, so that the module's class stays known for `settings_of`
    stand_ins = []
    for name in names:
        class_name = name.rsplit(".", 1)[1]
        stand_ins.append((type(class_name, (_StandIn,), {}), name))
    with safe_globals(stand_ins):
        content = torch.load(path, map_location="cpu", weights_only=True)

    # a whole module
    if isinstance(content, _StandIn):
        state: dict = {}
        modules: dict = {}
        _collect(content, "", state, modules)
        return state, modules

    # a state_dict, perhaps in a larger checkpoint, perhaps of a module in DataParallel
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds neither a module nor a state_dict")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}, {}


def _collect(module: _StandIn, prefix: str, state: dict, modules: dict) -> None:
    """Fill `state` and `modules` from a pickled nn.Module, as nn.Module.state_dict() would. prefix: of its tensors'
    names.
    """
    # nn.Module keeps its tensors and children in three tables; a loop of children ends in a RecursionError
    attributes = vars(module)
    modules[prefix.removesuffix(".")] = {"class": type(module).__name__, **attributes}
    # buffers that are computed anew and never saved
    transient = attributes.get("_non_persistent_buffers_set") or set()
    for table in ("_parameters", "_buffers"):
        for name, tensor in (attributes.get(table) or {}).items():
            if tensor is not None and name not in transient:
                state[prefix + name] = tensor
    for name, child in (attributes.get("_modules") or {}).items():
        if isinstance(child, _StandIn):
            _collect(child, f"{prefix}{name}.", state, modules)


@contextmanager
def disk_errors():
    """Raise what the libraries raise when a file cannot be written as the OSError that it is."""
    try:
        yield
    except (RuntimeError, safetensors.SafetensorError) as error:
        # torch.save raises its own error while it handles the OSError
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        # safetensors only mentions the error's number
        number = re.search(r"os error (\d+)", str(error))
        if cause is None and number:
            cause = OSError(int(number[1]), os.strerror(int(number[1])))
        if cause is None:
            cause = OSError(first_line(error))
        raise cause from error


def first_line(error: BaseException) -> str:
    """An error's message without its further lines, for messages of one line."""
    # some errors have no message, and some have pages
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
