"""Whose images they are: by a pattern on the file name, or by a table."""
import csv
import re

from .. import images
from ..runtime.files import UserError
from . import lists


def find(names: list[str], rule: str | None) -> dict[str, str]:
    """{name: patient}; without a rule nobody is known.

    rule: `data.patient`, a pattern on the name, whose one group is the patient, or a CSV file with the columns name and patient.
    Raises UserError for a rule that is neither, and where it does not tell the patient of every name.
    """
    if rule is None:
        return {}
    patients = _by_table(names, rule) if rule.lower().endswith(".csv") else _by_pattern(names, rule)
    if missing := [name for name in names if name not in patients]:
        raise UserError(f"data.patient={rule} does not tell the patient of {lists.shown_names(missing)}")
    return patients


def _by_table(names: list[str], path: str) -> dict[str, str]:
    """{name: patient} of a CSV file, whose names may have an ending."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read data.patient={path}: {error}") from None
    if not {"name", "patient"} <= set(table.fieldnames or ()):
        raise UserError(f"data.patient={path} should have the columns name and patient, separated by commas")

    told: dict[str, str] = {}
    for row in rows:
        name = images.stem((row["name"] or "").strip())
        told[name] = (row["patient"] or "").strip()
    return {name: told[name] for name in names if told.get(name)}


def _by_pattern(names: list[str], pattern: str) -> dict[str, str]:
    """{name: what the pattern's group holds}."""
    patients: dict[str, str] = {}
    try:
        for name in names:
            match = re.search(pattern, name)
            if match and match.group(1):
                patients[name] = match.group(1)
    except (re.error, IndexError) as error:
        raise UserError(f"data.patient={pattern} is no pattern with one group, such as ^(\\d+)_: {error}") from None
    return patients
