"""config.yaml, a profile and key=value from the command line -> frozen, checked settings (models/schema.py).

Scripts call `parse` before they import anything heavy, so that --help and a mistyped key are answered at once.
Therefore this module and the schema import neither torch nor NumPy.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .runtime.entry import RANK, limit_threads
from .runtime.files import UserError
from .schema import (
    COMPARISON_METHODS,
    KEYS,
    SECTIONS,
    AnyTraining,
    Augment,
    BsldmSampling,
    ComparisonMethod,
    Course,
    Data,
    Discriminator,
    Eval,
    GllcmFusion,
    GllcmSampling,
    ImageAugmentation,
    Lcm,
    Ldm,
    List,
    Metrics,
    Settings,
    Simulate,
    Study,
    Train,
    Unet,
    Vqgan,
    VqganLoss,
    VqganNetwork,
)
from .settings_file import BASE_PROFILE, as_typed, flatten, for_message, load, read_meanings, refuse_unknown

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Scripts take the schema's classes from here: config.Settings, config.Course.
__all__ = (
    "COMPARISON_METHODS",
    "KEYS",
    "SECTIONS",
    "AnyTraining",
    "Augment",
    "BsldmSampling",
    "ComparisonMethod",
    "Course",
    "Data",
    "Discriminator",
    "Eval",
    "GllcmFusion",
    "GllcmSampling",
    "ImageAugmentation",
    "Lcm",
    "Ldm",
    "Metrics",
    "Settings",
    "Simulate",
    "Study",
    "Train",
    "Unet",
    "Vqgan",
    "VqganLoss",
    "VqganNetwork",
    "check_autoencoder_size",
    "check_image_size",
    "flatten",
    "keys",
    "parse",
    "parse_variants",
    "part",
    "to_yaml",
    "values",
)

ROOT = Path(__file__).resolve().parent.parent  # the folder of the scripts
READ_BY_ALL = ("threads",)  # what `parse` itself puts into force
NAME_IN_BRACES = re.compile(r"\{([a-z_.]+)\}")  # stands for another setting's value
WORDING = {  # what is wrong with a value, by the type of pydantic's error
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
    "less_than": "should be less than {lt}",
    "literal_error": "should be {expected}",
    "too_short": "should be a list of at least {min_length}",  # the braces are filled from pydantic's context
    "too_long": "should be a list of at most {max_length}",
}


# --- The command line ------------------------------------------------------------------------------------------------


def parse(description: str, reads: Sequence[str], argv: list[str] | None = None) -> Settings:
    """The settings of a run, from its command line.

    description: the script's docstring, shown by --help.
    reads: the dotted paths (keys or whole sections) that the script reads; --help lists them.
    argv: the command line, by default the process's own.
    Raises UserError for an unknown key or profile, a value out of its bounds, or a settings file that cannot be read.
    """
    command_line = _read_command_line(description, reads, argv)
    # The command line outranks the file. Threads are limited before anything imports torch, which reads the limit then.
    settings = _build({**command_line.file, **command_line.changes}, command_line.script)
    limit_threads(settings.threads)
    return settings


def parse_variants(
    description: str,
    reads: Sequence[str],
    argv: list[str] | None = None,
    asked_for: Callable[[Settings], dict[str, Any]] | None = None,
) -> dict[str, Settings]:
    """As `parse`, but a list given to a key that takes one value means each of its values in turn.

    asked_for: settings -> {dotted key: value} that the files named in them ask for, such as a student's weights; they
    outrank the settings file, and the command line outranks them.
    Returns {what differs, such as "steps=4": settings}; several such keys give all combinations, none {"": settings}.
    """
    command_line = _read_command_line(description, reads, argv)
    # A list for a key that has several values anyway, such as milestones, is one value.
    changes = command_line.changes
    varied = [key for key, value in changes.items() if isinstance(value, list) and value and not _takes_list(key)]
    if "threads" in varied:
        raise UserError("threads takes one value, since all variants run in the same process")
    for key in varied:
        if len(set(changes[key])) < len(changes[key]):
            raise UserError(f"{key}={for_message(changes[key])} names a value twice; each makes a variant of its own")
    # One Settings for every combination, built and checked before the first one runs.
    variants = {}
    for combination in itertools.product(*(changes[key] for key in varied)):
        variation = dict(zip(varied, combination))
        # Only the last part of each key: it becomes part of names of folders and columns.
        name = " ".join(f"{key.rsplit('.', 1)[-1]}={as_typed(value)}" for key, value in variation.items())
        variants[name] = _build({**command_line.file, **changes, **variation}, command_line.script)
        asked = asked_for(variants[name]) if asked_for else {}
        if asked:
            variants[name] = _build({**command_line.file, **asked, **changes, **variation}, command_line.script)
        limit_threads(variants[name].threads)
    return variants


@dataclasses.dataclass(frozen=True)
class _CommandLine:
    """What was typed: values by dotted key, as the settings file with its profile and as key=value has them."""

    script: str
    file: dict[str, Any]  # dotted key -> value, names in braces not yet replaced
    changes: dict[str, Any]  # texts, lists of texts or None, by dotted key


class _Parser(argparse.ArgumentParser):
    # argparse would print its usage and exit with 2; here all faults are reported in one way.
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{for_message(message)} (see --help)")


def _read_command_line(description: str, reads: Sequence[str], argv: list[str] | None) -> _CommandLine:
    """--help ends the process here; a key that the script does not read is accepted with a note."""
    # --help is an ordinary flag here: it has to show the profile's values, which are known only after parsing.
    parser = _Parser(
        description=description,
        add_help=False,
        allow_abbrev=False,
        usage="python %(prog)s [--config FILE] [--profile NAME] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument(
        "--config", default=str(ROOT / "config.yaml"), metavar="FILE", help="settings file (config.yaml)"
    )
    parser.add_argument(
        "--profile", default=BASE_PROFILE, metavar="NAME", help=f"profile of the settings file ({BASE_PROFILE})"
    )
    parser.add_argument(
        "changes", nargs="*", metavar="key=value", help="settings to change, for example lcm.batch_size=8"
    )
    options = parser.parse_intermixed_args(argv)  # key=value before and after --profile

    # the settings file, and the command line over it
    values = load(options.config, options.profile)
    changes = {}
    for text in options.changes:
        key, value = _read_change(text, reads)
        changes[key] = value
    refuse_unknown(changes, "the command line")

    # notes and help
    typed = {**values, **changes}
    # A known key that the script does not read changes nothing, so it is a note and no error.
    keys_read = list_read([*READ_BY_ALL, *reads], typed)
    for key in changes:
        if key not in keys_read and RANK == 0:
            print(f"note: {parser.prog} does not read {key}", file=sys.stderr)
    # Only now, so that --help shows the values of this profile and of this command line.
    if options.help:
        shown = {key: value for key, value in typed.items() if key in keys_read}
        print(parser.format_help())
        print(_describe(shown, options.config))
        raise SystemExit(0)
    return _CommandLine(Path(parser.prog).stem, values, changes)


def list_read(paths: Iterable[str], values: Mapping[str, Any]) -> list[str]:
    """The keys below these dotted paths, and those whose names in braces stand in the values of such keys."""
    # A setting that is named in another's value is read along with it.
    keys_read = [key for key in values if _is_below(key, paths)]
    for key in keys_read:  # grows on the way
        for name in NAME_IN_BRACES.findall(str(values[key])):
            referred = name if name in values else name.removesuffix(".name")
            if referred in values and referred not in keys_read:
                keys_read.append(referred)
    return keys_read


def _read_change(text: str, reads: Sequence[str]) -> tuple[str, Any]:
    """'lcm.steps=4' -> ('lcm.steps', '4'); a list in brackets becomes a list of texts, and null becomes None.

    Values stay texts, which the type of each setting reads; YAML would make 7 of a folder named 007.
    """
    # A bare path is the likeliest slip with scripts that read an image, and gets a hint of its own.
    key, equals, value = text.partition("=")
    shown = for_message(text)
    if not equals or not key:
        if _is_below("eval.input", reads):
            raise UserError(f"'{shown}' is not key=value; an image or a folder is given as eval.input={shown}")
        raise UserError(f"'{shown}' is not key=value (for example lcm.batch_size=8)")
    if not value:
        raise UserError(f"{shown} has no value (where a setting can do without one: {for_message(key)}=null)")
    # A list: the items as CSV has them, so that quotes protect a comma in a file name.
    if not (value.startswith("[") and value.endswith("]")):
        return key, _none_or_text(value)
    try:
        rows = list(csv.reader([value[1:-1]], skipinitialspace=True))  # "a,b" in quotes is one item
    except csv.Error as error:
        raise UserError(f"{shown} is not a list: {error}") from None
    return key, [_none_or_text(item.strip()) for item in itertools.chain(*rows)]


def _none_or_text(text: str) -> str | None:
    return None if text == "null" else text


def _takes_list(key: str) -> bool:
    """Whether a setting has several values."""
    return List in getattr(KEYS[key], "__metadata__", ())


def _describe(values: Mapping[str, Any], config: str) -> str:
    """What --help says of some settings, and of the profiles of a settings file."""
    # --help has no text of its own: it shows the comments of the settings file, profiles' too.
    meanings = read_meanings(Path(config).read_text(encoding="utf-8"))
    lines = ["settings that this script reads (value in this profile, meaning):"]
    for key, value in values.items():
        lines.append(f"  {key}={for_message(value)}  {meanings.get(key, '')}".rstrip())
    profiles = [path for path in meanings if re.fullmatch(r"profiles\.[^.]+", path)]
    if profiles:
        lines += ["", "profiles (--profile NAME):"]
    for path in profiles:
        lines.append(f"  {path.removeprefix('profiles.')}  {meanings[path]}".rstrip())
    return "\n".join(lines)


# --- From values to settings -----------------------------------------------------------------------------------------


def _build(values: Mapping[str, Any], script: str) -> Settings:
    """The settings of {dotted key: value}, or UserError for the first value that its type does not take."""
    # Dotted keys become nested dictionaries again, as pydantic builds dataclasses from them.
    values = _interpolate(values, script)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        level = tree
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = value
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise UserError(_explain(error, values)) from None


def _interpolate(values: Mapping[str, Any], script: str) -> dict[str, Any]:
    """The values with each {name} in a text replaced by that setting's value.

    {script} is the running script's name, {project} its folder, {data.root.name} the last part of a path. On a command
    line ${...} would be the shell's.
    """

    def expand(value: Any, within: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [expand(item, within) for item in value]
        if isinstance(value, str):
            return NAME_IN_BRACES.sub(lambda match: look_up(match[1], within), value)
        return value

    def look_up(name: str, within: tuple[str, ...]) -> str:
        """within: the settings that are being expanded."""
        # Two names that are no settings; then settings, expanded in their turn; then the last part of a setting that is
        # a path.
        path = name.removesuffix(".name")
        if name == "script":
            return script
        if name == "project":
            return str(ROOT)
        # Without this a circle of names would recurse until Python stops it.
        if name in within:
            raise UserError(f"the setting {name} refers to itself")
        if name in values:
            return as_typed(expand(values[name], (*within, name)))
        if path in values:
            return Path(look_up(path, within)).expanduser().resolve().name
        raise UserError(f"{{{name}}} names no setting")

    return {key: expand(value, (key,)) for key, value in values.items()}


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first thing that pydantic found, in one line, such as 'lcm.steps=0 should be at least 1'."""
    # One fault at a time; each is one line that says what to type instead.
    found = error.errors()[0]
    key = ".".join(name for name in found["loc"] if isinstance(name, str))  # numbers count the items of a list
    if found["type"] == "missing":
        return f"the setting {key} is missing from the settings file"
    # pydantic's context fills in the bounds, such as {ge}.
    wording = WORDING.get(found["type"], found["msg"])
    bounds = {name: _show_bound(bound) for name, bound in found.get("ctx", {}).items()}
    return f"{key}={for_message(values[key])} {wording.format(**bounds)}"


