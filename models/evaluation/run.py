"""From settings to results: what the evaluation scripts call. How a method goes over the X-rays is in running.py."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from .. import config, images, pipelines, weights
from ..runtime import compiling, processes, weights_file
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from . import insertion, operations, shards
from .cases import Case, find_cases
from .reading import AHEAD_BYTES, Reader
from .record import Record
from .results import Form, Output
from .running import evaluate, write_page
from .summary import describe_run

# settings of eval that do not make another run: tasks of an array are one, and so is one that skips what stopped it
ANY_TASK = ("shard", "skip_faulty")


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
        weights_file.require(*weights.files(settings, method_class.section))
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
        write_page(record.output, merged, has_panels)
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
