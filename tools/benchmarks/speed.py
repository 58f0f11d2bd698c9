"""Ours against the published way (published.py), in turn, in one run: a table of ratios.

    python tools/benchmarks/speed.py                               full size on a GPU; reduced networks on a CPU
    python tools/benchmarks/speed.py --full --only "U-Net call"    full size anywhere, this row only (may be repeated)
    python tools/benchmarks/speed.py --size 512 --rounds 5

Both run the same networks with random weights on the same noise; ours as the scripts run them on this device. The ratio
is that of the medians after a first round that warms up. Samplers that are run in part are extrapolated by their steps,
as the row says. Agreement is the PSNR of ours against the published way's result, relative to its range. Memory is what
the call takes beside the networks' weights: on a GPU as its allocator counts, on a CPU as the tensors that are alive at
once. A row that fails says so, and the others run.
"""

import argparse
import copy
import gc
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from memory import GIB, Alive
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import published  # noqa: E402

from models import config, losses, pipelines, schedulers  # noqa: E402
from models.runtime import compiling, processes  # noqa: E402
from models.runtime.device import autocast, pick_precision  # noqa: E402
from models.runtime.files import UserError  # noqa: E402
from models.training import loop  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN, PatchDiscriminator  # noqa: E402

REDUCED = [
    "unet.width=64",
    "unet.blocks=2",
    "unet.multipliers=[1,1,2,2]",
    "vqgan.network.channels=[64,128,256]",
    "vqgan.network.residual_channels=128",
]  # networks for a CPU
FULL_SIDE = 1024  # of the images at full size, pixels
REDUCED_SIDE = 256  # and of those beside the reduced networks
BATCH = 4  # of a training step
COUNTS = (1, 2, 4, 8)  # images together
METHODS = {"GL-LCM": pipelines.GLLCM, "BS-LDM": pipelines.BSLDM}
STEPS = {"GL-LCM": 50, "BS-LDM": 1000}  # of a whole sampler
STEPS_RUN = {  # of them, those that are run
    "reduced": {"GL-LCM": 5, "BS-LDM": 100},
    "cpu": {"GL-LCM": 3, "BS-LDM": 5},
    "cuda": {"GL-LCM": 50, "BS-LDM": 100},
}
OPERATIONS = {"GL-LCM": 68e12, "BS-LDM": 398e12}  # of an image at full size
PEAK = 790e12  # operations a second in bf16 of an NVIDIA H100 or H200
COLUMNS = ["", "published (s)", "ours (s)", "ratio", "agreement (dB)", "memory published (MiB)", "ours (MiB)", ""]
Ways = tuple[Callable, Callable]  # (the published way, ours)


