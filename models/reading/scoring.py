"""A reading study's answers -> the tables: image quality and lesions as in BS-LDM's clinical evaluation, with
intervals, tests and agreement."""

import csv
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import config, images
from ..evaluation import findings, report
from ..evaluation.findings import Finding
from ..evaluation.tables import Table, text
from ..runtime import ownership, seeding
from ..runtime.files import UserError
from . import answers, folder, statistics
from .answers import Matched, Reader
from .folder import CRITERIA, CXR

ABSENT = "—"
ALL = "all readers"
STEM = "reading"  # of the tables' files


class Study:
    """What was asked and answered: the key, the readers, the lesions of each image, and every mark matched."""

    def __init__(self, key: dict, readers: list[Reader], found: list[Finding] | None, reach: answers.Reach, seed: int):
        self.kinds: list[str] = key["kinds"]
        self.patient_of: dict[str, str] = key["patients"]
        self.images_of: dict[str, list[str]] = {}
        for name, patient in self.patient_of.items():
            self.images_of.setdefault(patient, []).append(name)
        self.patients = list(self.images_of)
        self.readers = readers
        self.seed = seed
        self.has_truth = found is not None
        self.lesions: dict[str, list[Finding]] = {name: [] for name in self.patient_of}
        for finding in found or ():
            # findings of images that are not in the study are no fault: a list may cover a whole data set
            if finding.image in self.lesions:
                self.lesions[finding.image].append(finding)

        self.matched: dict[tuple[str, str, str], Matched] = {}  # {(reader, kind, image)}
        for reader in readers:
            for kind, given in reader.answers.items():
                for name, answer in given.items():
                    matched = answers.match(answer.marks, self.lesions[name], reach)
                    self.matched[reader.name, kind, name] = matched

    def with_interval(self, statistic: Callable[[np.ndarray], np.ndarray], cell: str, form: str = ".3f") -> str:
        """'value [low, high]' of a statistic of patients, see statistics.interval.

        The bootstrap is seeded by the cell's name, and so does not depend on what else is in the table.
        """
        count = len(self.patients)
        value = float(statistic(np.arange(count)[None])[0])
        if not math.isfinite(value):
            return ABSENT
        low, high = statistics.interval(count, statistic, seeding.detail_generator(self.seed, cell))
        return f"{_number(value, form)} [{_number(low, form)}, {_number(high, form)}]"

    def groups(self) -> dict[str, list[Reader]]:
        """{row's name: readers}: each reader, and of several all of them."""
        groups = {reader.label: [reader] for reader in self.readers}
        if len(self.readers) > 1:
            groups[ALL] = self.readers
        return groups


def score(settings: config.Settings) -> tuple[str, list[str]]:
    """Read the answers, write the tables beside the key: (text of the tables, faults).

    Raises UserError for a missing key, for files that are no answers, and for a truth that knows none of the images.
    """
    section = settings.study
    output = Path(section.output)
    place = section.answers
    truth = section.truth
    reach = answers.Reach(section.reach, section.least_reach)

    # key, answers and truth
    key = folder.read_key(output)
    readers = answers.read(place, key)
    found = findings.read(truth) if truth else None
    study = Study(key, readers, found, reach, section.seed)
    if found and not any(study.lesions.values()):
        raise UserError(f"{truth} has no finding in an image of the study; are the names the same?")
    ownership.require_writable(output)

    # what is missing is told, the rest is scored
    faults = [f"reader {name}: no file of answers" for name in key["orders"] if name not in {r.name for r in readers}]
    for reader in readers:
        if reader.unread:
            faults.append(f"{reader.label}: {reader.unread} of {len(key['images'])} images are not read to the end")

    shown = tables(study)
    heading = f"{len(study.patient_of)} X-rays of {len(study.patients)} patients, {len(readers)} readers"
    report.write_tables(output / STEM, heading, shown)
    images.write_file(output / f"{STEM}.csv", _as_csv(study).encode())
    return "\n".join([heading + "\n", *(text(table) for table in shown)]), faults


def tables(study: Study) -> list[Table]:
    """All tables; those of lesions only where there is a truth."""
    every = [quality_table(study)]
    if study.has_truth:
        every.append(detection_table(study, by_lesion=True))
        every.append(detection_table(study, by_lesion=False))
        every.append(comparison_table(study))
        every.append(afroc_table(study))
    if len(study.readers) > 1:
        every.append(agreement_table(study))
    every.append(time_table(study))
    return every


# --- Image quality ----------------------------------------------------------------------------------------------------


