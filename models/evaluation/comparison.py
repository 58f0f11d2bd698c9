"""A comparison method over many X-rays: from settings to results. What comparison_eval.py calls."""

from dataclasses import fields
from pathlib import Path

import torch

from .. import comparison, config, images, sampling
from ..comparison import Translator
from ..comparison.base import image_noise
from ..runtime import compiling, processes
from ..runtime.device import autocast, pick_device, pick_precision
from ..runtime.files import UserError
from . import insertion, operations, run, shards
from .cases import find_cases
from .results import Form
from .summary import describe_run

# settings of section eval that these methods have no use for
UNREAD = ("masks", "samples", "paths", "snapshots", "refiner")
SCRIPT = "comparison_eval"  # the folder of its results, unless eval.output names another


class Suppression:
    """A translator, called as `run.evaluate` calls a method."""

    compiled = False

    def __init__(
        self,
        network: Translator,
        device: torch.device,
        precision: str,
        *,
        seed: int,
        residual: bool,
        strength: float,
    ):
        """seed: of the noise of a method that samples. residual, strength: as of pipelines.Pipeline."""
        self.network = network
        self.device = device
        self.precision = precision
        self.seed = seed
        self.residual = residual
        self.strength = strength

    @torch.inference_mode()
    def __call__(
        self, cxr: torch.Tensor, names: list[str], masks: list | None, progress: sampling.Progress = iter
    ) -> torch.Tensor:
        """Results (B, 1, S, S) in [-1, 1] of X-rays of the same shape; masks are not used."""
        on_device = cxr.to(self.device)
        noise = image_noise(self.seed, names, on_device)
        with autocast(self.device, self.precision):
            soft = self.network.suppress(on_device, noise, progress).float().cpu()
        if not torch.isfinite(soft).all():
            raise UserError(
                f"the result of {', '.join(names)[:100]} has pixels that are not finite numbers: the weights' training "
                "diverged"
            )
        return torch.lerp(cxr, soft.clamp(-1, 1), self.strength)


def main(settings: config.Settings) -> int:
    """Evaluate the method of these settings on the X-rays of eval.input. The script's exit status."""
    name = settings.comparison.method
    section = settings.eval
    if section.shard is not None and section.nodules:
        raise UserError("eval.nodules measures all X-rays together; run it without eval.shard")
    with processes.joined():
        # weights
        path = settings.comparison.weights
        if not Path(path).is_file():
            raise UserError(
                f"no weights at {path}; train them first (python comparison_train.py comparison.method={name}), or "
                "name the file with comparison.weights="
            )
        method_class = comparison.find(name)
        sampler = {}
        if name == "bs_diff":
            own = settings.comparison.bs_diff
            sampler = {"sampler": own.sampler, "steps": own.steps}
        network = method_class.load(path, **sampler)
        size = network.notes.get("image_size")
        if not isinstance(size, int) or size < network.least or size % network.multiple:
            raise UserError(f"the header of {path} does not say a size of images that {method_class.title} can take")
        if processes.rank() == 0:
            print(f"{method_class.title} with {path}, at {size} x {size}", flush=True)

        # X-rays
        cases = find_cases(section.input, settings.data.root, None, images.parse_limits(section.range))
        if section.dicom:
            run.require_dicom(cases)

        # what the record says of the run
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        unrecorded = UNREAD + run.ANY_TASK
        recorded = {
            field.name: getattr(section, field.name) for field in fields(section) if field.name not in unrecorded
        }
        about = describe_run(method_class.title, device, precision, False, {**sampler, "eval": recorded}, [path], size)
        record, reader, batch = run.open_record(section, about, cases, output_folder(settings))
        if section.shard == shards.MERGE:
            return run.merge_tasks(record, batch, section.panels)
        nodules = insertion.read_nodules(section.nodules) if section.nodules else []

        # run
        operation_count = operations.for_costs(len(cases), operations.of_translator, network, size)
        counted = {**network.describe(), **operation_count}
        compiling.prepare_for_inference(network, device, precision, compiled=False)
        network.to(device)
        method = Suppression(
            network, device, precision, seed=section.seed, residual=section.residual, strength=section.strength
        )
        summary = run.evaluate(
            method,
            record,
            batch_size=section.batch_size,
            dicom=section.dicom,
            about=counted,
            form=Form(section.size, section.bits, section.panels),
            reader=reader,
        )
        failed = summary.get("failed", {})
        if nodules:
            kept = insertion.evaluate(
                method,
                [case for case in cases if case.name not in failed],
                record.output.folder,
                size=size,
                nodules=nodules,
                count=section.inserted,
                seed=section.seed,
                title=method_class.title,
            )
            if processes.rank() == 0:
                print(kept)
    return run.say_failed(failed)


def output_folder(settings: config.Settings) -> Path:
    """A folder for each method below the script's own, unless eval.output names another place."""
    default = Path(settings.runs) / SCRIPT
    if Path(settings.eval.output) != default:
        return Path(settings.eval.output)
    return default / settings.comparison.method