class Bench:
    """The networks, once as published and once as ours, and what they work on."""

    def __init__(self, side: int, full: bool, precision: str, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.side = side
        self.full = full
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.settings = config.parse("", ("unet", "vqgan"), [] if full else REDUCED)
        self.precision = pick_precision(precision, self.device)
        self.compiled = compiling.should_compile("auto", self.device)
        self.steps_run = STEPS_RUN[self.device.type if full else "reduced"]

        # networks
        torch.manual_seed(0)
        vqgan = MLVQGAN(**asdict(self.settings.vqgan.network))
        self.vqgan = vqgan.to(self.device).eval().requires_grad_(False)
        self.unet = self.new_unet().eval().requires_grad_(False)
        # on a CPU the encoder computes in float32, see Pipeline.load
        self.our_vqgan = self.prepared(self.vqgan, self.precision if self.on_gpu else "float32")
        self.our_unet = self.prepared(self.unet, self.precision)

        # an X-ray, with lungs in its middle, and its latent
        self.cxr = torch.rand(1, 1, side, side, device=self.device) * 2 - 1
        self.mask = torch.zeros(1, side, side, dtype=torch.bool, device=self.device)
        self.mask[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
        with torch.no_grad():
            self.latent = self.vqgan.latent(self.cxr)

    def new_unet(self) -> ConditionalUNet:
        """A U-Net whose blocks do something, as trained ones do."""
        unet = ConditionalUNet(**asdict(self.settings.unet))
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return unet.to(self.device)

    def prepared(self, network: nn.Module, precision: str) -> nn.Module:
        """A copy of a network as the scripts run it, with weights in this precision."""
        return compiling.prepare_for_inference(copy.deepcopy(network), self.device, precision, self.compiled)

    def method(self, name: str, steps: int) -> pipelines.Pipeline:
        return METHODS[name](
            self.our_vqgan, self.our_unet, steps=steps, precision=self.precision, compiled=self.compiled
        )

    def call(self, method: pipelines.Pipeline, count: int) -> Callable:
        """The call of a method on so many X-rays together."""
        cxr = self.cxr.expand(count, -1, -1, -1)
        masks = self.mask.expand(count, -1, -1).cpu().numpy()
        names = [str(i) for i in range(count)]
        return lambda: method(cxr, names, masks)


# --- Rows: Bench -> (the published way, ours) -------------------------------------------------------------------------


def network_call(name: str, bench: Bench) -> Ways:
    """One call of a network without gradients."""
    method = bench.method("BS-LDM", 1)
    noisy = torch.cat([torch.randn_like(bench.latent), bench.latent], 1)  # (1, 2 C, h, w)
    t = torch.full((1,), 500, device=bench.device)
    calls = {
        "U-Net call": (lambda: bench.unet(noisy, t), lambda: method.estimator(noisy, t)),
        "VQGAN encode": (lambda: bench.vqgan.latent(bench.cxr), lambda: method.encode(bench.cxr)),
        "VQGAN decode": (lambda: bench.vqgan.decode(bench.latent), lambda: method.decode(bench.latent)),
    }
    published_call, our_call = calls[name]

    def as_published() -> torch.Tensor:
        with torch.inference_mode():
            return published_call()

    def ours() -> torch.Tensor:
        with torch.inference_mode(), autocast(bench.device, bench.precision):
            return our_call()

    return as_published, ours


def image(bench: Bench, name: str, steps: int) -> Ways:
    """One image by so many steps of a method; the published way is given its noise, the same as ours, without cost."""
    method = bench.method(name, steps)
    draw = method.draw(["0"], bench.latent.shape)
    names = ["initial"]
    for step in range(steps):
        names += [f"global/{step}", f"local/{step}"]
    noise = {key: draw(key) for key in names}
    if name == "GL-LCM":
        as_published = partial(published.gllcm, bench.vqgan, bench.unet, bench.cxr, bench.mask, noise.get, steps)
    else:
        as_published = partial(published.bsldm, bench.vqgan, bench.unet, bench.cxr, noise.get, steps)
    return as_published, bench.call(method, 1)


def estimator_step(alpha_bar: torch.Tensor, average: float, bench: Bench) -> Ways:
    """A training step of a noise estimator. alpha_bar: its schedule; average: its EMA's decay, 0 for none."""
    objective = losses.denoising_objective(alpha_bar, 0.1)

    def build(ours: bool) -> loop.Trainer:
        unet = bench.new_unet()
        if ours and bench.compiled:
            example = (bench.latent.repeat(BATCH, 2, 1, 1), torch.full((BATCH,), 500, device=bench.device))
            compiling.compile_for_training([unet], unet, example, bench.precision, processes.say)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-5, fused=ours and bench.on_gpu)
        return published.trainer(
            {"unet": unet},
            {"unet": optimizer},
            objective,
            batch=BATCH,
            average=average,
            precision=bench.precision if ours else "float32",
        )

    as_published = published.encoding_step(bench.vqgan, build(ours=False), bench.cxr.expand(BATCH, -1, -1, -1))
    latents = bench.latent.expand(BATCH, -1, -1, -1).cpu()  # on the CPU, as the cache gives them
    return as_published, training_step(build(ours=True), {"cxr": latents, "soft": latents})


def autoencoder_step(bench: Bench) -> Ways:
    """A training step of the autoencoder with all losses.

    The reduced one is without LPIPS, which would be most of it and is the same in both.
    """
    settings = bench.settings.vqgan
    loss = asdict(settings.loss)
    if not bench.full:
        loss.update(perceptual=0.0, ms_ssim=1.0)
    objective = losses.autoencoder_objective(losses.HybridLoss(**loss).to(bench.device))
    batch = {"image": bench.cxr.expand(BATCH, -1, -1, -1)}

    def build(ours: bool) -> loop.Trainer:
        vqgan = MLVQGAN(**asdict(settings.network)).to(bench.device)
        discriminator = PatchDiscriminator(**asdict(settings.discriminator)).to(bench.device)
        if ours and bench.compiled:
            networks = [vqgan.encoder, vqgan.decoder]
            compiling.compile_for_training(
                networks, nn.Sequential(*networks), (batch["image"],), bench.precision, processes.say
            )
        trained = [parameter for parameter in vqgan.parameters() if parameter.requires_grad]
        fused = ours and bench.on_gpu
        optimizers = {
            "vqgan": torch.optim.Adam(trained, fused=fused),
            "discriminator": torch.optim.Adam(discriminator.parameters(), fused=fused),
        }
        return published.trainer(
            {"vqgan": vqgan, "discriminator": discriminator},
            optimizers,
            objective,
            batch=BATCH,
            average=0.0,
            precision=bench.precision if ours else "float32",
        )

    return training_step(build(ours=False), batch), training_step(build(ours=True), batch)


def training_step(trainer: loop.Trainer, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    def step() -> None:
        trainer.update(batch, trainer.data.names)

    return step


# --- Measuring --------------------------------------------------------------------------------------------------------


def processor_time() -> float:
    """Seconds that processors have worked for this process and for those that it started."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def seconds(call: Callable, clock: Callable[[], float]) -> tuple[float, object]:
    """(how long a call takes, its result)."""
    began = clock()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began, result


def in_turn(calls: tuple[Callable, ...], bench: Bench, rounds: int) -> tuple[list[float], list]:
    """(median seconds of each call, their last results), after a round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    results: list = [None for _ in calls]
    for turn in range(rounds + 1):
        for i, call in enumerate(calls):
            elapsed, results[i] = seconds(call, bench.clock)
            if turn > 0:
                times[i].append(elapsed)
    return [statistics.median(several) for several in times], results


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yields a function that tells, after the block, how many GiB the block took at most."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: (torch.cuda.max_memory_allocated() - before) / GIB
    else:
        with Alive() as alive:
            yield lambda: alive.peak / GIB


def memory_of(call: Callable) -> float:
    """GiB that a call takes at most."""
    with peak_memory() as peak:
        call()
    return peak()


def agreement(expected, found) -> str:
    """PSNR in dB, relative to the expected range; of a training step, which returns nothing, there is none."""
    if not isinstance(expected, torch.Tensor):
        return ""
    expected = expected.double().cpu()
    found = found.double().cpu()
    error = (expected - found).square().mean() / (expected.max() - expected.min()) ** 2
    return "equal" if error == 0 else f"{-10 * error.log10().item():.0f}"


# --- The table --------------------------------------------------------------------------------------------------------


def compare(name: str, build: Callable[[Bench], Ways], note: str, bench: Bench, rounds: int) -> None:
    ways = build(bench)
    (plain, ours), results = in_turn(ways, bench, rounds)
    print_row(name, plain, ours, agreement(*results), [memory_of(call) for call in ways], note)


def compare_images(name: str, bench: Bench, rounds: int) -> None:
    """An image of a whole sampler; from a run of one step and one of several, where the whole would take too long."""
    run = bench.steps_run[name]
    whole = STEPS[name]
    ways = image(bench, name, run)
    note = f"{whole} steps"
    if run == whole:
        times, results = in_turn(ways, bench, rounds)
    else:
        (*long, short_plain, short_ours), results = in_turn((*ways, *image(bench, name, 1)), bench, rounds)
        times = []
        for several, one in zip(long, (short_plain, short_ours)):
            a_step = (several - one) / (run - 1)
            times.append(several + (whole - run) * a_step)
        results = results[:2]
        note += f", extrapolated from {run}"
    if bench.on_gpu and bench.full:
        note += f"; {throughput(name, times[1])}"
    print_row(f"{name} image", *times, agreement(*results), [memory_of(call) for call in ways], note)


def compare_batches(bench: Bench, rounds: int) -> None:
    """Ours, several images together, against one at a time."""
    steps = bench.steps_run["GL-LCM"]
    alone = 0.0  # seconds
    for count in COUNTS:
        method = bench.method("GL-LCM", steps)  # a new one, since it is compiled for this number of images
        call = bench.call(method, count)
        (together,), _ = in_turn((call,), bench, rounds)
        each = together / count
        if count == 1:
            alone = each
        note = f"{steps} steps; {1 / each:.2f} images/s, {alone / each:.2f} times as fast as alone"
        if bench.on_gpu and bench.full:
            note += f", {throughput('GL-LCM', each)}"
        print_row(f"GL-LCM, {count} together, an image", None, each, "", [None, memory_of(call)], note)


def throughput(name: str, each: float) -> str:
    """Images a second, and the part of the GPU's peak that they use. each: seconds an image."""
    return f"{1 / each:.2f} images/s, {OPERATIONS[name] / each / PEAK:.0%} of {PEAK / 1e12:.0f} T/s"


def compare_starts(bench: Bench, rounds: int) -> None:
    """A script that does nothing else, against importing PyTorch and torchvision."""

    def python(*words: str) -> Callable:
        return partial(subprocess.run, [sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT, check=True)

    calls = (python("-c", "import torch, torchvision"), python("batch_lcm_eval.py", "--help"))
    (imports, script), _ = in_turn(calls, bench, rounds)
    print_row(
        "start of a script",
        imports,
        script,
        "",
        [None, None],
        "in the first column: importing torch and torchvision alone",
    )


def print_row(name: str, plain: float | None, ours: float, agrees: str, gib: list[float | None], note: str) -> None:
    """plain, ours: seconds; gib: memory of both. None where there is nothing to show."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    mib = [None if value is None else value * 1024 for value in gib]
    ratio = None if plain is None else plain / ours
    cells = [
        name,
        shown(plain, ".3f"),
        shown(ours, ".3f"),
        shown(ratio, ".2f"),
        agrees,
        shown(mib[0], ".3g"),
        shown(mib[1], ".3g"),
        note,
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def table_rows(full: bool) -> dict[str, Callable[[Bench, int], None]]:
    """Name of a row -> what measures and prints it, called with (bench, rounds)."""
    rows: dict[str, Callable[[Bench, int], None]] = {}
    for name in ("U-Net call", "VQGAN encode", "VQGAN decode"):
        rows[name] = partial(compare, name, partial(network_call, name), "")
    for name in STEPS:
        rows[f"{name} image"] = partial(compare_images, name)
    rows["GL-LCM in batches"] = compare_batches

    batch = f"batch {BATCH}"
    steps = {
        "LDM training step": (partial(estimator_step, schedulers.squared_cosine(), 0.995), batch),
        "LCM training step": (partial(estimator_step, schedulers.scaled_linear(), 0.0), batch),
        "VQGAN training step": (autoencoder_step, batch if full else f"{batch}, without LPIPS"),
    }
    for name, (build, note) in steps.items():
        rows[name] = partial(compare, name, build, note)
    rows["start"] = compare_starts
    return rows


def heading(bench: Bench, rounds: int) -> str:
    """What was measured on what."""
    machine = f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    if bench.on_gpu:
        machine = torch.cuda.get_device_name()
    millions = []
    for network in (bench.unet, bench.vqgan):
        millions.append(sum(parameter.numel() for parameter in network.parameters()) / 1e6)
    compiled = "compiled" if bench.compiled else "not compiled"
    reduced = "" if bench.full else " (reduced)"
    return (
        f"{machine}; PyTorch {torch.__version__}; {time.strftime('%Y-%m-%d')}; "
        f"ours in {bench.precision}, {compiled}; {bench.side} x {bench.side}, "
        f"U-Net of {millions[0]:.0f} M parameters, VQGAN of {millions[1]:.0f} M{reduced}; median of {rounds}"
        f"{'' if bench.clock is time.perf_counter else ', seconds of the processor'}"
    )


def main() -> None:
    # options
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=int, help=f"side of the images, pixels ({FULL_SIDE} at full size, else {REDUCED_SIDE})"
    )
    parser.add_argument("--full", action="store_true", help="the papers' networks on a CPU too")
    parser.add_argument("--only", action="append", metavar="ROW", help="this row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "float32"),
        default="auto",
        help="of ours; auto is bf16 on a GPU, and on a CPU that is faster with it (models/runtime/device.py)",
    )
    parser.add_argument(
        "--processor",
        action="store_true",
        help="count the processor's seconds, where other programs keep it busy; with OMP_NUM_THREADS=1, since threads "
        "that wait count too",
    )
    options = parser.parse_args()
    full = options.full or torch.cuda.is_available()
    rows = table_rows(full)
    unknown = set(options.only or ()) - rows.keys()
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(rows)}")

    # networks
    side = options.size or (FULL_SIDE if full else REDUCED_SIDE)
    clock = processor_time if options.processor else time.perf_counter
    bench = Bench(side, full, options.precision, clock)

    # the table
    print(f"{heading(bench, options.rounds)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for name in options.only or rows:
        try:
            rows[name](bench, options.rounds)
        except (RuntimeError, ValueError, UserError, OSError, subprocess.CalledProcessError) as error:
            reason = " ".join(str(error).split())[:150]
            print(f"| {name} | | | | | | | failed: {type(error).__name__}: {reason} |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
