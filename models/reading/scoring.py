"""A reading study's answers -> the tables: image quality and lesions as in BS-LDM's clinical evaluation, with
intervals, tests and agreement."""

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator
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

# A value for each row of drawn patients: (n, patients) places in Study.patients -> (n,)
Statistic = Callable[[np.ndarray], np.ndarray]


class Study:
    """What was asked and answered: the key, the readers, the lesions of each image, and every mark matched."""

    def __init__(self, key: dict, readers: list[Reader], found: list[Finding] | None, reach: answers.Reach, seed: int):
        self.kinds: list[str] = key["kinds"]
        self.readers = readers
        self.seed = seed
        self.has_truth = found is not None

        # The images of each patient, and the other way round
        self.patient_of: dict[str, str] = key["patients"]
        self.images_of: dict[str, list[str]] = {}
        for name, patient in self.patient_of.items():
            self.images_of.setdefault(patient, []).append(name)
        self.patients = list(self.images_of)

        # The lesions of each image. Findings of images that are not in the study are no fault: a list may cover a whole
        # data set.
        self.lesions: dict[str, list[Finding]] = {name: [] for name in self.patient_of}
        for finding in found or ():
            if finding.image in self.lesions:
                self.lesions[finding.image].append(finding)

        # {(reader, kind, image): its marks against its lesions}
        self.matched: dict[tuple[str, str, str], Matched] = {}
        for reader in readers:
            for kind, given in reader.answers.items():
                for name, answer in given.items():
                    matched = answers.match(answer.marks, self.lesions[name], reach)
                    self.matched[reader.name, kind, name] = matched

    def with_interval(self, statistic: Statistic, cell: str, form: str = ".3f") -> str:
        """'value [low, high]' of a statistic of patients, see statistics.interval.

        The bootstrap is seeded by the cell's name, and so does not depend on what else is in the table.
        """
        # The value itself: of every patient once
        count = len(self.patients)
        everybody = np.arange(count)[None]  # (1, patients)
        value = float(statistic(everybody)[0])
        if not math.isfinite(value):
            return ABSENT

        random = seeding.detail_generator(self.seed, cell)
        low, high = statistics.interval(count, statistic, random)
        return f"{_number(value, form)} [{_number(low, form)}, {_number(high, form)}]"

    def readings(self, readers: list[Reader], kind: str, patient: str) -> Iterator[tuple[str, Matched]]:
        """(image, its marks against its lesions) of each image of a patient that each of these readers has read."""
        for reader in readers:
            for name in self.images_of[patient]:
                matched = self.matched.get((reader.name, kind, name))
                if matched is not None:
                    yield name, matched

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

    # Key, answers and truth
    key = folder.read_key(output)
    readers = answers.read(place, key)
    found = findings.read(truth) if truth else None
    study = Study(key, readers, found, reach, section.seed)
    if found and not any(study.lesions.values()):
        raise UserError(f"{truth} has no finding in an image of the study; are the names the same?")
    ownership.require_writable(output)

    # What is missing is reported, the rest is scored.
    answered = {reader.name for reader in readers}
    faults = []
    for name in key["orders"]:
        if name not in answered:
            faults.append(f"reader {name}: no file of answers")
    for reader in readers:
        if reader.unread:
            faults.append(f"{reader.label}: {reader.unread} of {len(key['images'])} images are not read to the end")

    shown = tables(study)
    heading = f"{len(study.patient_of)} X-rays of {len(study.patients)} patients, {len(readers)} readers"
    report.write_tables(output / STEM, heading, shown)
    images.write_file(output / f"{STEM}.csv", _as_csv(study).encode())
    texts = [text(table) for table in shown]
    return "\n".join([heading + "\n", *texts]), faults


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
                sums, numbers = _rating_sums(study, readers, kind, key)
                row.append(_with_interval(study, sums, numbers, f"quality/{key}/{kind}/{label}"))
            rows.append(row)

    notes = ["mean rating, 3 is the best, with the 95 % interval of a bootstrap over patients"]
    for _, title, options in CRITERIA:
        meanings = [f"{words} ({value})" for value, words in options]
        notes.append(f"{title}: {'; '.join(meanings)}")
    return Table("Image quality", ["criterion", "images", *groups], rows, notes=notes)


