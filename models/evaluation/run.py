"""The evaluation of many X-rays: what there is, results in the inputs' size and depth, panels, a record of the run and its cost."""
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import images
from ..data import lists
from ..runtime import checkpoint, processes
from ..runtime.files import UserError
from . import pictures

SERIES = "bone-suppressed, not for diagnosis"  # description of a DICOM result's series
UNFINISHED = "unfinished_{}.json"  # what each process has done of a run that is not at its end
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts memory in


@dataclass(frozen=True)
class Case:
    """One X-ray to evaluate, with what lies beside it."""
    name: str
    path: Path
    mask: Path | None
    truth: Path | None

    @property
    def content(self) -> str:
        """What its result depends on: the X-ray's and the mask's content."""
        return "/".join(checkpoint.digest(path) for path in (self.path, self.mask) if path)


def find_cases(what, root, masks) -> list[Case]:
    """The X-rays of eval.input, all read once, so that a bad one is named before a network is built.

    masks: folder of lung masks; None: <...>/Mask beside a folder CXR/, as the truth is looked for in <...>/BS.
    """
    found = lists.inputs(what, root)
    given = images.find(masks) if masks else None
    cases = [Case(name, path, given.get(name) if given is not None else lists.beside(path, "Mask"), lists.beside(path, "BS"))
             for name, path in found.items()]
    for case in tqdm(cases, desc="checking", unit="image", leave=False, disable=len(cases) < 20 or processes.rank() > 0):
        picture = images.check(images.read(case.path))
        if images.inverted(picture.pixels):
            processes.say(f"note: bones look dark in {case.path}; the methods expect bright ones")
        if case.mask is not None:
            mask = images.read_mask(case.mask)
            if mask.shape != picture.pixels.shape:
                raise UserError(f"the mask {case.mask} is {mask.shape[1]} x {mask.shape[0]}, "
                                f"but {case.path} {picture.pixels.shape[1]} x {picture.pixels.shape[0]}")
    missing = [case.name for case in cases if given is not None and case.mask is None]
    if missing:
        raise UserError(f"{masks} has no mask for {lists.some(missing)}")
    return cases