def quality_table(study: Study) -> Table:
    """Means of the ratings, a column per reader, as in the paper."""
    groups = study.groups()
    rows = []
    for key, title, _ in CRITERIA:
        for kind in study.kinds:
            row = [title, kind]
            for label, readers in groups.items():
                # a patient's sum and number of ratings, so that a mean over drawn patients is a quotient
                sums = np.zeros(len(study.patients))
                numbers = np.zeros(len(study.patients))
                for place, patient in enumerate(study.patients):
                    for reader, name in itertools.product(readers, study.images_of[patient]):
                        if name in reader.answers[kind]:
                            sums[place] += reader.answers[kind][name].ratings[key]
                            numbers[place] += 1
                row.append(_with_interval(study, sums, numbers, f"quality/{key}/{kind}/{label}"))
            rows.append(row)
    notes = [
        "mean rating, 3 is the best, with the 95 % interval of a bootstrap over patients",
        *(f"{title}: {'; '.join(f'{words} ({value})' for value, words in options)}" for _, title, options in CRITERIA),
    ]
    return Table("Image quality", ["criterion", "images", *groups], rows, notes=notes)


def _with_interval(study: Study, parts: np.ndarray, wholes: np.ndarray, cell: str) -> str:
    """Σ parts / Σ wholes over patients, with its interval."""
    return study.with_interval(
        lambda places: statistics.quotient(parts[places].sum(1), wholes[places].sum(1)),
        cell,
    )


def time_table(study: Study) -> Table:
    """Median seconds of an image."""
    rows = []
    for kind in study.kinds:
        row = [kind]
        for readers in study.groups().values():
            seconds = [answer.seconds for reader in readers for answer in reader.answers[kind].values()]
            row.append(f"{np.median(seconds):.1f}" if seconds else ABSENT)
        rows.append(row)
    return Table("Median time of an image (s)", ["images", *study.groups()], rows)


# --- Lesions ----------------------------------------------------------------------------------------------------------


def detection_table(study: Study, by_lesion: bool) -> Table:
    """Precision, recall and F1, a row per reader and kind, as in the paper: of lesions, or of images as a whole."""
    rows = []
    for label, readers in study.groups().items():
        for kind in study.kinds:
            counts = _counts(study, readers, kind, by_lesion)  # (patients, 3)
            tp, fp, fn = counts.T
            totals = [str(int(value)) for value in counts.sum(0)]
            cell = f"detection/{by_lesion}/{kind}/{label}"
            cells = [
                _with_interval(study, tp, tp + fp, cell + "/precision"),
                _with_interval(study, tp, tp + fn, cell + "/recall"),
                _with_interval(study, 2 * tp, 2 * tp + fp + fn, cell + "/f1"),  # the harmonic mean of the two
            ]
            rows.append([label, kind, *totals, *cells])
    lesions = sum(len(own) for own in study.lesions.values())
    diseased = sum(bool(own) for own in study.lesions.values())
    if by_lesion:
        title = "Lesions found"
        notes = [f"{lesions} lesions in {diseased} of {len(study.lesions)} X-rays; several marks on one lesion are one"]
    else:
        title = "Images told to have a lesion"
        notes = [f"{diseased} of {len(study.lesions)} X-rays have one; an image with any mark counts as told to"]
    notes.append("95 % intervals of a bootstrap over patients")
    headings = ["reader", "images", "TP", "FP", "FN", "precision", "recall", "F1"]
    return Table(title, headings, rows, notes=notes)


def _counts(study: Study, readers: list[Reader], kind: str, by_lesion: bool) -> np.ndarray:
    """(patients, 3): true positives, false positives, false negatives of each patient, over these readers."""
    counts = np.zeros((len(study.patients), 3))
    for place, patient in enumerate(study.patients):
        for reader, name in itertools.product(readers, study.images_of[patient]):
            matched = study.matched.get((reader.name, kind, name))
            if matched is not None:
                one = matched.by_lesion if by_lesion else matched.by_image
                counts[place] += (one.tp, one.fp, one.fn)
    return counts


def comparison_table(study: Study) -> Table:
    """Each method against the CXR: lesions found in one alone, McNemar's test, differences of recall and F1."""
    rows = []
    for label, readers in study.groups().items():
        for kind in study.kinds[1:]:
            # the lesions of images that the reader has read in both kinds
            on_cxr: list[bool] = []
            on_method: list[bool] = []
            for reader, name in itertools.product(readers, study.lesions):
                before = study.matched.get((reader.name, CXR, name))
                after = study.matched.get((reader.name, kind, name))
                if before is not None and after is not None:
                    on_cxr += before.found
                    on_method += after.found
            only_cxr, only_method, p = statistics.mcnemar(on_cxr, on_method)

            # Several readers see the same lesions, so that their pairs are not independent, which the test demands.
            shown_p = f"{p:.3g}" if math.isfinite(p) and len(readers) == 1 else ABSENT
            before_counts = _counts(study, readers, CXR, True)
            after_counts = _counts(study, readers, kind, True)
            differences = []
            for name, score_of in (("recall", _recall), ("f1", _f1)):

                def difference(places, score_of=score_of, before=before_counts, after=after_counts):
                    return score_of(after[places].sum(1)) - score_of(before[places].sum(1))

                cell = f"difference/{name}/{kind}/{label}"
                differences.append(study.with_interval(difference, cell, "+.3f"))
            rows.append([label, kind, str(only_cxr), str(only_method), shown_p, *differences])
    notes = [
        "p: McNemar's test of the lesions that were found in one of the two alone, exact, two-sided; of all readers "
        "together it has none, as they see the same lesions",
        "differences: method - CXR, with the 95 % interval of a bootstrap over patients",
    ]
    headings = ["reader", "method", "only on CXR", "only on method", "p", "difference of recall", "difference of F1"]
    return Table("Lesions: soft tissue against CXR", headings, rows, notes=notes)


