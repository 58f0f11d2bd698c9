"""Ours against the published way (published.py), in turn, in one run: a table of ratios.

    python tools/benchmarks/speed.py                                    full size on a GPU; smaller networks and images on a CPU
    python tools/benchmarks/speed.py --full --only "U-Net call"         full size anywhere, this row only (--only may be repeated)
    python tools/benchmarks/speed.py --size 512 --rounds 5

Both run the same networks with random weights on the same noise; ours as the scripts run them on this device. The ratio is that of the
medians after a first round that warms up. Walks that are run in part are extrapolated by their steps, as the row says. Agreement is the
PSNR of ours against the published way's result, relative to its range. Memory is what the call takes beside the networks' weights: on a
GPU as its allocator counts, on a CPU as the tensors that are alive at once. A row that fails says so and the others run.
"""
import argparse
import copy
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
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

REDUCED = ["unet.width=64", "unet.blocks=2", "unet.multipliers=[1,1,2,2]", "vqgan.network.channels=[64,128,256]",
           "vqgan.network.residual_channels=128"]
SMALL, FULL = 256, 1024                        # sides of the images
STEPS = {"GL-LCM": 50, "BS-LDM": 1000}         # of a whole walk
RUN = {"reduced": {"GL-LCM": 5, "BS-LDM": 100}, "cpu": {"GL-LCM": 3, "BS-LDM": 5}, "cuda": {"GL-LCM": 50, "BS-LDM": 100}}  # of them here
OPERATIONS = {"GL-LCM": 68e12, "BS-LDM": 398e12}  # of an image at full size
PEAK = 790e12                                  # operations a second in bf16 of an NVIDIA H100 or H200
COUNTS = (1, 2, 4, 8)                          # images together
BATCH = 4                                      # of a training step
Ways = tuple[Callable, Callable]               # the published way, ours


class Bench:
    """The networks, once as published and once as ours, and what they work on."""

    def __init__(self, size: int, full: bool, precision: str):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings, self.size, self.full = config.parse("", ("unet", "vqgan"), [] if full else REDUCED), size, full
        self.precision, self.compiled = pick_precision(precision, self.device), compiling.should_compile("auto", self.device)
        torch.manual_seed(0)
        self.vqgan = MLVQGAN(**asdict(self.settings.vqgan.network)).to(self.device).eval().requires_grad_(False)
        self.unet = self.new_unet().eval().requires_grad_(False)
        self.our_vqgan, self.our_unet = (compiling.prepare_for_inference(copy.deepcopy(network), self.device, self.precision, self.compiled)
                                         for network in (self.vqgan, self.unet))
        self.run = RUN[self.device.type if full else "reduced"]
        self.cxr = torch.rand(1, 1, size, size, device=self.device) * 2 - 1
        self.mask = torch.zeros(1, size, size, dtype=torch.bool, device=self.device)
        self.mask[:, size // 4:-size // 4, size // 4:-size // 4] = True
        with torch.no_grad():
            self.latent = self.vqgan.latent(self.cxr)

    def new_unet(self) -> ConditionalUNet:
        """A U-Net whose blocks do something, as trained ones do."""
        unet = ConditionalUNet(**asdict(self.settings.unet))
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return unet.to(self.device)

    def method(self, name: str, steps: int) -> pipelines.Pipeline:
        kind = {"GL-LCM": pipelines.GLLCM, "BS-LDM": pipelines.BSLDM}[name]
        return kind(self.our_vqgan, self.our_unet, steps=steps, precision=self.precision, compiled=self.compiled)

    def calls(self, method: pipelines.Pipeline, count: int) -> Callable:
        names, masks = [str(i) for i in range(count)], self.mask.expand(count, -1, -1).cpu().numpy()
        return lambda: method(self.cxr.expand(count, -1, -1, -1), names, masks)


# --- Rows: Bench -> (the published way, ours) ----------------------------------------------------------------------------------

def network_call(bench: Bench, part: str) -> Ways:
    """One call of a network without gradients."""
    method = bench.method("BS-LDM", 1)
    noisy, t = torch.cat([torch.randn_like(bench.latent), bench.latent], 1), torch.full((1,), 500, device=bench.device)
    both = {"U-Net call": (lambda: bench.unet(noisy, t), lambda: method.estimator(noisy, t)),
            "VQGAN encode": (lambda: bench.vqgan.latent(bench.cxr), lambda: method.encode(bench.cxr)),
            "VQGAN decode": (lambda: bench.vqgan.decode(bench.latent), lambda: method.decode(bench.latent))}[part]

    def plainly() -> torch.Tensor:
        with torch.inference_mode():
            return both[0]()

    def ours() -> torch.Tensor:
        with torch.inference_mode(), autocast(bench.device, bench.precision):
            return both[1]()

    return plainly, ours


def image(bench: Bench, name: str, steps: int) -> Ways:
    """One image by so many steps of a method; the published way gets its noise for nothing, the same as ours."""
    method = bench.method(name, steps)
    draw = method.draw(["0"], bench.latent.shape)
    noise = {key: draw(key) for key in ["initial", *(f"{path}/{j}" for path in ("global", "local") for j in range(steps))]}
    if name == "GL-LCM":
        return lambda: published.gllcm(bench.vqgan, bench.unet, bench.cxr, bench.mask, noise.__getitem__, steps), bench.calls(method, 1)
    return lambda: published.bsldm(bench.vqgan, bench.unet, bench.cxr, noise.__getitem__, steps), bench.calls(method, 1)


def estimator_step(bench: Bench, name: str) -> Ways:
    """A training step of a noise estimator."""
    table, average = {"LDM": (schedulers.squared_cosine(), 0.995), "LCM": (schedulers.scaled_linear(), 0.0)}[name]
    objective = losses.denoising_objective(table, 0.1)

    def build(ours: bool) -> loop.Trainer:
        unet = bench.new_unet()
        if ours and bench.compiled:
            example = bench.latent.repeat(BATCH, 2, 1, 1), torch.full((BATCH,), 500, device=bench.device)
            compiling.compile_for_training([unet], unet, example, bench.precision, processes.say)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-5, fused=ours and bench.device.type == "cuda")
        return published.trainer({"unet": unet}, {"unet": optimizer}, objective, batch=BATCH, average=average,
                                 precision=bench.precision if ours else "float32")

    plain, fast = build(False), build(True)
    latents = {name: bench.latent.expand(BATCH, -1, -1, -1).cpu() for name in ("cxr", "soft")}  # as the cache gives them
    return (published.encoding_step(bench.vqgan, plain, bench.cxr.expand(BATCH, -1, -1, -1)),
            lambda: fast.update(latents, fast.data.names) and None)


