"""A method over the X-rays of a record: results drawn, written and recorded, one batch after the other."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from .. import images, pipelines, sampling
from ..residual import at_full_size
from ..runtime import processes
from ..runtime.files import UserError
from ..runtime.progress import Bar
from ..viewing.page import MOST_IMAGES
from . import index_page, shards
from .cases import Case
from .reading import Loaded, Reader
from .record import Entry, Record
from .results import Form, Output, write_deviation, write_dicom, write_paths, write_result, write_snapshots

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
    write_page(output, summary, form.panels)


def write_page(output: Output, summary: dict, has_panels: bool) -> None:
    """The page on which results are looked through. What it shows are the panels."""
    if has_panels and summary["images"] <= MOST_IMAGES:
        print(f"to look through: {index_page.write(output, summary)}")


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
