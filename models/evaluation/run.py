"""A method over many X-rays: from settings to results. What the evaluation scripts call."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from .. import config, images, pipelines, sampling, weights
from ..residual import at_full_size
from ..runtime import checkpoint, compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from ..runtime.progress import Bar
from ..viewing.page import MOST_IMAGES
from . import index_page, insertion, operations, shards
from .cases import Case, find_cases
from .reading import AHEAD_BYTES, Loaded, Reader
from .record import Entry, Record
from .results import Form, Output, write_deviation, write_dicom, write_paths, write_result, write_snapshots
from .summary import describe_run

# settings of eval that do not make another run: tasks of an array are one, and so is one that skips what stopped it
ANY_TASK = ("shard", "skip_faulty")
Measure = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]


class Method(Protocol):
    """What is evaluated: a pipeline, an autoencoder, or a test's function in a class."""

    @property
    def residual(self) -> bool:
        """Whether its result is the CXR less an estimate of bone (see residual.at_full_size)."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether it runs compiled; false as soon as compiling has failed."""
        ...

    def __call__(self, cxr: torch.Tensor, names: list[str], masks: list, progress: sampling.Progress) -> torch.Tensor:
        """Results (B, 1, S, S) in [-1, 1] of X-rays (B, 1, S, S) in [-1, 1]. masks: bool (S, S), or None, for each
        image."""
        ...


# --- Settings to results ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One evaluation that nothing speaks against: its settings, X-rays and record, and where it computes."""

    settings: config.Settings
    cases: list[Case]
    record: Record
    device: torch.device
    precision: str
    compiled: bool
    nodules: list[insertion.Nodule]  # to be put into the X-rays
    reader: Reader  # of the X-rays that are not done yet; the first of them are read
    batch: int  # X-rays that go through the networks together


def main(variants: dict[str, config.Settings], method_class: type[pipelines.Pipeline]) -> int:
    """Evaluate a method with the settings of each variant; score several variants beside each other. The script's exit
    status.

    variants: {how it differs ("" for a single one): settings}. A single one writes into eval.output, each of several
    into a folder below it, and then eval.output gets the tables and pictures of metrics.py.
    """
    first = next(iter(variants.values()))
    output = Path(first.eval.output)
    folders = {}
    for name in variants:
        folders[name] = output / re.sub(r"[^\w.=+-]+", "_", name)  # of "": output itself
    shard = shards.parse_shard(first.eval.shard)
    if shard is not None:
        shards.refuse_shard(variants)
    with processes.joined():
        # Whatever can be refused is refused now: a mistake in the last variant should not cost the hours of the others.
        jobs = prepare(variants, method_class, folders)
        if shard == shards.MERGE:
            job = next(iter(jobs.values()))
            return merge_tasks(job.record, job.batch, job.settings.eval.panels)
        failed = {}
        for name, job in jobs.items():
            if name:
                processes.say(f"{name}: {folders[name]}")
            failed |= suppress(job, method_class).get("failed", {})
    status = say_failed(failed)
    if len(variants) == 1 or processes.rank() > 0:
        return status

    # imported here, since one evaluation needs neither scores nor scipy and matplotlib, which take seconds
    from . import ablation

    # all jobs have the same X-rays, see `prepare`
    return max(status, ablation.compare(folders, next(iter(jobs.values())).cases, output, first))