def vqgan_step(bench: Bench) -> Ways:
    """A training step of the autoencoder with all losses; reduced, without LPIPS, which would be most of it and is the same in both."""
    loss = asdict(bench.settings.vqgan.loss) | ({} if bench.full else {"perceptual": 0.0, "ms_ssim": 1.0})
    hybrid = losses.HybridLoss(**loss).to(bench.device)

    objective = losses.autoencoder_objective(hybrid)

    def build(ours: bool) -> loop.Trainer:
        chosen = bench.settings.vqgan
        networks = {"vqgan": MLVQGAN(**asdict(chosen.network)), "discriminator": PatchDiscriminator(**asdict(chosen.discriminator))}
        networks = {name: network.to(bench.device) for name, network in networks.items()}
        if ours and bench.compiled:
            parts = [networks["vqgan"].encoder, networks["vqgan"].decoder]
            compiling.compile_for_training(parts, nn.Sequential(*parts), (pictures["image"],), bench.precision, processes.say)
        optimizers = {name: torch.optim.Adam([p for p in network.parameters() if p.requires_grad], fused=ours and bench.device.type == "cuda")
                      for name, network in networks.items()}
        return published.trainer(networks, optimizers, objective, batch=BATCH, average=0.0, precision=bench.precision if ours else "float32")

    pictures = {"image": bench.cxr.expand(BATCH, -1, -1, -1)}
    plain, fast = build(False), build(True)
    return lambda: plain.update(pictures, plain.data.names) and None, lambda: fast.update(pictures, fast.data.names) and None


# --- Measuring -----------------------------------------------------------------------------------------------------------------

def seconds(call: Callable) -> tuple[float, object]:
    """(how long a call takes, its result)."""
    began = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def in_turn(ways: tuple[Callable, ...], rounds: int) -> tuple[list[float], list]:
    """(median seconds of each, their last results)."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):  # the first warms up
        results = []
        for found, call in zip(times, ways):
            elapsed, result = seconds(call)
            found += [elapsed] * (turn > 0)
            results.append(result)
    return [statistics.median(found) for found in times], results


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """Yields a function that says, afterwards, how many GiB the block took at most."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: (torch.cuda.max_memory_allocated() - before) / GIB
    else:
        with Alive() as alive:
            yield lambda: alive.peak / GIB


def taken(call: Callable) -> float:
    with memory() as most:
        call()
    return most()


def agreement(expected, found) -> str:
    """PSNR in dB, relative to the expected range; of a training step there is none."""
    if not isinstance(expected, torch.Tensor):
        return ""
    expected, found = expected.double().cpu(), found.double().cpu()
    error = (expected - found).square().mean() / (expected.max() - expected.min()) ** 2
    return "equal" if error == 0 else f"{-10 * error.log10().item():.0f}"


def compare(name: str, ways: Ways, rounds: int, note: str = "") -> None:
    (plain, ours), results = in_turn(ways, rounds)
    took = [taken(call) for call in ways]
    line(name, plain, ours, agreement(*results), took, note)


