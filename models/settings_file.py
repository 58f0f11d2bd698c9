"""config.yaml with one of its profiles -> {dotted key: value}, and values as they are typed there.

Keys that are no settings are refused here; types and bounds are checked where `config` builds the settings. Like
`config`, this module imports neither torch nor NumPy.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from .runtime.files import UserError
from .schema import KEYS, SECTIONS, Settings

BASE_PROFILE = "szch"  # the name of the settings file without a profile
LONGEST_SHOWN = 200  # characters of a value in a message

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml, where it is there: ten times faster


class _Loader(_SafeLoader):
    """YAML's safe loader, which also refuses a key given twice instead of taking the last value."""

    def construct_mapping(self, node, deep=False):
        # PyYAML keeps the last of two equal keys, so a section pasted twice would lose settings in silence.
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"'{for_message(key.value)}' is given a second time in line {key.start_mark.line + 1}")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | Path, profile: str = BASE_PROFILE) -> dict[str, Any]:
    """{dotted key: value} of a settings file with one of its profiles over it; names in braces stay as they are."""
    tree = _read_yaml(path)
    # The base has a name of its own, so that --profile can name it; it needs no entry in the file.
    profiles = tree.pop("profiles", None) or {}
    if not isinstance(profiles, dict):
        raise UserError(f"profiles in {path} holds no profiles, but the value {for_message(profiles)}")
    if profile not in profiles and profile != BASE_PROFILE:
        available = ", ".join(map(for_message, profiles))
        raise UserError(f"no profile '{for_message(profile)}' in {path}; it has: {available}")
    changes = profiles.get(profile) or {}
    if not isinstance(changes, dict):
        raise UserError(f"profile {profile} in {path} holds no settings, but the value {for_message(changes)}")

    # Names are checked in both, with the place where they stand. A key of the profile replaces the base's, list by
    # list.
    try:
        base = flatten(tree)
        over = flatten(changes)
    except RecursionError:
        raise UserError(f"{path} is nested too deep to be read") from None
    refuse_unknown(base, str(path))
    refuse_unknown(over, f"profile {profile}")
    return {**base, **over}


def _read_yaml(path: str | Path) -> dict:
    """The nested dictionary of a settings file, or UserError."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the settings file {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep to be read") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings (expected sections such as data:, vqgan:, ldm:)")
    return tree


def read_meanings(text: str) -> dict[str, str]:
    """The comment behind each key of a settings file, by dotted path."""
    meanings: dict[str, str] = {}
    sections: list[str] = []
    for line in text.splitlines():
        # A key, and what follows the # that has white space before it. Two blanks of indentation are one level.
        match = re.match(r"^( *)([a-z_][a-z_0-9]*):(.*?)(?:\s#\s*(.*))?$", line)
        if match:
            depth = len(match[1]) // 2
            sections = [*sections[:depth], match[2]]
            meanings[".".join(sections)] = match[4] or ""
    return meanings


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{'data': {'root': 'x'}} -> {'data.root': 'x'}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    """Raise UserError for the first dotted key that is no setting, with the nearest one that is."""
    for key in values:
        if key in KEYS:
            continue
        if key in SECTIONS:
            raise UserError(f"{key} in {where} is a section, not a value; it has: {_list_names(SECTIONS[key])}")
        # The most helpful of three hints: a similar name, else what the section has, else the sections.
        near = difflib.get_close_matches(key, [*KEYS, *SECTIONS], 1)
        section = key.rpartition(".")[0]
        if near:
            hint = f"did you mean {near[0]}?"
        elif section in SECTIONS:
            hint = f"{section} has: {_list_names(SECTIONS[section])}"
        else:
            hint = f"the top level has: {_list_names(Settings)}"
        raise UserError(f"unknown setting {for_message(key)} in {where}; {hint}")


def _list_names(section: type) -> str:
    return ", ".join(field.name for field in fields(section))


# --- Values as text --------------------------------------------------------------------------------------------------


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    # As YAML and the command line write it, not as Python does.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_typed, value))}]"
    return str(value)


def for_message(value: Any) -> str:
    """A value for a message: as it is typed, on one line, cut where it is very long."""
    # Line breaks and control characters are escaped, so that a message stays one line.
    text = as_typed(value)
    if len(text) > LONGEST_SHOWN:
        text = f"{text[:LONGEST_SHOWN]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