def _rating_sums(study: Study, readers: list[Reader], kind: str, criterion: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of each patient's ratings, (patients,) each, so that a mean over drawn patients is a quotient."""
    sums = np.zeros(len(study.patients))
    numbers = np.zeros(len(study.patients))
    for place, patient in enumerate(study.patients):
        for reader, name in itertools.product(readers, study.images_of[patient]):
            answer = reader.answers[kind].get(name)
            if answer is not None:
                sums[place] += answer.ratings[criterion]
                numbers[place] += 1
    return sums, numbers


def _with_interval(study: Study, parts: np.ndarray, wholes: np.ndarray, cell: str) -> str:
    """Σ parts / Σ wholes over patients, (patients,) each, with its interval."""

    def statistic(places: np.ndarray) -> np.ndarray:
        return statistics.quotient(parts[places].sum(1), wholes[places].sum(1))

    return study.with_interval(statistic, cell)


def time_table(study: Study) -> Table:
    """Median seconds of an image."""
    rows = []
    for kind in study.kinds:
        row = [kind]
        for readers in study.groups().values():
            seconds = []
            for reader in readers:
                seconds += [answer.seconds for answer in reader.answers[kind].values()]
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
            precision = _with_interval(study, tp, tp + fp, cell + "/precision")
            recall = _with_interval(study, tp, tp + fn, cell + "/recall")
            f1 = _with_interval(study, 2 * tp, 2 * tp + fp + fn, cell + "/f1")  # the harmonic mean of the two
            rows.append([label, kind, *totals, precision, recall, f1])

    # What there was to be found
    x_rays = len(study.lesions)
    lesions = sum(len(own) for own in study.lesions.values())
    diseased = sum(bool(own) for own in study.lesions.values())
    if by_lesion:
        title = "Lesions found"
        note = f"{lesions} lesions in {diseased} of {x_rays} X-rays; several marks on one lesion are one"
    else:
        title = "Images told to have a lesion"
        note = f"{diseased} of {x_rays} X-rays have one; an image with any mark counts as told to"
    notes = [note, "95 % intervals of a bootstrap over patients"]
    headings = ["reader", "images", "TP", "FP", "FN", "precision", "recall", "F1"]
    return Table(title, headings, rows, notes=notes)


def _counts(study: Study, readers: list[Reader], kind: str, by_lesion: bool) -> np.ndarray:
    """(patients, 3): true positives, false positives, false negatives of each patient, over these readers."""
    counts = np.zeros((len(study.patients), 3))
    for place, patient in enumerate(study.patients):
        for _, matched in study.readings(readers, kind, patient):
            own = matched.by_lesion if by_lesion else matched.by_image
            counts[place] += (own.tp, own.fp, own.fn)
    return counts


def comparison_table(study: Study) -> Table:
    """Each method against the CXR: lesions found in one alone, McNemar's test, differences of recall and F1."""
    rows = []
    for label, readers in study.groups().items():
        for method in study.kinds[1:]:
            on_cxr, on_method = _found_in_both(study, readers, method)
            only_cxr, only_method, p = statistics.mcnemar(on_cxr, on_method)

            # Several readers see the same lesions, so that their pairs are not independent, which the test demands.
            has_p = math.isfinite(p) and len(readers) == 1
            shown_p = f"{p:.3g}" if has_p else ABSENT

            before = _counts(study, readers, CXR, by_lesion=True)
            after = _counts(study, readers, method, by_lesion=True)
            recall = study.with_interval(
                _difference(_recall, before, after), f"difference/recall/{method}/{label}", "+.3f"
            )
            f1 = study.with_interval(_difference(_f1, before, after), f"difference/f1/{method}/{label}", "+.3f")
            rows.append([label, method, str(only_cxr), str(only_method), shown_p, recall, f1])
    notes = [
        "p: McNemar's test of the lesions that were found in one of the two alone, exact, two-sided; of all readers "
        "together it has none, as they see the same lesions",
        "differences: method - CXR, with the 95 % interval of a bootstrap over patients",
    ]
    headings = ["reader", "method", "only on CXR", "only on method", "p", "difference of recall", "difference of F1"]
    return Table("Lesions: soft tissue against CXR", headings, rows, notes=notes)


def _found_in_both(study: Study, readers: list[Reader], method: str) -> tuple[list[bool], list[bool]]:
    """Whether each lesion was found on the CXR, and on a method's image, of the images that were read in both."""
    on_cxr: list[bool] = []
    on_method: list[bool] = []
    for reader, name in itertools.product(readers, study.lesions):
        before = study.matched.get((reader.name, CXR, name))
        after = study.matched.get((reader.name, method, name))
        if before is not None and after is not None:
            on_cxr += before.found
            on_method += after.found
    return on_cxr, on_method


def _difference(score_of: Callable[[np.ndarray], np.ndarray], before: np.ndarray, after: np.ndarray) -> Statistic:
    """score_of(after) - score_of(before) of the sums over drawn patients of their counts (patients, 3)."""

    def difference(places: np.ndarray) -> np.ndarray:
        counts_before = before[places].sum(1)  # (n, 3)
        counts_after = after[places].sum(1)
        return score_of(counts_after) - score_of(counts_before)

    return difference


def _recall(counts: np.ndarray) -> np.ndarray:
    """(n, 3) true positives, false positives, false negatives -> (n,)."""
    tp, _, fn = counts.T
    return statistics.quotient(tp, tp + fn)


def _f1(counts: np.ndarray) -> np.ndarray:
    """As `_recall`; the harmonic mean of precision and recall."""
    tp, fp, fn = counts.T
    return statistics.quotient(2 * tp, 2 * tp + fp + fn)


def afroc_table(study: Study) -> Table:
    """Areas under the AFROC curves, a column per kind."""
    # Images without a lesion give the false marks; where every image has one, all images do [AFROC1].
    normal = {name for name, own in study.lesions.items() if not own}
    if normal:
        counted = normal
        which = f"the {len(normal)} images without a lesion"
    else:
        counted = set(study.lesions)
        which = "all images, as each has a lesion (AFROC1)"

    rows = []
    for label, readers in study.groups().items():
        row = [label]
        for kind in study.kinds:
            areas = _afroc_areas(study, readers, kind, counted)
            row.append(study.with_interval(areas, f"afroc/{kind}/{label}"))
        rows.append(row)
    notes = [
        f"how often a lesion is rated above the highest false mark of an image; images: {which}",
        "95 % intervals of a bootstrap over patients",
    ]
    return Table("Area under the AFROC curve", ["reader", *study.kinds], rows, notes=notes)


def _afroc_areas(study: Study, readers: list[Reader], kind: str, counted: set[str]) -> Statistic:
    """The area under the AFROC curve. counted: the images whose false marks count."""
    # The ratings of each patient's lesions and false marks
    lesions_of: list[list[float]] = []
    false_of: list[list[float]] = []
    for patient in study.patients:
        lesions: list[float] = []
        false: list[float] = []
        for name, matched in study.readings(readers, kind, patient):
            lesions += matched.ratings
            if name in counted:
                false.append(matched.false)
        lesions_of.append(lesions)
        false_of.append(false)

    def areas(draws: np.ndarray) -> np.ndarray:
        found = []
        for places in draws:
            drawn_lesions: list[float] = []
            drawn_false: list[float] = []
            for place in places:
                drawn_lesions += lesions_of[place]
                drawn_false += false_of[place]
            found.append(statistics.afroc_area(drawn_lesions, drawn_false))
        return np.array(found)

    return areas


# --- Agreement --------------------------------------------------------------------------------------------------------


def agreement_table(study: Study) -> Table:
    """Weighted kappa of every two readers, and its mean."""
    rows = []
    for key, title, options in CRITERIA:
        levels = sorted(value for value, _ in options)
        kappas_of: dict[str, list[float]] = {kind: [] for kind in study.kinds}
        for a, b in itertools.combinations(study.readers, 2):
            row = [title, f"{a.name}, {b.name}"]
            for kind in study.kinds:
                # Their ratings of the images that both have read
                answers_a = a.answers[kind]
                answers_b = b.answers[kind]
                both = [name for name in answers_a if name in answers_b]
                ratings_a = [answers_a[name].ratings[key] for name in both]
                ratings_b = [answers_b[name].ratings[key] for name in both]
                kappa = statistics.weighted_kappa(ratings_a, ratings_b, levels)
                kappas_of[kind].append(kappa)
                row.append(_number(kappa))
            rows.append(row)
        if len(study.readers) > 2:
            means = [_number(_mean_of_defined(kappas)) for kappas in kappas_of.values()]
            rows.append([title, "mean", *means])
    notes = [f"Cohen's kappa with quadratic weights; {ABSENT}: both readers gave one and the same rating throughout"]
    return Table("Agreement of the readers", ["criterion", "readers", *study.kinds], rows, notes=notes)


def _mean_of_defined(values: list[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return math.nan
    return float(np.mean(defined))


# --- Texts ------------------------------------------------------------------------------------------------------------


def _number(value: float, form: str = ".3f") -> str:
    """The number in a format, or ABSENT for one that is not defined."""
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
                asked = [reader.name, name, study.patient_of[name], kind]
                ratings = [answer.ratings[key] for key in keys]
                found = []
                if study.has_truth:
                    own = study.matched[reader.name, kind, name].by_lesion
                    found = [own.tp, own.fp, own.fn]
                seconds = round(answer.seconds, 1)
                writer.writerow([*asked, *ratings, len(answer.marks), *found, seconds])
    return lines.getvalue()