def compare_images(bench: Bench, name: str, rounds: int) -> None:
    """A walk of one step and one of several tell what a step and what all the rest cost."""
    run, whole = bench.run[name], STEPS[name]
    several = image(bench, name, run)
    if run == whole:
        times, results = in_turn(several, rounds)
    else:
        both, (*results, _, _) = in_turn((*several, *image(bench, name, 1)), rounds)
        times = [long + (whole - run) * (long - short) / (run - 1) for long, short in zip(both[:2], both[2:])]
    note = f"{whole} steps" + (f", extrapolated from {run}" if run < whole else "")
    if bench.device.type == "cuda" and bench.full:
        note += f"; {1 / times[1]:.2f} images/s, {OPERATIONS[name] / times[1] / PEAK:.0%} of {PEAK / 1e12:.0f} T/s"
    line(f"{name} image", *times, agreement(*results), [taken(call) for call in several], note)


def compare_batches(bench: Bench, rounds: int) -> None:
    """Ours, several images together, against one at a time."""
    steps = bench.run["GL-LCM"]
    method = bench.method("GL-LCM", steps)
    for count in COUNTS:
        if bench.compiled:
            method = bench.method("GL-LCM", steps)  # compiled for this number of images
        calls = bench.calls(method, count)
        (time_taken,), _ = in_turn((calls,), rounds)
        each = time_taken / count
        first = each if count == 1 else first  # noqa: F821
        note = f"{steps} steps; {1 / each:.2f} images/s, {first / each:.2f} times as fast as alone"
        if bench.device.type == "cuda" and bench.full:
            note += f", {OPERATIONS['GL-LCM'] / each / PEAK:.0%} of {PEAK / 1e12:.0f} T/s"
        line(f"GL-LCM, {count} together, an image", None, each, "", [None, taken(calls)], note)


def compare_starts(rounds: int) -> None:
    """A script that does nothing else, against importing PyTorch and torchvision."""
    python = lambda *words: lambda: subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT, check=True)  # noqa: E731
    (bare, script), _ = in_turn((python("-c", "import torch, torchvision"), python("batch_lcm_eval.py", "--help")), rounds)
    line("start of a script", bare, script, "", [None, None], "in the first column: importing torch and torchvision alone")


def line(name: str, plain: float | None, ours: float, agrees: str, took: list[float | None], note: str) -> None:
    show = lambda value, digits: "" if value is None else f"{value:.{digits}f}"  # noqa: E731
    size = lambda value: "" if value is None else f"{value * 1024:.3g}"  # noqa: E731
    ratio = "" if plain is None else f"{plain / ours:.2f}"
    print(f"| {name} | {show(plain, 3)} | {show(ours, 3)} | {ratio} | {agrees} | {size(took[0])} | {size(took[1])} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help=f"side of the images, pixels ({FULL} at full size, else {SMALL})")
    parser.add_argument("--full", action="store_true", help="the papers' networks on a CPU too")
    parser.add_argument("--only", action="append", metavar="ROW", help="this row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto", help="of ours; auto is float32 on a CPU, "
                        "where bf16 pays only with instructions for it (lscpu: avx512_bf16, amx_bf16)")
    options = parser.parse_args()
    full = options.full or torch.cuda.is_available()
    bench = Bench(options.size or (FULL if full else SMALL), full, options.precision)
    less = "" if bench.full else ", without LPIPS"
    rows = {name: lambda name=name: compare(name, network_call(bench, name), options.rounds)
            for name in ("U-Net call", "VQGAN encode", "VQGAN decode")}
    rows |= {f"{name} image": lambda name=name: compare_images(bench, name, options.rounds) for name in STEPS}
    rows["GL-LCM in batches"] = lambda: compare_batches(bench, options.rounds)
    steps = {f"{name} training step": lambda name=name: estimator_step(bench, name) for name in ("LDM", "LCM")}
    steps["VQGAN training step"] = lambda: vqgan_step(bench)
    notes = {"VQGAN training step": f"batch {BATCH}{less}"}
    rows |= {name: lambda name=name: compare(name, steps[name](), options.rounds, notes.get(name, f"batch {BATCH}")) for name in steps}
    rows["start"] = lambda: compare_starts(options.rounds)
    if unknown := set(options.only or ()) - rows.keys():
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(rows)}")
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    weights = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (bench.unet, bench.vqgan)]
    print(f"{name}; PyTorch {torch.__version__}; {time.strftime('%Y-%m-%d')}; ours in {bench.precision}, {'' if bench.compiled else 'not '}compiled; "
          f"{bench.size} x {bench.size}, U-Net of {weights[0]:.0f} M parameters, VQGAN of {weights[1]:.0f} M"
          f"{'' if full else ' (reduced)'}; median of {options.rounds}\n")
    columns = ["", "published (s)", "ours (s)", "ratio", "agreement (dB)", "memory published (MiB)", "ours (MiB)", ""]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in options.only or rows:
        try:
            rows[name]()
        except (RuntimeError, ValueError, UserError, OSError, subprocess.CalledProcessError) as error:
            print(f"| {name} | | | | | | | failed: {type(error).__name__}: {' '.join(str(error).split())[:150]} |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
