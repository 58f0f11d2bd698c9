"""The memory that the networks take at full size, measured on tensors without content.

    python tools/benchmarks/memory.py

Runs inference at 1024 x 1024 and training steps of batch 4 on "fake" tensors, which have a shape and a type but no
numbers, and adds up the bytes of those that are alive at each moment. So any machine can tell what a GPU needs, in some
minutes. What a GPU library takes for itself (context, workspaces, fragmentation: a gigabyte or two) is not in it.
"""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models import config, layers, losses, pipelines  # noqa: E402
from models.runtime import compiling  # noqa: E402
from models.training import interfaces  # noqa: E402
from models.training.distillation import Distillation  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN, PatchDiscriminator  # noqa: E402

GIB = 2**30
PRECISIONS = ("float32", "bf16")
CHECKPOINTING = config.parse("", (), []).distill.checkpointing  # of a distillation, unless a user says otherwise
STEPS = 2  # of a training: the optimiser's own tensors are there from the second on


@dataclass(frozen=True)
class Scale:
    """The sizes that are measured; the networks' keywords are empty for the papers' networks."""

    side: int = 1024  # of the images, pixels
    batch: int = 4  # of a training step
    vqgan: dict = field(default_factory=dict)
    unet: dict = field(default_factory=dict)
    discriminator: dict = field(default_factory=dict)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made within that are alive: `now`, and the most so far, `peak`."""

    def __init__(self):
        super().__init__()
        self.known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage) -> None:
        """Add a storage that is not known yet; tensors that are views share one."""
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, size)

    def forget(self, size: int) -> None:
        self.now -= size


# --- What is measured: each yields once its networks are there, and after each step ---------------------------------


def inference(estimates: int, scale: Scale, precision: str) -> Iterator:
    """Encode an X-ray, one step of a sampler with so many noise estimates, decode."""
    vqgan = MLVQGAN(**scale.vqgan).eval().requires_grad_(False)
    unet = ConditionalUNet(**scale.unet).eval().requires_grad_(False)

    if precision == "bf16":
        to_bf16(vqgan)
        to_bf16(unet)
    cxr = torch.rand(1, 1, scale.side, scale.side)
    yield

    latent = vqgan.latent(cxr)  # (1, C, h, w)
    noisy = torch.cat([latent, latent], 1).expand(estimates, -1, -1, -1).contiguous()
    estimate = unet(noisy, torch.full((estimates,), 5))
    vqgan.decode(estimate[:1, : latent.shape[1]].float())
    yield


def to_bf16(network: torch.nn.Module) -> None:
    """What compiling.prepare_for_inference does to the weights, which tensors without content refuse."""
    for module in network.modules():
        if isinstance(module, compiling.WEIGHTED):
            module.weight = torch.nn.Parameter(module.weight.bfloat16(), requires_grad=False)
            if module.bias is not None:
                module.bias = torch.nn.Parameter(module.bias.bfloat16(), requires_grad=False)


def noise_estimator(averaged: bool, checkpointing: bool, scale: Scale, precision: str) -> Iterator:
    """Training steps of the U-Net on cached latents; averaged: with an exponential moving average of its weights."""
    unet = ConditionalUNet(**scale.unet)
    layers.checkpoint_activations(unet, checkpointing)
    average = copy.deepcopy(unet) if averaged else None
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    side = scale.side // 8
    for _ in range(STEPS):
        optimizer.zero_grad()  # before the forward pass, as the loop does, so that no old gradients lie beside it
        latents = torch.rand(scale.batch, 8, side, side)  # the noisy one and the CXR's
        timesteps = torch.full((scale.batch,), 5)
        loss = losses.noise_loss(unet(latents, timesteps), latents[:, :4])
        loss.backward()
        optimizer.step()
        yield average


def distillation(checkpointing: bool, scale: Scale, precision: str) -> Iterator:
    """Steps of a student of BS-LDM on cached latents: beside it its average, and the frozen teacher.

    GL-LCM's holds the same: guidance asks the teacher twice, one after the other, and without activations that stay.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily  # as in `peak`

    student = ConditionalUNet(**scale.unet)
    layers.checkpoint_activations(student, checkpointing)
    # built anew, since copies of tensors without content cannot be computed with
    average = ConditionalUNet(**scale.unet).requires_grad_(False)
    teacher = ConditionalUNet(**scale.unet).eval().requires_grad_(False)
    if precision == "bf16":
        to_bf16(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    sampling = {"condition": "plain", "clip": 1.4, "clip_rate": 0.003, "clip_lag": 0}
    # its tables decide what it does, so they are made with content, and then replaced
    with unset_fake_temporarily():
        objective = Distillation(torch.nn.Linear(1, 1), pipelines.BSLDM, sampling, skip=20, huber=0.001)
    for name in ("alpha_bar", "timesteps", "bounds"):
        table = getattr(objective, name)
        setattr(objective, name, torch.zeros(table.shape, dtype=table.dtype))
    objective.teacher = teacher
    objective.target = average
    side = scale.side // 8
    latent = (scale.batch, 4, side, side)
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = {"masked": torch.zeros(scale.batch, dtype=torch.bool)}
        for name in ("soft", "cxr", "whole"):
            batch[name] = torch.rand(latent)
        noise = interfaces.Noise(0, step, scale.batch, list(range(scale.batch)), torch.device("cpu"))
        minimised, _ = objective({"unet": student}, batch, noise)
        minimised["unet"].backward()
        optimizer.step()
        yield


def autoencoder(checkpointing: bool, scale: Scale, precision: str) -> Iterator:
    """Training steps of the VQGAN and its discriminator with all losses."""
    vqgan = MLVQGAN(**scale.vqgan)
    vqgan.quantizer.eval()  # learning the codes takes a few kilobytes, and counts codes, which have no values here
    layers.checkpoint_activations(vqgan, checkpointing)
    discriminator = PatchDiscriminator(**scale.discriminator)
    hybrid = losses.HybridLoss(pixel="mse", perceptual=0.0, adversarial=0.01, ms_ssim=1.0)
    hybrid.weights["perceptual"] = 0.001
    hybrid.perceptual = PerceptualWithoutFeatures()
    trained = [parameter for parameter in vqgan.parameters() if parameter.requires_grad]
    optimizers = [torch.optim.Adam(trained, fused=True), torch.optim.Adam(discriminator.parameters(), fused=True)]
    for _ in range(STEPS):
        image = torch.rand(scale.batch, 1, scale.side, scale.side)
        reconstruction, commitment = vqgan(image)
        loss, _ = hybrid(reconstruction, image, commitment, discriminator)
        discriminator_loss = hybrid.discriminator_loss(discriminator(reconstruction.detach()), discriminator(image))
        loss.backward(inputs=trained)
        discriminator_loss.backward(inputs=list(discriminator.parameters()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield


class PerceptualWithoutFeatures(losses.Perceptual):
    """LPIPS with VGG16, whose ImageNet features have no content here anyway."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        import lpips  # here, since it brings torchvision, which takes seconds

        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        self.network = network.requires_grad_(False).eval()


# name of a row -> (what is measured, whether with gradients)
ROWS: dict[str, tuple[Callable[[Scale, str], Iterator], bool]] = {
    "GL-LCM image, leg, one at a time": (partial(inference, 3), False),
    "BS-LDM image, one at a time": (partial(inference, 1), False),
    "LDM training step": (partial(noise_estimator, True, False), True),
    "LDM training step, checkpointing": (partial(noise_estimator, True, True), True),
    "LCM training step": (partial(noise_estimator, False, False), True),
    "LCM training step, checkpointing": (partial(noise_estimator, False, True), True),
    "distillation step": (partial(distillation, CHECKPOINTING), True),
    "distillation step, no checkpointing": (partial(distillation, False), True),
    "VQGAN training step": (partial(autoencoder, False), True),
    "VQGAN training step, checkpointing": (partial(autoencoder, True), True),
}


def peak(name: str, precision: str, scale: Scale) -> float:
    """GiB of the tensors of a row that are alive at once, from its first yield on.

    What came before was needed once, while the weights were loaded.
    """
    build, grad = ROWS[name]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    # imported here, since it takes five seconds
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Alive() as alive, torch.set_grad_enabled(grad), autocast:
        steps = build(scale, precision)
        next(steps)
        alive.peak = alive.now
        for _ in steps:
            pass
    return alive.peak / GIB


def main(scale: Scale) -> None:
    print(
        f"computed, {scale.side} x {scale.side}, trainings with batch {scale.batch}, GiB of tensors alive at once; "
        f"PyTorch {torch.__version__}\n"
    )
    print("| | float32 | bf16 |\n|---|---|---|")
    for name in ROWS:
        values = [f"{peak(name, precision, scale):.1f}" for precision in PRECISIONS]
        print(f"| {name} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main(Scale())