def evaluate(run: Callable, cases: list[Case], output, *, size: int, batch_size: int, about: dict, notes: dict | None = None,
             samples: int = 1, dicom: bool = False) -> int:
    """Write <output>/<name>.png in the input's size and depth, panels/<name>.png beside it, and summary.json.

    run(cxr (B, 1, S, S), names, masks, progress) -> (B, 1, S, S); masks: (S, S) or None for each; run.compiled: where there is
    one, whether it ran compiled; run.residual: whether it gives the CXR less something, and then that something is taken from the input
    at its full size, whose detail so remains. about: what else summary.json says of the run. notes: {what: {name: value}} that run fills, for
    summary.json; at the end it holds all images. samples: see `draw_samples`; with more than one their deviation is written too.
    dicom: DICOM inputs get a DICOM result as well, in dicom/.
    Several processes share the images, each of which comes out as it would in one process. After a stop the same call goes on.
    """
    output, notes = Path(output), {} if notes is None else notes
    if dicom and not any(images.is_dicom(case.path) for case in cases):
        raise UserError(f"eval.dicom=true, but none of the {len(cases)} images is a DICOM file ({cases[0].path})")
    processes.tidy(output, *(output / folder for folder in ("panels", "latents", "deviation", "overlays", "dicom")))
    identity = {key: value for key, value in about.items() if key != "date"} | {"size": size, "samples": samples, "dicom": dicom}
    done, own = unfinished(output, identity, cases), {}
    left, together, quiet = [case for case in cases if case.name not in done], max(1, batch_size // samples), processes.rank() > 0
    batches = [left[start:start + together] for start in range(0, len(left), together)][processes.rank()::processes.world_size()]
    if done:
        processes.say(f"going on: {len(done)} of {len(cases)} images are in {output} already")
    with tqdm(total=sum(map(len, batches)), unit="image", disable=quiet) as bar:
        for batch in batches:
            scans = [images.read(case.path) for case in batch]
            began = time.perf_counter()
            cxr = torch.stack([images.to_network(scan.pixels, size) for scan in scans])  # (B, 1, S, S)
            means, spreads = draw_samples(run, batch, cxr, batch_size, samples, quiet)
            elapsed = (time.perf_counter() - began) / len(batch)
            for case, scan, seen, mean, spread in zip(batch, scans, cxr, means, spreads):
                soft = images.from_network(mean, scan.pixels.shape)
                if getattr(run, "residual", False):
                    soft = np.clip(scan.pixels + (soft - images.from_network(seen, scan.pixels.shape)), 0, 1)
                write_result(output, case, scan, soft)
                if dicom and images.is_dicom(case.path):
                    images.write_dicom(output / "dicom" / f"{case.name}.dcm", soft, case.path, SERIES)
                if samples > 1:
                    notes.setdefault("mean_deviation", {})[case.name] = write_deviation(output, case, scan, spread, samples)
                own[case.name] = {"content": case.content, "seconds": round(elapsed, 3), "warm": batch is not batches[0],
                                  "notes": {what: values[case.name] for what, values in notes.items()}}
                bar.update()
            write_json(output / UNFINISHED.format(processes.rank()), {"identity": identity, "images": own | (done if not quiet else {})})
    everyone = {name: entry for part in [done, *processes.all_gather_objects(own)] for name, entry in part.items()}
    entries = {case.name: everyone[case.name] for case in cases}
    notes |= {what: {name: entry["notes"][what] for name, entry in entries.items()} for what in next(iter(entries.values()))["notes"]}
    seconds = {name: entry["seconds"] for name, entry in entries.items()}
    cost = measured(seconds, {name: entry["seconds"] for name, entry in entries.items() if entry["warm"]})
    ended = {"compiled": run.compiled} if hasattr(run, "compiled") else {}  # compiling may have failed on the way
    if not quiet:
        write_json(output / "summary.json", {**about, **ended, **cost, **notes, "image_size": size, "batch_size": batch_size, "images": len(cases),
                                             "processes": processes.world_size(), "seconds_per_image": seconds})
        for path in output.glob(UNFINISHED.format("*")):
            path.unlink(missing_ok=True)
        print(f"{len(cases)} images in {output} (panels beside them in {output / 'panels'})")
    return 0


def unfinished(output: Path, identity: dict, cases: list[Case]) -> dict[str, dict]:
    """What a stopped run of the same kind has left: {name: its entry} of the images that are there and whose inputs are unchanged."""
    found: dict[str, dict] = {}
    for path in sorted(output.glob(UNFINISHED.format("*"))):
        with suppress(OSError, ValueError, KeyError, TypeError):  # it was being written, or is somebody else's: those images are made again
            record = json.loads(path.read_text(encoding="utf-8"))
            found |= record["images"] if record["identity"] == json.loads(json.dumps(identity)) else {}
    processes.barrier()  # all have read before any writes
    return {case.name: found[case.name] for case in cases
            if case.name in found and found[case.name]["content"] == case.content and (output / f"{case.name}.png").is_file()}


def draw_samples(run: Callable, cases: list[Case], cxr: torch.Tensor, batch_size: int, samples: int,
                 quiet: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(means, standard deviations), each as cxr (B, 1, S, S), of several results of each image, drawn with noise of different names.

    The first is the one that samples=1 gives. At most batch_size results are drawn together.
    """
    masks = [images.mask_to_network(images.read_mask(case.mask), cxr.shape[-1]) if case.mask else None for case in cases]
    wanted, results = [(place, number) for place in range(len(cases)) for number in range(samples)], []
    for start in range(0, len(wanted), batch_size):
        places, numbers = zip(*wanted[start:start + batch_size])
        names = [f"{cases[place].name}/sample {number}" if number else cases[place].name for place, number in zip(places, numbers)]
        results.append(run(cxr[list(places)], names, [masks[place] for place in places],
                           lambda steps, name=names[0]: tqdm(steps, desc=name, unit="step", leave=False, mininterval=1, disable=quiet)))
    drawn = torch.cat(results).unflatten(0, (len(cases), samples))  # (B, samples, 1, S, S)
    return drawn.mean(1), drawn.std(1, correction=min(1, samples - 1))


def measured(seconds: dict[str, float], warm: dict[str, float]) -> dict:
    """What summary.json says of the cost: the median time of an image and the most memory that any process took.

    seconds: of every image; warm: of those after their process's first batch, which warms up.
    """
    on_gpu = torch.cuda.is_initialized()
    peak = (max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT)
    return {"seconds": float(np.median(list((warm or seconds).values()))), "seconds_after_warm_up": bool(warm),
            "peak_memory": int(processes.all_reduce_max(peak)[0]), "peak_memory_of": "allocated on the GPU" if on_gpu else "of the whole process"}


def write_result(output: Path, case: Case, picture: images.Picture, soft: np.ndarray) -> None:
    """The result, and the panel CXR | result | truth where known | what was taken away (grey: nothing)."""
    images.write(output / f"{case.name}.png", soft, picture.bits)
    columns = [picture.pixels, soft]
    if case.truth is not None:
        columns.append(images.resize(images.read(case.truth).pixels, soft.shape))
    columns.append(pictures.taken_away(picture.pixels, soft))
    images.write(output / "panels" / f"{case.name}.png", np.concatenate(columns, 1))


def write_deviation(output: Path, case: Case, scan: images.Picture, spread: torch.Tensor, samples: int) -> float:
    """The standard deviation (1, S, S) of several results of an image, in [-1, 1]: deviation/<name>.png and overlays/<name>.png.

    deviation/: 16 bits, white is 1 (all of the grey scale). overlays/: in colour on the CXR, with its scale. The mean over the image.
    """
    deviation = images.from_network(images.to_signed(spread / 2), scan.pixels.shape)  # a width, so only the factor of to_unit counts
    images.write(output / "deviation" / f"{case.name}.png", deviation, 16)
    label = f"standard deviation of {samples} results (share of the grey scale)"
    images.write_file(output / "overlays" / f"{case.name}.png", pictures.overlay(scan.pixels, deviation, label))
    return round(float(deviation.mean()), 6)


def write_json(path: Path, tree: dict) -> None:
    images.write_file(path, (json.dumps(tree, indent=1) + "\n").encode())


def describe_run(method: str, device: torch.device, precision: str, compiled: bool, settings: dict, *weights) -> dict:
    """What summary.json says of a run."""
    return {"method": method, "settings": settings, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else
            f"CPU, {torch.get_num_threads()} threads ({platform.machine()})", "precision": precision, "compiled": compiled,
            "torch": torch.__version__, "weights": {str(path): checkpoint.digest(path) for path in weights},
            "date": time.strftime("%Y-%m-%d %H:%M:%S")}
