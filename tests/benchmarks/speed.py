"""Ours against the published way, in turn, in one run: a table of ratios.

    python tests/benchmarks/speed.py                    full size on a GPU, reduced on a CPU
    python tests/benchmarks/speed.py full 5 "U-Net call" "VQGAN encode"      full size, five rounds, these rows

The published way: float32, channels first, the estimates of a step one after the other, schedule tables made anew each step, the
autoencoder encoding both images at every training step. Ours: what the scripts do on this device. Both run the same networks with
random weights. Walks are run in part and extrapolated, as the table says. On a CPU memory is measured in a process of its own.
"""
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from models import config, losses, pipelines, sampling, schedulers, training  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN, PatchDiscriminator  # noqa: E402

REDUCED = ["data.image_size=512", "unet.width=64", "unet.blocks=2", "unet.multipliers=[1,1,2,2]", "vqgan.network.channels=[64,128,256]",
           "vqgan.network.residual_channels=128"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PART = {"GL-LCM image": (5, 50), "BS-LDM image": (5, 1000)}  # steps run, steps of the whole walk
BATCH = 4


class Bench:
    """The networks at one size, and the two ways of doing each thing."""

    def __init__(self, full: bool):
        settings = config.parse("", (), [] if full else REDUCED)
        self.settings, self.size = settings, settings.data.image_size
        torch.manual_seed(0)
        self.vqgan = MLVQGAN(**asdict(settings.vqgan.network)).to(DEVICE).eval()
        self.unet = ConditionalUNet(**asdict(settings.unet)).to(DEVICE).eval()
        self.precision = training.pick_precision("auto", DEVICE)
        self.cxr = torch.rand(1, 1, self.size, self.size, device=DEVICE) * 2 - 1
        self.latent = self.vqgan.latent(self.cxr).detach()
        self.mask = torch.zeros(1, self.size, self.size, dtype=torch.bool)
        self.mask[:, self.size // 4:-self.size // 4, self.size // 4:-self.size // 4] = True

    def rows(self) -> dict[str, tuple[Callable, Callable]]:
        """{what: (the published way, ours)}; what trains is built when it is first called."""
        t = torch.full((1,), 500, device=DEVICE)
        noisy = torch.cat([torch.randn_like(self.latent), self.latent], 1)
        return {
            "U-Net call": (lambda: self.unet(noisy, t), self.ours(lambda: self.unet(noisy, t))),
            "VQGAN encode": (lambda: self.vqgan.latent(self.cxr), self.ours(lambda: self.vqgan.latent(self.cxr))),
            "VQGAN decode": (lambda: self.vqgan.decode(self.latent), self.ours(lambda: self.vqgan.decode(self.latent))),
            "GL-LCM image": (self.gllcm_as_published, self.gllcm(1)),
            "BS-LDM image": (self.bsldm_as_published, self.bsldm(1)),
            "LDM training step": (Step(self, cached=False), Step(self, cached=True)),
            "LCM training step": (Step(self, cached=False, masked=True), Step(self, cached=True, masked=True)),
            "VQGAN training step": (VqganStep(self, "float32"), VqganStep(self, self.precision))}

    def ours(self, call: Callable) -> Callable:
        def run():
            with training.autocast(DEVICE, self.precision):
                return call()
        return run

    def gllcm(self, count: int) -> Callable:
        method = pipelines.GLLCM(self.vqgan, self.unet, steps=PART["GL-LCM image"][0], precision=self.precision)
        names = [str(i) for i in range(count)]
        return lambda: method(self.cxr.expand(count, -1, -1, -1), names, self.mask.expand(count, -1, -1).numpy())

    def bsldm(self, count: int) -> Callable:
        method = pipelines.BSLDM(self.vqgan, self.unet, steps=PART["BS-LDM image"][0], precision=self.precision)
        names = [str(i) for i in range(count)]
        return lambda: method(self.cxr.expand(count, -1, -1, -1), names)

    def gllcm_as_published(self) -> None:
        latent, masked = self.vqgan.latent(self.cxr), self.vqgan.latent(self.cxr * self.mask.to(DEVICE)[None])
        z_g = z_l = torch.randn_like(latent)
        for j in range(PART["GL-LCM image"][0]):
            step = schedulers.walk(schedulers.scaled_linear(), schedulers.lcm_timesteps(50), 50)[j]
            eps_g, whole, local = (sampling.estimate(self.unet, [z], step.t, [c])[0] for z, c in ((z_g, latent), (z_l, latent), (z_l, masked)))
            z_0 = [schedulers.predict_z_0(z, eps, step, 2.0) for z, eps in ((z_g, eps_g), (z_l, 3 * local - 2 * whole))]
            z_g, z_l = (schedulers.lcm_step(z, clean, step, torch.randn_like(z)) for z, clean in zip((z_g, z_l), z_0))
        for z in (z_g, z_l):
            self.vqgan.decode(z).cpu()

    def bsldm_as_published(self) -> None:
        latent = self.vqgan.latent(self.cxr)
        z = torch.randn_like(latent)
        for j in range(PART["BS-LDM image"][0]):
            step = schedulers.walk(schedulers.squared_cosine(), schedulers.trailing_timesteps(1000), 1000)[j]
            eps, = sampling.estimate(self.unet, [z], step.t, [latent])
            z = schedulers.ddpm_step(z, schedulers.predict_z_0(z, eps, step, 1.4), step, torch.randn_like(z))
        self.vqgan.decode(z).cpu()


class Pairs:
    """Random latents or images, as a training gets them."""
    names = [str(i) for i in range(BATCH)]


def trainer(networks: dict, optimizers: dict, objective, average: float, precision: str) -> training.Trainer:
    plan = training.Plan(folder=Path(tempfile.mkdtemp()), epochs=1, batch_size=BATCH, learning_rates=dict.fromkeys(optimizers, 1e-5),
                         milestones=(), gamma=1, average=average, seed=0, accumulate=1, validate_every=1, sample_every=9, save_every=1e9,
                         precision=precision)
    return training.Trainer(plan, networks, optimizers, objective, Pairs(), None, {})


class Step:
    """A training step of a noise estimator, batch 4. cached: latents come from the disk, as ours; else both images are encoded."""

    def __init__(self, bench: Bench, cached: bool, masked: bool = False):
        self.bench, self.cached, self.masked, self.trainer = bench, cached, masked, None

    def __call__(self) -> None:
        bench, precision = self.bench, self.bench.precision if self.cached else "float32"
        if self.trainer is None:
            bench.unet.train()
            table = schedulers.scaled_linear() if self.masked else schedulers.squared_cosine()
            optimizer = torch.optim.AdamW(bench.unet.parameters(), 1e-5, fused=self.cached and DEVICE.type == "cuda")
            self.trainer = trainer({"unet": bench.unet}, {"unet": optimizer}, losses.denoising_objective(table, 0.1),
                                   0.0 if self.masked else 0.995, precision)
        latents = bench.latent.expand(BATCH, -1, -1, -1)
        if not self.cached:
            with torch.no_grad():
                latents = bench.vqgan.latent(bench.cxr.expand(BATCH, -1, -1, -1))
                bench.vqgan.latent(bench.cxr.expand(BATCH, -1, -1, -1))
        self.trainer.update({"cxr": latents, "soft": latents}, Pairs.names)


class VqganStep:
    """A training step of the autoencoder with discriminator and MS-SSIM, batch 4; without LPIPS, which is the same in both."""

    def __init__(self, bench: Bench, precision: str):
        self.bench, self.precision, self.trainer = bench, precision, None

    def __call__(self) -> None:
        bench = self.bench
        if self.trainer is None:
            critic = PatchDiscriminator(**asdict(bench.settings.vqgan.discriminator)).to(DEVICE)
            hybrid = losses.HybridLoss(**{**asdict(bench.settings.vqgan.loss), "perceptual": 0.0})

            def objective(networks, batch, noise):
                image, (result, commitment) = batch["image"], networks["vqgan"](batch["image"])
                loss, terms = hybrid(result, image, commitment, networks["critic"])
                fooled = hybrid.discriminator_loss(networks["critic"](result.detach()), networks["critic"](image))
                return {"vqgan": loss, "critic": fooled}, {"loss": loss, **terms}

            networks = {"vqgan": bench.vqgan, "critic": critic}
            optimizers = {name: torch.optim.Adam([p for p in net.parameters() if p.requires_grad]) for name, net in networks.items()}
            self.trainer = trainer(networks, optimizers, objective, 0.0, self.precision)
        self.trainer.update({"image": bench.cxr.expand(BATCH, -1, -1, -1)}, Pairs.names)


def seconds(call: Callable, training_step: bool) -> float:
    with torch.set_grad_enabled(training_step):
        began = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def peak(row: str, way: int, full: bool) -> float:
    """GiB that one call takes: on the GPU, or of a process that does nothing else."""
    if DEVICE.type == "cpu":
        done = subprocess.run([sys.executable, __file__, "memory", row, str(way), "full" if full else "reduced"], capture_output=True, text=True)
        return float(done.stdout) if done.returncode == 0 else float("nan")
    bench = Bench(full)
    call = bench.rows()[row][way]
    torch.cuda.reset_peak_memory_stats()
    seconds(call, "training" in row)
    return torch.cuda.max_memory_allocated() / 2 ** 30


def main(size: str = "auto", rounds: str = "3", *chosen: str) -> None:
    full = size == "full" or size == "auto" and DEVICE.type == "cuda"
    bench = Bench(full)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    print(f"{device}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}; ours in {bench.precision}; {bench.size} x {bench.size}, "
          f"{sum(p.numel() for p in bench.unet.parameters()) / 1e6:.0f} M parameters in the U-Net; median of {rounds}\n")
    print("| | published (s) | ours (s) | ratio | memory published, ours (GiB) |\n|---|---|---|---|---|", flush=True)
    for row, ways in bench.rows().items():
        if chosen and row not in chosen:
            continue
        times: list[list[float]] = [[], []]
        for turn in range(int(rounds) + 1):  # the first warms up
            for found, call in zip(times, ways):
                found += [seconds(call, "training" in row)] * (turn > 0)
        a, b = map(statistics.median, times)
        done, whole = PART.get(row, (1, 1))
        memory = ", ".join(f"{peak(row, way, full):.1f}" for way in (0, 1))
        part = f" ({done} of {whole} steps)" if whole > 1 else ""
        print(f"| {row}{part} | {a:.3f} | {b:.3f} | {a / b:.2f} | {memory} |", flush=True)
    if not chosen or "batches" in chosen:
        for count in (1, 2, 4, 8):
            call = bench.gllcm(count)
            call()
            part = f"{PART['GL-LCM image'][0]} of 50 steps"
            print(f"| GL-LCM, {count} together ({part}), an image | | {seconds(call, False) / count:.3f} | | |", flush=True)
    if not chosen or "start" in chosen:
        for words in (["-c", "import torch, torchvision"], [str(ROOT / "batch_lcm_eval.py"), "--help"]):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
            print(f"| start of python {Path(words[0]).name} {words[1]} | | {time.perf_counter() - began:.1f} | | |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        row, way, size = sys.argv[2:]
        seconds(Bench(size == "full").rows()[row][int(way)], "training" in row)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20)
    else:
        main(*sys.argv[1:])
