"""config.yaml + profile + key=value -> frozen dataclasses. Refuses what it does not know.

A setting is one line of config.yaml (value, meaning, source) and one field here (its type). Scripts call `parse` first and
start through `run`; nothing else of the project imports this file.
"""
import argparse
import dataclasses
import difflib
import itertools
import math
import re
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from .runtime.entry import RANK
from .runtime.files import UserError, replacing

ROOT = Path(__file__).resolve().parent.parent  # the folder of the scripts


@dataclass(frozen=True)
class Data:
    root: str
    name: str
    lists: str
    image_size: int
    split: tuple[float, ...]
    seed: int
    write_masks: bool
    skip_faulty: bool
    source: str | None
    patient: str | None


@dataclass(frozen=True)
class Simulate:
    count: int
    seed: int
    source: Literal["phantom", "ct", "both"]
    ct: str | None
    lesions: bool


@dataclass(frozen=True)
class VqganNetwork:
    channels: tuple[int, ...]
    residual_channels: int
    residual_layers: int
    codes: int
    code_channels: int
    decay: float
    commitment: float
    restart: bool


@dataclass(frozen=True)
class Discriminator:
    channels: int
    layers: int


@dataclass(frozen=True)
class VqganLoss:
    pixel: Literal["mse", "l1"]
    perceptual: float
    adversarial: float
    ms_ssim: float


@dataclass(frozen=True)
class Course:
    """The settings that every training has."""
    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]
    gamma: float
    average: float
    start: str | None


@dataclass(frozen=True)
class Vqgan(Course):
    weights: str
    network: VqganNetwork
    discriminator: Discriminator
    loss: VqganLoss
    masked: bool
    crop: int
    discriminator_learning_rate: float
    unit_latent: bool


@dataclass(frozen=True)
class Unet:
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    heads: int
    attention: tuple[int, ...]
    prior: float


@dataclass(frozen=True)
class Ldm(Course):
    weights: str
    qkv_by_head: bool
    sampler: Literal["ddpm", "ddim", "dpmpp"]
    steps: int
    clip: float
    clip_rate: float
    clip_lag: int
    offset_noise: float
    epsilon: float


@dataclass(frozen=True)
class Lcm(Course):
    weights: str
    qkv_by_head: bool
    steps: int
    guidance: Literal["leg", "leg_shared", "cfg", "vanilla"]
    alpha: float
    clip_global: float
    clip_local: float
    clip_rate: float
    fusion: Literal["poisson", "alpha", "autoencoder", "none"]
    blend: float
    offset_noise: float
    epsilon: float


@dataclass(frozen=True)
class Augment:
    versions: int
    flip: bool
    rotate: float
    scale: float
    contrast: float
    gamma: float
    sharpen: float
    noise: float
    bone: float
    bone_flat: tuple[float, float]
    bone_wide: tuple[float, float]
    bone_edge: float


@dataclass(frozen=True)
class Train:
    seed: int
    workers: int
    accumulate: int
    checkpointing: bool
    validate_every: int
    sample_every: int
    save_every: float
    lesion_weight: float
    least_timestep: int
    crop: int


@dataclass(frozen=True)
class Eval:
    input: str
    output: str
    batch_size: int
    seed: int
    samples: int
    residual: bool
    strength: float
    dicom: bool
    masks: str | None
    nodules: str | None
    inserted: int


@dataclass(frozen=True)
class Metrics:
    cxr: str
    target: str
    prediction: tuple[str, ...]
    images: str | None
    findings: str | None
    masks: str | None
    output: str
    seed: int
    size: int


@dataclass(frozen=True)
class Settings:
    runs: str
    device: str
    precision: Literal["auto", "bf16", "float32"]
    compile: Literal["auto", True, False]
    features: str | None
    data: Data
    simulate: Simulate
    vqgan: Vqgan
    unet: Unet
    ldm: Ldm
    lcm: Lcm
    augment: Augment
    train: Train
    eval: Eval
    metrics: Metrics


AT_LEAST_ONE = {"image_size", "batch_size", "epochs", "steps", "codes", "code_channels", "accumulate", "validate_every",
                "sample_every", "width", "blocks", "heads", "size", "channels", "residual_channels", "multipliers", "versions", "samples", "inserted"}
AT_LEAST = {"augment.bone_wide": 0.001}
AT_MOST = {"ldm.steps": 1000, "lcm.steps": 50,  # the full walks
           "augment.rotate": 180, "augment.scale": 0.5, "augment.contrast": 0.9, "augment.bone": 1,
           "augment.bone_flat": 1, "augment.bone_wide": 0.5, "eval.strength": 1}


def parse(description: str, reads: tuple[str, ...], argv: list[str] | None = None) -> Settings:
    """The settings of a run, from its command line.

    description: the script's docstring, shown by --help. reads: the dotted paths (keys or whole sections) that the script
    reads; --help lists them. argv: the command line, by default the process's own.
    Raises UserError for an unknown key or profile, a value of the wrong kind, or a config file that cannot be read.
    """
    options, script = _command_line(description, reads, argv)
    return _settle(options, script, [*map(_pair, options.overrides)])


