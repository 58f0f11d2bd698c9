"""Whose images they are: by the PatientID of DICOM files, or as `data.patient` says, by a pattern on the file name or a
table.

No message shows a PatientID: logs are copied to places where patients' numbers have no business.
"""

import csv
import re
import warnings
from pathlib import Path

from .. import images
from ..runtime.files import UserError
from . import lists
from .lists import TWIN, Pair


def find(pairs: dict[str, Pair], rule: str | None) -> dict[str, str]:
    """{name: patient} of the pairs whose patient is known.

    rule: `data.patient`, a pattern on the name, whose one group is the patient, or a CSV file with the columns name and
    patient.
    Without a rule DICOM files are their PatientID's, and a pair <name>_normal is the patient's of the pair <name>.
    Raises UserError for a rule that is neither, for one that does not tell the patient of every name, and where all
    pairs are DICOM files of one PatientID: either there is nothing to split, or the number was replaced to hide the
    patients.
    """
    names = list(pairs)
    if rule is None:
        return _by_header(pairs)
    patients = _by_table(names, rule) if rule.lower().endswith(".csv") else _by_pattern(names, rule)
    # A rule that misses some names would make each of them a patient of its own, and leak silently.
    if missing := [name for name in names if name not in patients]:
        raise UserError(f"data.patient={rule} does not tell the patient of {lists.shown_names(missing)}")
    return patients


def _by_header(pairs: dict[str, Pair]) -> dict[str, str]:
    """{name: the first name of the same patient}, of the pairs that are DICOM files with a PatientID or twins of
    another pair."""
    first_of: dict[str, str] = {}  # {PatientID: name}
    patients: dict[str, str] = {}
    # The patient is named after the first pair, not by the number, which thus reaches no list and no message.
    for name, (cxr, soft, _) in pairs.items():
        number = patient_number(cxr) or patient_number(soft)
        if number is not None:
            patients[name] = first_of.setdefault(number, name)
    # One number for all: as de-identification leaves it, or truly one patient. Neither can be split.
    if len(pairs) > 1 and len(patients) == len(pairs) and len(first_of) == 1:
        raise UserError(
            f"all {len(pairs)} pairs have the same PatientID, so they cannot be split by patient; say "
            "whose they are with "
            "data.patient, or data.patient='^(.*)$' if each is another patient's"
        )

    # Twins last: the pair of a twin may be a DICOM file with a patient already, and else becomes one here.
    for name in pairs:
        original = name.removesuffix(TWIN)
        if original != name and original in pairs:
            patients[name] = patients.setdefault(original, original)
    return patients


def patient_number(path: Path) -> str | None:
    """The PatientID in a DICOM file, with its issuer, from the header alone; None where there is none."""
    if not images.is_dicom(path):
        return None
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd value elsewhere in the header is no matter here
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=["PatientID", "IssuerOfPatientID"]
        )
        # A number is unique only within its issuer: two hospitals may both have a patient 1.
        number = str(header.get("PatientID") or "").strip()
        issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return f"{number} / {issuer}" if number else None


def _by_table(names: list[str], path: str) -> dict[str, str]:
    """{name: patient} of a CSV file, whose names may have an ending."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # utf-8-sig: spreadsheets write a BOM, which would become part of the first column's name.
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read data.patient={path}: {error}") from None
    if not {"name", "patient"} <= set(table.fieldnames or ()):
        raise UserError(f"data.patient={path} should have the columns name and patient, separated by commas")

    # A name twice with the same patient is harmless; with two it is a fault that would leak one into another set.
    told: dict[str, str] = {}
    for row in rows:
        name = images.stem((row["name"] or "").strip())
        patient = (row["patient"] or "").strip()
        if told.setdefault(name, patient) != patient:
            raise UserError(f"data.patient={path} names {name} twice, with the patients '{told[name]}' and '{patient}'")
    # Rows of other images are no fault: a hospital's table may cover more than this folder.
    return {name: told[name] for name in names if told.get(name)}


def _by_pattern(names: list[str], pattern: str) -> dict[str, str]:
    """{name: what the pattern's group holds}."""
    patients: dict[str, str] = {}
    try:
        for name in names:
            match = re.search(pattern, name)
            # An empty group tells no patient; `find` reports the name.
            if match and match.group(1):
                patients[name] = match.group(1)
    # IndexError: the pattern has no group.
    except (re.error, IndexError) as error:
        raise UserError(f"data.patient={pattern} is no pattern with one group, such as ^(\\d+)_: {error}") from None
    return patients