def _show_bound(bound: Any) -> str:
    """1.0 -> '1', and "'auto', True or False" -> 'auto, true or false', as they are typed."""
    # The context has Python's forms: 1.0, quotes, True.
    if isinstance(bound, (int, float)):
        return f"{bound:g}"
    return str(bound).replace("'", "").lower()


# --- What others ask of settings -------------------------------------------------------------------------------------

Keywords = typing.TypeVar("Keywords", bound="DataclassInstance")


def part(section: Any, keywords: type[Keywords]) -> Keywords:
    """The object that a section contains, such as part(settings.lcm, GllcmSampling)."""
    return keywords(**{field.name: getattr(section, field.name) for field in fields(keywords)})


def keys(section: str, keywords: "type[DataclassInstance]") -> tuple[str, ...]:
    """The dotted keys of a class in a section, for READS: keys("lcm", GllcmFusion) is ("lcm.fusion", "lcm.blend")."""
    return tuple(f"{section}.{field.name}" for field in fields(keywords))


def values(settings: Settings, reads: Sequence[str]) -> dict[str, Any]:
    """{dotted key: value} of the settings below these dotted paths."""
    return {key: value for key, value in flatten(asdict(settings)).items() if _is_below(key, reads)}


def _is_below(key: str, paths: Iterable[str]) -> bool:
    """Whether a dotted key is one of these paths or in a section among them."""
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def to_yaml(settings: Settings) -> str:
    """The resolved settings as a file that --config takes again."""
    plain = json.loads(json.dumps(asdict(settings)))  # tuples as lists, the only ones that YAML has
    return yaml.safe_dump(plain, sort_keys=False)


def check_autoencoder_size(settings: Settings) -> None:
    """Raise UserError if the autoencoder cannot halve the images, or the crops of them, as often as it has levels."""
    # Each level of the autoencoder halves the image once, so the crops have to allow it too.
    factor = 2 ** len(settings.vqgan.network.channels)
    size = settings.data.image_size
    crop = settings.vqgan.crop
    if size % factor:
        raise UserError(f"data.image_size={size} is not a multiple of {factor}, which this autoencoder needs")
    if crop % factor or crop > size:
        raise UserError(f"vqgan.crop={crop} should be a multiple of {factor} and at most data.image_size={size}")


def check_image_size(settings: Settings, factor: int) -> None:
    """Raise UserError if the U-Net cannot halve the latents of the images as often as it has levels.

    factor: side of an image over side of its latent, as the autoencoder's weights say.
    """
    # The top level of the U-Net does not halve; every other one does.
    multiple = factor * 2 ** (len(settings.unet.multipliers) - 1)
    size = settings.data.image_size
    if size % multiple:
        raise UserError(f"data.image_size={size} is not a multiple of {multiple}, which these networks need")