def parse_variants(description: str, reads: tuple[str, ...], argv: list[str] | None = None) -> dict[str, Settings]:
    """As `parse`, but a list given to a key that takes one value means each of them: {what differs, such as "steps=4": settings}.

    Several such keys give all combinations. Without any: {"": settings}.
    """
    options, script = _command_line(description, reads, argv)
    choices = []
    for key, value in map(_pair, options.overrides):
        several = isinstance(value, list) and value and not _takes_list(key)
        choices.append([(key, item, several) for item in value] if several else [(key, value, False)])
    variants = {}
    for combination in itertools.product(*choices):
        name = " ".join(f"{key.rsplit('.', 1)[-1]}={_show(value)}" for key, value, several in combination if several)
        variants[name] = _settle(options, script, [(key, value) for key, value, _ in combination])
    return variants


def _command_line(description: str, reads: tuple[str, ...], argv: list[str] | None) -> tuple[argparse.Namespace, str]:
    """(what was asked for, the script's name), after --help, and a note for each key that the script does not read."""
    parser = argparse.ArgumentParser(description=description, add_help=False, allow_abbrev=False,
                                     usage="python %(prog)s [--config FILE] [--profile NAME] [key=value ...]",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("--config", default=str(ROOT / "config.yaml"), metavar="FILE", help="settings file (config.yaml)")
    parser.add_argument("--profile", default="szch", metavar="NAME", help="profile of the settings file (szch)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, for example lcm.batch_size=8")
    options = parser.parse_intermixed_args(argv)  # key=value before and after --profile
    known = flatten(load(options.config, options.profile, options.overrides))
    for key, _ in map(_pair, options.overrides):
        if not any(key == path or key.startswith(path + ".") or path.startswith(key + ".") for path in reads):
            if not RANK:
                print(f"note: {parser.prog} does not read {key}", file=sys.stderr)
    if options.help:
        parser.print_help()
        print("\nsettings that this script reads (value in this profile, meaning):")
        meanings = _meanings(Path(options.config).read_text(encoding="utf-8"))
        for key, value in known.items():
            if any(key == path or key.startswith(path + ".") for path in reads):
                print(f"  {key}={_show(value)}  {meanings.get(key, '')}".rstrip())
        raise SystemExit(0)
    return options, Path(parser.prog).stem


def _settle(options: argparse.Namespace, script: str, changes: list[tuple[str, object]]) -> Settings:
    tree = _change(load(options.config, options.profile), changes)
    _interpolate(tree, script)
    return _build(Settings, tree, "")


def _takes_list(key: str) -> bool:
    """Whether a dotted path is a setting with several values."""
    hint = Settings
    for part in key.split("."):
        hint = typing.get_type_hints(hint)[part]
    return typing.get_origin(hint) is tuple


def load(path: str, profile: str = "szch", overrides: list[str] = ()) -> dict:
    """The nested dictionary of a settings file after a profile and key=value changes, names in braces left as they are."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the settings file {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings (expected sections such as data:, vqgan:, ldm:)")
    profiles = tree.pop("profiles", None) or {}
    if profile not in profiles and profile != "szch":
        raise UserError(f"no profile '{profile}' in {path}; it has: {', '.join(sorted(profiles))}")
    shape = _shape(Settings)
    _refuse_unknown(tree, shape, path)
    _merge(tree, profiles.get(profile) or {}, shape, f"profile {profile}")
    return _change(tree, map(_pair, overrides))


def _change(tree: dict, changes) -> dict:
    """The tree after changes (dotted path, value)."""
    for key, value in changes:
        change: dict = {}
        level = change
        *sections, leaf = key.split(".")
        for section in sections:
            level = level.setdefault(section, {})
        level[leaf] = value
        _merge(tree, change, _shape(Settings), "the command line")
    return tree


def flatten(tree: dict, prefix: str = "") -> dict:
    """{'data': {'root': 'x'}} -> {'data.root': 'x'}."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def to_yaml(settings: Settings) -> str:
    """The resolved settings as a file that --config takes again."""
    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)


def check_image_size(settings: Settings) -> None:
    """Raise UserError where the networks of these settings cannot halve the images as often as they do."""
    least = 2 ** (len(settings.vqgan.network.channels) + len(settings.unet.multipliers) - 1)
    if settings.data.image_size % least:
        raise UserError(f"data.image_size={settings.data.image_size} is not a multiple of {least}, which these networks need")
    crop, halvings = settings.vqgan.crop, 2 ** len(settings.vqgan.network.channels)
    if crop % halvings or crop > settings.data.image_size:
        raise UserError(f"vqgan.crop={crop} should be a multiple of {halvings} and at most data.image_size={settings.data.image_size}")


