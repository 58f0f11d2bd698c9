"""A method over many X-rays: from settings to results. What the evaluation scripts call."""
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from .. import config, images, pipelines, sampling
from ..runtime import compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from . import results
from .cases import Case, find_cases
from .record import Record, describe_run

Measure = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]


class Method(Protocol):
    """What is evaluated: a pipeline, an autoencoder, or a test's function in a class."""

    @property
    def residual(self) -> bool:
        """Whether its result is the CXR less an estimate of bone (see pipelines.at_full_size)."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether it runs compiled; false as soon as compiling has failed."""
        ...

    def __call__(self, cxr: torch.Tensor, names: list[str], masks: list, progress: sampling.Progress) -> torch.Tensor:
        """Results (B, 1, S, S) in [-1, 1] of X-rays (B, 1, S, S) in [-1, 1]. masks: bool (S, S), or None, for each
        image."""


# --- Settings to results
# -----------------------------------------------------------------------------------------------------

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
    cases: list[Case] = []
    with processes.joined():
        for name, settings in variants.items():
            if name:
                processes.say(f"{name}: {folders[name]}")
            cases = suppress_all(settings, method_class, folders[name])
    if len(variants) == 1 or processes.rank() > 0:
        return 0

    from . import ablation  # here, since one evaluation needs neither scores nor scipy and matplotlib, which take seconds

    return ablation.compare(folders, cases, output, first)


def suppress_all(settings: config.Settings, method_class: type[pipelines.Pipeline], output: Path) -> list[Case]:
    """Write the results of all X-rays of eval.input into a folder. Returns the X-rays."""
    # X-rays
    masks = settings.eval.masks if method_class is pipelines.GLLCM else None  # BS-LDM sees no masks
    cases = find_cases(settings.eval.input, settings.data.root, masks)

    # networks
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    compiled = compiling.should_compile(settings.compile, device)
    method = method_class.from_settings(settings, device, precision, compiled)
    method.check_size(settings.data.image_size)

    # run
    weights = [settings.vqgan.weights, getattr(settings, method_class.section).weights]
    recorded = {**method_class.sampling_keywords(settings), "eval": asdict(settings.eval)}
    about = method.describe() | describe_run(method_class.title, device, precision, compiled, recorded, weights)
    evaluate(method, cases, output, size=settings.data.image_size, batch_size=settings.eval.batch_size, about=about,
             samples=settings.eval.samples, dicom=settings.eval.dicom)
    return cases


# --- Running a method
# --------------------------------------------------------------------------------------------------------

def evaluate(method: Method, cases: list[Case], output, *, size: int, batch_size: int, about: dict, samples: int = 1,
             dicom: bool = False, measure: Measure | None = None) -> dict:
    """Write <output>/<name>.png in the input's size and depth, panels/<name>.png beside it, and summary.json. Returns
    the summary.

    size: side of the images that the method sees. about: what summary.json says of the run. samples: results drawn of
    each image (see `draw_samples`); above 1 their deviation is written too. dicom: DICOM inputs get a DICOM result as
    well, in dicom/. measure(cxr (1, S, S), result (1, S, S)) -> {"psnr": ...}: further figures of an image for the
    summary. Several processes share the images, each of which comes out as it would in one process. After a stop the
    same call goes on.
    """
    output = Path(output)
    if dicom and not any(images.is_dicom(case.path) for case in cases):
        raise UserError(f"eval.dicom=true, but none of the {len(cases)} images is a DICOM file ({cases[0].path})")

    # what is done already
    processes.tidy(output, *(output / folder for folder in results.FOLDERS))
    identity = {key: value for key, value in about.items() if key != "date"}
    identity |= {"size": size, "samples": samples, "dicom": dicom}
    record = Record(output, identity, cases)
    if record.done:
        processes.say(f"going on: {len(record.done)} of {len(cases)} images are in {output} already")

    # this process's share of what is left; `batch_size` results go through the networks together
    left = [case for case in cases if case.name not in record.done]
    images_per_batch = max(1, batch_size // samples)
    batches = []
    for start in range(0, len(left), images_per_batch):
        batches.append(left[start:start + images_per_batch])
    batches = batches[processes.rank()::processes.world_size()]

    # images through the method and onto the disk
    count = sum(len(batch) for batch in batches)
    with tqdm(total=count, unit="image", disable=processes.rank() > 0) as bar:
        for batch in batches:
            scans = [images.read(case.path) for case in batch]
            start = time.perf_counter()
            cxr = torch.stack([images.to_network(scan.pixels, size) for scan in scans])  # (B, 1, S, S)
            means, deviations = draw_samples(method, batch, cxr, batch_size, samples)
            seconds = (time.perf_counter() - start) / len(batch)
            for i, case in enumerate(batch):
                soft = pipelines.at_full_size(scans[i].pixels, cxr[i], means[i], method.residual)
                results.write_result(output, case.name, scans[i], soft, case.target)
                if dicom and images.is_dicom(case.path):
                    results.write_dicom(output, case.name, soft, case.path)
                notes = measure(cxr[i], means[i]) if measure else {}
                if samples > 1:
                    mean_deviation = results.write_deviation(output, case.name, scans[i], deviations[i], samples)
                    notes["mean_deviation"] = mean_deviation
                record.add(case, seconds, batch is not batches[0], notes)
                bar.update()
            record.save()

    # record
    summary = record.finish({**about, "compiled": method.compiled, "image_size": size, "batch_size": batch_size})
    if processes.rank() == 0:
        print(f"{len(cases)} images in {output} (panels beside them in {output / 'panels'})")
    return summary


def draw_samples(method: Method, cases: list[Case], cxr: torch.Tensor, batch_size: int,
                 samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(means, standard deviations), each as cxr (B, 1, S, S), of several results of each image, drawn with noise of
    different names.

    The first result of an image is the one that samples=1 gives. At most batch_size results are drawn together.
    """
    masks: list = [None] * len(cases)
    for i, case in enumerate(cases):
        if case.mask is not None:
            masks[i] = images.mask_to_network(images.read_mask(case.mask), cxr.shape[-1])

    # all results in a row: those of the first image, those of the second, ...
    places = [place for place in range(len(cases)) for _ in range(samples)]
    names = []
    for case in cases:
        names += [case.name, *(f"{case.name}/sample {number}" for number in range(1, samples))]
    hidden = processes.rank() > 0
    drawn = []
    for start in range(0, len(places), batch_size):
        batch = slice(start, start + batch_size)
        progress = partial(tqdm, desc=names[start], unit="step", leave=False, mininterval=1, disable=hidden)
        batch_masks = [masks[place] for place in places[batch]]
        drawn.append(method(cxr[places[batch]], names[batch], batch_masks, progress))
    stack = torch.cat(drawn).unflatten(0, (len(cases), samples))  # (B, samples, 1, S, S)
    correction = min(1, samples - 1)  # of one result the deviation is 0, not 0 / 0
    return stack.mean(1), stack.std(1, correction=correction)