def _recall(counts: np.ndarray) -> np.ndarray:
    """(n, 3) true positives, false positives, false negatives -> (n,)."""
    tp, _, fn = counts.T
    return statistics.quotient(tp, tp + fn)


def _f1(counts: np.ndarray) -> np.ndarray:
    tp, fp, fn = counts.T
    return statistics.quotient(2 * tp, 2 * tp + fp + fn)


def afroc_table(study: Study) -> Table:
    """Areas under the AFROC curves, a column per kind."""
    # images without a lesion give the false marks; where every image has one, all images do [AFROC1]
    normal = [name for name, own in study.lesions.items() if not own]
    everywhere = not normal
    rows = []
    for label, readers in study.groups().items():
        row = [label]
        for kind in study.kinds:
            # patient by patient, so that patients can be drawn
            lesions: list[list[float]] = []
            false: list[list[float]] = []
            for patient in study.patients:
                own_lesions: list[float] = []
                own_false: list[float] = []
                for reader, name in itertools.product(readers, study.images_of[patient]):
                    matched = study.matched.get((reader.name, kind, name))
                    if matched is None:
                        continue
                    own_lesions += matched.ratings
                    if everywhere or not study.lesions[name]:
                        own_false.append(matched.false)
                lesions.append(own_lesions)
                false.append(own_false)

            def areas(draws: np.ndarray, lesions=lesions, false=false) -> np.ndarray:
                found = []
                for places in draws:
                    drawn_lesions = list(itertools.chain.from_iterable(lesions[place] for place in places))
                    drawn_false = list(itertools.chain.from_iterable(false[place] for place in places))
                    found.append(statistics.afroc_area(drawn_lesions, drawn_false))
                return np.array(found)

            row.append(study.with_interval(areas, f"afroc/{kind}/{label}"))
        rows.append(row)
    of = "all images, as each has a lesion (AFROC1)" if everywhere else f"the {len(normal)} images without a lesion"
    notes = [
        f"how often a lesion is rated above the highest false mark of an image; images: {of}",
        "95 % intervals of a bootstrap over patients",
    ]
    return Table("Area under the AFROC curve", ["reader", *study.kinds], rows, notes=notes)


# --- Agreement --------------------------------------------------------------------------------------------------------


def agreement_table(study: Study) -> Table:
    """Weighted kappa of every two readers, and its mean."""
    rows = []
    for key, title, options in CRITERIA:
        levels = sorted(value for value, _ in options)
        by_kind: dict[str, list[float]] = {kind: [] for kind in study.kinds}
        for a, b in itertools.combinations(study.readers, 2):
            row = [title, f"{a.name}, {b.name}"]
            for kind in study.kinds:
                both = [name for name in a.answers[kind] if name in b.answers[kind]]
                of_a = [a.answers[kind][name].ratings[key] for name in both]
                of_b = [b.answers[kind][name].ratings[key] for name in both]
                kappa = statistics.weighted_kappa(of_a, of_b, levels)
                by_kind[kind].append(kappa)
                row.append(_number(kappa))
            rows.append(row)
        if len(study.readers) > 2:
            means = []
            for kappas in by_kind.values():
                defined = [kappa for kappa in kappas if math.isfinite(kappa)]
                means.append(_number(float(np.mean(defined)) if defined else math.nan))
            rows.append([title, "mean", *means])
    notes = [f"Cohen's kappa with quadratic weights; {ABSENT}: both readers gave one and the same rating throughout"]
    return Table("Agreement of the readers", ["criterion", "readers", *study.kinds], rows, notes=notes)


# --- Texts ------------------------------------------------------------------------------------------------------------


def _number(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else ABSENT


def _as_csv(study: Study) -> str:
    """Every answer: a row per reader and image."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    keys = [key for key, _, _ in CRITERIA]
    counts = ["tp", "fp", "fn"] if study.has_truth else []
    writer.writerow(["reader", "image", "patient", "kind", *keys, "marks", *counts, "seconds"])
    for reader in study.readers:
        for kind, given in reader.answers.items():
            for name, answer in given.items():
                one = study.matched[reader.name, kind, name].by_lesion
                found = [one.tp, one.fp, one.fn] if study.has_truth else []
                ratings = [answer.ratings[key] for key in keys]
                row = [reader.name, name, study.patient_of[name], kind, *ratings, len(answer.marks), *found]
                writer.writerow([*row, round(answer.seconds, 1)])
    return lines.getvalue()