def keep(settings: Settings, folder: str | Path) -> None:
    """Write the resolved settings to <folder>/config.yaml, once however many processes there are."""
    if RANK:
        return
    with replacing(Path(folder) / "config.yaml") as temporary:
        temporary.write_text(to_yaml(settings), encoding="utf-8")


def _pair(text: str) -> tuple[str, object]:
    """'lcm.steps=4' -> ('lcm.steps', 4)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"'{text}' is not key=value (for example lcm.batch_size=8)")
    try:
        return key, value if value.startswith("{") else yaml.safe_load(value)  # a name in braces, not a YAML mapping
    except yaml.YAMLError:
        return key, value


def _shape(kind: type) -> dict:
    """The keys that a settings class knows, nested."""
    hints = typing.get_type_hints(kind)
    return {f.name: _shape(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else None for f in dataclasses.fields(kind)}


def _refuse_unknown(tree: dict, shape: dict, where: str, prefix: str = "") -> None:
    for key, value in tree.items():
        if key not in shape:
            known = flatten({k: (v or 0) for k, v in shape.items()}) if shape else {}
            near = difflib.get_close_matches(str(key), list(shape) + list(known), 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; {prefix[:-1] or 'the top level'} has: {', '.join(shape)}"
            raise UserError(f"unknown setting {prefix}{key} in {where}{hint}")
        if isinstance(shape[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key} in {where} is a section, not a value; it has: {', '.join(shape[key])}")
            _refuse_unknown(value, shape[key], where, f"{prefix}{key}.")


def _merge(tree: dict, change: dict, shape: dict, where: str) -> None:
    _refuse_unknown(change, shape, where)

    def merge(base: dict, update: dict, shape: dict) -> None:
        for key, value in update.items():
            if shape[key] is not None:
                merge(base.setdefault(key, {}), value, shape[key])
            else:
                base[key] = value

    merge(tree, change, shape)


def _interpolate(tree: dict, script: str) -> None:
    """Replace {names} in all texts, in place."""

    def lookup(name: str, seen: tuple) -> str:
        if name == "script":
            return script
        if name == "project":
            return str(ROOT)
        if name in seen:
            raise UserError(f"the setting {name} refers to itself")
        if name.endswith(".name") and name[:-5] in flat:
            return Path(lookup(name[:-5], seen)).resolve().name
        if name not in flat:
            raise UserError(f"{{{name}}} names no setting")
        return expand(str(flat[name]), (*seen, name))

    def expand(text: str, seen: tuple) -> str:
        return re.sub(r"\{([a-z_.]+)\}", lambda match: lookup(match.group(1), seen), text)

    def walk(level: dict, prefix: str) -> None:
        for key, value in level.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, str):
                level[key] = expand(value, (prefix + key,))

    flat = flatten(tree)
    walk(tree, "")


def _build(kind: type, tree: dict, prefix: str):
    values = {}
    for name, hint in typing.get_type_hints(kind).items():
        path = prefix + name
        if name not in tree:
            raise UserError(f"the setting {path} is missing from the settings file")
        values[name] = _build(hint, tree[name], path + ".") if dataclasses.is_dataclass(hint) else _convert(tree[name], hint, path)
    return kind(**values)


def _convert(value, hint, path: str):
    """A YAML value as the type of its field, or UserError. YAML 1.1 reads 1e-4 as text; here it is a number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _convert(value, arguments[0], path)
    if origin is Literal:
        if not any(value is known or value == known and isinstance(value, str) for known in arguments):  # 1 is not true
            raise UserError(f"{path}={_show(value)} is not one of: {', '.join(map(_show, arguments))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        if arguments[-1] is not ... and len(items) != len(arguments):
            raise UserError(f"{path}={_show(value)} is not a list of {len(arguments)} numbers")
        return tuple(_convert(item, arguments[0], path) for item in items)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and value is not None and not isinstance(value, (list, dict, bool)):
        return str(value)
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        least = AT_LEAST.get(path, int(path.rsplit(".", 1)[-1] in AT_LEAST_ONE))
        most = AT_MOST.get(path, math.inf)
        if math.isfinite(number) and least <= number <= most and (hint is float or number == int(number)):
            return hint(number)
        raise UserError(f"{path}={_show(value)} is not a {'whole ' if hint is int else ''}number of at least {least}"
                        + (f" and at most {most}" if path in AT_MOST else ""))
    expected = {bool: "true or false", str: "a text"}.get(hint, hint)
    raise UserError(f"{path}={_show(value)} is not {expected}")


def _meanings(text: str) -> dict[str, str]:
    """The comment behind each key of a settings file, by dotted path."""
    meanings, sections = {}, []
    for line in text.splitlines():
        match = re.match(r"^( *)([a-z_]+):(.*?)(?:\s#\s*(.*))?$", line)
        if match:
            depth = len(match.group(1)) // 2
            sections = sections[:depth] + [match.group(2)]
            meanings[".".join(sections)] = match.group(4) or ""
    return meanings


def _show(value) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value):
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