def prepare(
    variants: dict[str, config.Settings], method_class: type[pipelines.Pipeline], folders: dict[str, Path]
) -> dict[str, Job]:
    """What each variant is about to do. Raises UserError for the first thing that speaks against any of them.

    The first line on the screen says which weights are used.
    """
    # weights
    with_weights = {}
    lines = []
    for name, asked in variants.items():
        # resolved now, so that the record names the file that is really used
        settings = weights.prefer_own(asked, method_class.section)
        checkpoint.require(*weights.files(settings, method_class.section))
        with_weights[name] = settings
        lines.append(weights.describe(settings, method_class.title, method_class.section))
    if processes.rank() == 0:
        for line in dict.fromkeys(lines):  # variants mostly share their weights
            print(line, flush=True)

    # X-rays, which variants mostly share: they are found once
    found: dict[tuple, list[Case]] = {}
    jobs = {}
    for name, settings in with_weights.items():
        masks = settings.eval.masks if method_class is pipelines.GLLCM else None  # BS-LDM sees no masks
        limits = images.parse_limits(settings.eval.range)
        # all that decides which X-rays are found, and how they are read
        source = (settings.eval.input, settings.data.root, masks, limits)
        if source not in found:
            found[source] = find_cases(*source)
        jobs[name] = _prepare_one(settings, method_class, found[source], folders[name], AHEAD_BYTES // len(variants))
    if len(jobs) > 1:
        from . import ablation

        ablation.check_same_cases({name: job.cases for name, job in jobs.items()})
        ablation.check_output(folders, Path(next(iter(variants.values())).eval.output))
    return jobs


def _prepare_one(
    settings: config.Settings, method_class: type[pipelines.Pipeline], cases: list[Case], folder: Path, ahead_bytes: int
) -> Job:
    section = settings.eval
    # what cannot be done with these images or on this machine is refused before the folder is looked at
    if section.dicom:
        require_dicom(cases)
    check_trace(section, method_class)
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    compiled = compiling.should_compile(settings.compile, device)

    # What the record says of the run. BS-LDM sees no masks, so another masks folder must not make it another run.
    files = weights.files(settings, method_class.section)
    names = [field.name for field in fields(section) if method_class is pipelines.GLLCM or field.name != "masks"]
    recorded_section = {name: getattr(section, name) for name in names if name not in ANY_TASK}
    recorded = {**method_class.sampling_keywords(settings), "eval": recorded_section}
    about = describe_run(method_class.title, device, precision, compiled, recorded, files, settings.data.image_size)

    record, reader, batch = open_record(section, about, cases, folder, section.samples, ahead_bytes)
    nodules = insertion.read_nodules(section.nodules) if section.nodules else []
    return Job(settings, record.cases, record, device, precision, compiled, nodules, reader, batch)


def open_record(
    section: config.Eval, about: dict, cases: list[Case], folder: Path, samples: int = 1, ahead_bytes: int = AHEAD_BYTES
) -> tuple[Record, Reader, int]:
    """(record of this task's share of the X-rays, reader of those that are not done, X-rays of a batch).

    section: the settings `eval`. about: see `describe_run`. The record refuses what would do harm; then the first
    X-rays are read, before any network is built.
    """
    # this task's share of the X-rays
    batch = shards.images_per_batch(section.batch_size, samples)
    shard = shards.parse_shard(section.shard)
    output = Output.at(folder, len(cases))
    if isinstance(shard, tuple):
        cases = shards.shard_cases(cases, batch, *shard)
    record = Record(output, about, cases, shard if isinstance(shard, tuple) else None)

    reader = Reader(
        shards.batches_left(record, batch) if shard != shards.MERGE else [],
        skip_faulty=section.skip_faulty,
        targets=section.panels,
        dicom=section.dicom,
        ahead_bytes=ahead_bytes,
        remedy="eval.skip_faulty=true leaves out what cannot be read",
    )
    reader.preload()
    return record, reader, batch


def merge_tasks(record: Record, batch: int, has_panels: bool) -> int:
    """Make one summary, and the page, of what the tasks of a job array have done. The exit status: 1 if images are
    missing or could not be read."""
    merged, status = shards.merge(record, batch)
    if status == 0:
        _write_page(record.output, merged, has_panels)
    return max(status, say_failed(merged.get("failed", {})))


def suppress(job: Job, method_class: type[pipelines.Pipeline]) -> dict:
    """Write the results of all X-rays of a job, and what the method leaves of nodules that are put into them. Returns
    the summary."""
    # networks are built here, one variant at a time: memory holds one
    method = method_class.from_settings(job.settings, job.device, job.precision, job.compiled)
    method.check_size(job.settings.data.image_size)
    section = job.settings.eval
    summary = evaluate(
        method,
        job.record,
        batch_size=section.batch_size,
        samples=section.samples,
        dicom=section.dicom,
        trace=pipelines.Trace(section.paths, section.snapshots),
        about={
            **method.describe(finds_lungs=any(case.mask is None for case in job.cases)),
            **operations.for_costs(len(job.cases), operations.of_pipeline, method, job.settings.data.image_size),
        },
        form=Form(section.size, section.bits, section.panels),
        reader=job.reader,
    )

    # after the results, with the networks that are already there
    if job.nodules:
        kept = insertion.evaluate(
            method,
            [case for case in job.cases if case.name not in summary.get("failed", {})],
            job.record.output.folder,
            size=job.settings.data.image_size,
            nodules=job.nodules,
            count=section.inserted,
            seed=section.seed,
            title=method_class.title,
        )
        if processes.rank() == 0:
            print(kept)
    return summary


def say_failed(failed: dict[str, str]) -> int:
    """Name the images that could not be read, from the first process. The exit status: 1 if there are any."""
    for reason in failed.values():
        processes.say(f"fault: {reason}")
    if failed:
        processes.say(f"{len(failed)} images could not be read and are left out (listed above and in summary.json)")
    return 1 if failed else 0


# --- Running a method -------------------------------------------------------------------------------------------------


def evaluate(
    method: Method,
    record: Record,
    *,
    batch_size: int,
    samples: int = 1,
    dicom: bool = False,
    trace: pipelines.Trace | None = None,
    about: dict | None = None,
    measure: Measure | None = None,
    form: Form | None = None,
    reader: Reader | None = None,
) -> dict:
    """Write the result of each image of a record in the input's size and depth, its panel, and summary.json.

    record.about["image_size"] is the side of the images that the method sees. samples: results drawn of each image (see
    `draw_samples`); above 1 their deviation is written too. dicom: DICOM inputs get a DICOM result as well. trace: what
    else of the sampling is written (of a pipeline, and of one sample). about: what summary.json says of the method.
    measure(cxr (1, S, S), result (1, S, S)) -> {"psnr": ...}: further figures of an image for the summary. form: size
    and depth of the results, if not the input's. reader: of `batches_left`; None: one that raises the first error.
    Returns the summary, which names as "failed" what could not be read.
    Several processes share the images, each of which comes out as it would in one process. After a stop the same call
    goes on.
    """
    # what is done already
    record.begin()
    output = record.output
    size = record.about["image_size"]
    if record.done:
        processes.say(f"going on: {len(record.done)} of {len(record.cases)} images are in {output.folder} already")
    form = form or Form()
    reader = reader or Reader.of(shards.batches_left(record, shards.images_per_batch(batch_size, samples)), dicom)

    # images through the method and onto the disk
    own_count = sum(len(batch) for batch in reader.batches)
    warm = False
    with Bar(total=own_count, unit="image", disable=processes.rank() > 0) as bar:
        for loaded in reader:
            batch = [one.case for one in loaded]
            # X-rays are read and results written outside the clock: it is the method that is timed
            start = time.perf_counter()
            drawn = _draw(method, loaded, size, batch_size, samples, trace)
            # images of one batch share its time equally
            seconds = (time.perf_counter() - start) / len(batch)

            record.add_failed(reader.take_failed())
            # known as ours before the first file exists: a stop in between leaves no file that nobody knows
            record.writing(batch)
            for i, one in enumerate(loaded):
                # of a batch that was stopped in the middle
                if one.case.name in record.done:
                    continue
                # on the input's own grid, of its own size
                soft = at_full_size(one.scan.pixels, drawn.cxr[i], drawn.means[i], method.residual)
                if dicom and not _write_dicom(record, reader, one, soft):
                    continue
                notes = _write_files(output, one, soft, drawn, i, samples, form, method.residual)
                if measure:
                    notes |= measure(drawn.cxr[i], drawn.means[i])
                # only now is the image done; a first batch, which warms up, is told apart for the median time
                record.add(one.case, Entry(one.content, round(seconds, 3), warm, notes, one.stamp))
            warm = True
            bar.update(len(loaded))

    # record
    record.add_failed(reader.take_failed())
    reader.say_notes()
    summary = record.finish({**(about or {}), "compiled": method.compiled, "batch_size": batch_size})
    if processes.rank() == 0:
        _say_done(record, summary, form)
    return summary


class Drawn(NamedTuple):
    """What a method made of a batch. cxr: as it saw the X-rays; means, deviations: see `draw_samples`. All (B, 1, S,
    S) in [-1, 1]. trace: what was kept of the sampling, if anything."""

    cxr: torch.Tensor
    means: torch.Tensor
    deviations: torch.Tensor
    trace: pipelines.Trace | None


def _draw(
    method: Method, loaded: list[Loaded], size: int, batch_size: int, samples: int, trace: pipelines.Trace | None
) -> Drawn:
    """The results of a batch; arguments as of `evaluate`. size: side of the images that the method sees."""
    cxr = torch.stack([images.to_network(one.scan.pixels, size) for one in loaded])  # (B, 1, S, S)
    # the lungs of each image at the network's size; None: GL-LCM finds them, BS-LDM needs none
    masks = [None if one.mask is None else images.mask_to_network(one.mask, size) for one in loaded]
    # one for each batch: a pipeline fills it
    kept = None
    if trace is not None and (trace.paths or trace.snapshots):
        kept = pipelines.Trace(trace.paths, trace.snapshots)
    cases = [one.case for one in loaded]
    means, deviations = draw_samples(method, cases, masks, cxr, batch_size, samples, kept)
    return Drawn(cxr, means, deviations, kept)


def _write_files(
    output: Output, one: Loaded, soft: np.ndarray, drawn: Drawn, i: int, samples: int, form: Form, residual: bool
) -> dict[str, float]:
    """All files of image i of a batch but the DICOM result. soft: its result at its own size. Returns its figures."""
    name = one.case.name
    notes = write_result(output, name, one.scan, soft, one.target, form)
    if drawn.trace is not None:
        write_trace(output, name, one.scan, drawn.cxr[i], drawn.trace, i, residual)
    if samples > 1:
        notes |= write_deviation(output, name, one.scan, drawn.deviations[i], samples)
    return notes


def _write_dicom(record: Record, reader: Reader, loaded: Loaded, soft: np.ndarray) -> bool:
    """Write the DICOM result of a DICOM file; False if the file, which is read again for it, has gone since and faulty
    ones are skipped."""
    try:
        if images.is_dicom(loaded.case.path):
            write_dicom(record.output, loaded.case, soft, record.about)
    except (UserError, OSError) as error:
        if loaded.case.path.is_file() or not reader.skip_faulty:
            raise
        reader.failed.append((loaded.case.name, str(error)))
        return False
    return True


def _say_done(record: Record, summary: dict, form: Form) -> None:
    """Write the page of the results, and say where they lie."""
    output = record.output
    done = summary["images"]
    if record.shard is not None:
        print(f"{done} images of share {record.shard[0]}/{record.shard[1]} in {output.folder}")
        print("when all tasks have ended, the same command with eval.shard=merge makes one summary")
        return
    if output.file is None:
        panels = "" if not form.panels else f" (panels beside them in {output.folder / 'panels'})"
        print(f"{done} images in {output.folder}{panels}")
    else:
        print(f"{output.file} (panel and record in {output.folder})")
    _write_page(output, summary, form.panels)


def _write_page(output: Output, summary: dict, has_panels: bool) -> None:
    """The page on which results are looked through. What it shows are the panels."""
    if has_panels and summary["images"] <= MOST_IMAGES:
        print(f"to look through: {index_page.write(output, summary)}")


def require_dicom(cases: list[Case]) -> None:
    """Raise UserError unless one of the X-rays is a DICOM file. Whether a DICOM result can be derived of each is seen
    when it is read."""
    if not any(images.is_dicom(case.path) for case in cases):
        raise UserError(f"eval.dicom=true, but none of the {len(cases)} images is a DICOM file ({cases[0].path})")


def check_trace(section: config.Eval, method_class: type[pipelines.Pipeline]) -> None:
    """Raise UserError for eval.paths and eval.snapshots where the method or the other settings have no such thing."""
    if section.paths and method_class is not pipelines.GLLCM:
        raise UserError(f"eval.paths=true, but {method_class.title} has one path; GL-LCM has two (batch_lcm_eval.py)")
    # several samples have several courses, and the result is none of theirs
    if section.samples > 1 and (section.paths or section.snapshots):
        key = "eval.paths" if section.paths else "eval.snapshots"
        raise UserError(f"{key} shows how one result came about; say eval.samples=1 with it")


def write_trace(
    output: Output, name: str, scan: images.Picture, cxr: torch.Tensor, trace: pipelines.Trace, i: int, residual: bool
) -> None:
    """What was kept of the sampling of image i of a batch. cxr: the image as the method saw it, (1, S, S)."""
    if trace.global_soft is not None and trace.local_soft is not None:
        paths = {}
        for folder, soft in (("global", trace.global_soft[i]), ("local", trace.local_soft[i])):
            paths[folder] = at_full_size(scan.pixels, cxr, soft, residual)
        write_paths(output, name, scan, paths)
    if trace.steps:
        write_snapshots(output, name, {step: images.to_unit(soft[i, 0]).numpy() for step, soft in trace.steps.items()})


def draw_samples(
    method: Method,
    cases: list[Case],
    masks: list,
    cxr: torch.Tensor,
    batch_size: int,
    samples: int,
    trace: pipelines.Trace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(means, standard deviations), each as cxr (B, 1, S, S), of several results of each image, drawn with noise of
    different names. masks: for each image a boolean (S, S) or None.

    The first result of an image is the one that samples=1 gives. At most batch_size results are drawn together.
    trace: of one sample, is given what it says that it keeps.
    """
    # all results in a row: those of the first image, those of the second, ...
    places = []
    for place in range(len(cases)):
        places += [place] * samples

    # Noise is a function of the name. The first result has the image's own, so it is that of samples=1.
    names = []
    for case in cases:
        names += [case.name, *(f"{case.name}/sample {number}" for number in range(1, samples))]

    hidden = True if processes.rank() > 0 else None  # None: hidden if stderr is no terminal, where every step is a line
    drawn = []
    for start in range(0, len(places), batch_size):
        batch = slice(start, start + batch_size)
        progress = partial(tqdm, desc=names[start], unit="step", leave=False, mininterval=1, disable=hidden)
        batch_masks = [masks[place] for place in places[batch]]
        further = {} if trace is None else {"trace": trace}  # other methods than pipelines know none
        drawn.append(method(cxr[places[batch]], names[batch], batch_masks, progress, **further))
    stack = torch.cat(drawn).unflatten(0, (len(cases), samples))  # (B, samples, 1, S, S)
    correction = min(1, samples - 1)  # of one result the deviation is 0, not 0 / 0
    return stack.mean(1), stack.std(1, correction=correction)
