"""Network weights (safetensors), training states (.pt) and the released checkpoints (pickled modules): written and
read.

Nothing that a file contains is ever executed. Every file is written beside its final place and then moved there.
"""

import hashlib
import inspect
import json
import math
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .files import UserError, replacing

# Modules whose classes a released checkpoint may name. They are never imported; inert stand-ins take the classes'
# places.
RELEASED = re.compile(r"(modules|generative\.networks|monai\.networks|torch\.nn\.modules|__main__)\.[\w.]+")

# torch.save does not compress, so a file unpacks to its own size. Somebody may have compressed it, but weights are
# noise, which no compression makes this much smaller.
LARGEST_EXPANSION = 4
FREE_EXPANSION = 1 << 24  # bytes: small files may be mostly zeros

# Counts and sizes in a header beyond any network's; they only guard against building what its tensors cannot fit.
LARGEST_SIZE = 1 << 20  # largest absolute value of any number in the settings
LONGEST_LIST = 32  # entries

# types that a file's numbers may have; in a network they are float32
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What the libraries raise for a damaged file.
READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile)

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
            reason = _first_line(error)
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
        raise UserError(f"{path} is not a weights file or is damaged: {_first_line(error)}") from None


def _parse_header(text: str, path: Path) -> dict:
    """The header of a file of this project; UserError if it lacks what every header has."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header of {path} is damaged: {_first_line(error)}") from None

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


def save_state(folder: str | Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write <folder>/state_<step>.pt and remove old states. Returns its path.

    The newest `keep` states stay. States of later steps are removed too: they were damaged when this run began, or it
    would have gone on from them.
    """
    folder = Path(folder)
    # digits enough that sorting by name is sorting by step
    path = folder / f"state_{step:08d}.pt"
    with replacing(path) as temporary, disk_errors(), open(temporary, "wb") as file:
        torch.save(state, file)

    # old states go only when the new one is whole
    states = sorted(folder.glob("state_*.pt"))
    kept = [other for other in states if other <= path][-keep:]
    for other in states:
        if other not in kept:
            other.unlink()
    return path


def newest_state(folder: str | Path, warn=print) -> tuple[dict, Path] | None:
    """The newest undamaged training state of a folder and its path, or None if there is no state at all.

    A damaged file is reported through `warn` and the one before it is taken. Raises UserError if all are damaged: a
    training never starts afresh without saying so. Raises it too for an undamaged file that holds something else.
    """
    paths = sorted(Path(folder).glob("state_*.pt"), reverse=True)
    for path in paths:
        try:
            refuse_bomb(path)
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # every entry against its checksum
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
            foreign = get_unsafe_globals_in_checkpoint(path)
            if foreign:
                raise UserError(
                    f"{path} asks for {foreign[0]}, which no training state needs; it was not opened, remove it"
                )
            # on the CPU: `Trainer.load` copies to where the networks are
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(f"{path} is not a training state of this project; remove it") from None
        except READ_ERRORS as error:
            warn(f"passing over {path}, which is damaged: {_first_line(error)}")
            continue
        if not isinstance(state, dict):
            raise UserError(f"{path} is not a training state, but holds one {type(state).__name__}; remove it")
        return state, path
    # starting afresh here would overwrite what is left of a long training
    if paths:
        raise UserError(f"no training state in {folder} is whole; remove {folder} to start afresh")
    return None


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
            cause = OSError(_first_line(error))
        raise cause from error


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


def _first_line(error: BaseException) -> str:
    """An error's message without its further lines, for messages of one line."""
    # some errors have no message, and some have pages
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
