"""Which weights a run uses: those of its run folder's own trainings, else those that the settings name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from . import config

SHIPPED = config.ROOT / "weights"  # profile `small` names the files in it
STUDENT_KEYS = ("sampler", "steps", "guidance", "condition")  # settings that a student's header may ask for
FILE = "weights.safetensors"  # what a training leaves for evaluation


def prefer_own(settings: config.Settings, section: str) -> config.Settings:
    """The settings with the weights that <runs>/<section>/ holds, if there are any and the settings name shipped ones.

    section: "ldm", "lcm" or "vqgan". Weights that a person has named stay. A noise estimator that was trained here gets
    the autoencoder that it was trained with: its training has recorded it.
    """
    # A person who has trained means those weights, unless another file is named explicitly.
    own = Path(settings.runs) / section / FILE
    if not _is_shipped(getattr(settings, section).weights) or not own.is_file():
        return settings
    settings = replace(settings, **{section: replace(getattr(settings, section), weights=str(own))})

    # The estimator knows the latents of one autoencoder; those of another have another meaning.
    if section != "vqgan" and _is_shipped(settings.vqgan.weights):
        autoencoder = _recorded_autoencoder(own.parent)
        if autoencoder is not None:
            settings = replace(settings, vqgan=replace(settings.vqgan, weights=autoencoder))
    return settings


def student_settings(settings: config.Settings, section: str) -> dict[str, Any]:
    """{dotted key: value}: how the weights of a student ask to be sampled; {} for weights that are no student's.

    section: "ldm" or "lcm". Files that cannot be read are left to those who load them.
    """
    # safetensors alone, since settings are read before torch is imported
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(getattr(settings, section).weights, framework="numpy") as file:
            sampling = json.loads(file.metadata()["header"])["student"]["sampling"]
        return {f"{section}.{name}": sampling[name] for name in STUDENT_KEYS if name in sampling}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def files(settings: config.Settings, section: str) -> list[str]:
    """The weights files that a method uses: the autoencoder's, the noise estimator's, and the refiner's if there is
    one."""
    paths = [settings.vqgan.weights, getattr(settings, section).weights]
    if settings.eval.refiner is not None:
        paths.append(settings.eval.refiner)
    return paths


def describe(settings: config.Settings, title: str, section: str) -> str:
    """One line that says whose weights a run uses."""
    words = f"{title} with {_origin(settings, getattr(settings, section).weights)}"
    if section != "vqgan":
        if student_settings(settings, section):
            words += f", a student, in {getattr(settings, section).steps} steps"
        words += f", autoencoder {_origin(settings, settings.vqgan.weights)}"
        if settings.eval.refiner is not None:
            words += f", refined by {_origin(settings, settings.eval.refiner)}"
    return words


def describe_autoencoder(settings: config.Settings, title: str) -> str:
    """One line that says on whose autoencoder's latents a noise estimator is trained."""
    return f"{title} is trained on the latents of {_origin(settings, settings.vqgan.weights)}"


def _origin(settings: config.Settings, path: str) -> str:
    """A weights file and whose it is."""
    if _is_shipped(path):
        return f"{path} (shipped with the project)"
    # resolved, since either may be relative or a link
    if Path(path).resolve().is_relative_to(Path(settings.runs).resolve()):
        return f"{path} (trained in {settings.runs})"
    return str(path)


def _is_shipped(path: str) -> bool:
    return Path(path).parent == SHIPPED


def _recorded_autoencoder(training: Path) -> str | None:
    """The autoencoder's weights that a training's config.yaml names, if they are still there."""
    # A missing or damaged config.yaml is no reason to stop: the settings' autoencoder is used, and `describe` says so.
    try:
        tree = yaml.safe_load((training / "config.yaml").read_text(encoding="utf-8"))
        path = tree["vqgan"]["weights"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
    return path if isinstance(path, str) and Path(path).is_file() else None
