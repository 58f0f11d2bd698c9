"""The memory that the networks take at full size, computed from the tensors alive at each moment; no number is calculated.

    python tools/benchmarks/memory.py

Runs inference at 1024 x 1024 and training steps of batch 4 on tensors without content ("fake" ones), so that any machine can tell what a
GPU needs. What a GPU library takes for itself (context, workspaces, fragmentation: a gigabyte or two) is not in it.
"""
import copy
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models import layers, losses  # noqa: E402
from models.runtime import compiling  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN, PatchDiscriminator  # noqa: E402

GIB, SIZE, BATCH = 2 ** 30, 1024, 4


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made within that are alive: `now`, and the most so far, `peak`."""

    def __init__(self):
        super().__init__()
        self.known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage) -> None:
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, size)

    def forget(self, size: int) -> None:
        self.now -= size


def inference(paths: int, precision: str) -> Callable:
    """Encode, one step of a walk with so many estimates, decode; an image at a time."""
    def run():
        vqgan, unet = (network.eval().requires_grad_(False) for network in (MLVQGAN(), ConditionalUNet()))
        for module in [*vqgan.modules(), *unet.modules()]:
            if precision == "bf16" and isinstance(module, compiling.WEIGHTED):  # as compiling.prepare_for_inference does, which tensors like these refuse
                module.weight, module.bias = (torch.nn.Parameter(p.bfloat16(), False) for p in (module.weight, module.bias))
        x = torch.rand(1, 1, SIZE, SIZE)
        yield  # what came so far was needed once, while the weights were loaded
        latent = vqgan.latent(x)
        estimate = unet(torch.cat([latent, latent], 1).expand(paths, -1, -1, -1).contiguous(), torch.full((paths,), 5))
        vqgan.decode(estimate[:1, :4].float())

    return run


def noise_estimator(average: bool, checkpointing: bool) -> Callable:
    """Steps of a training of the U-Net, latents cached."""
    def run():
        unet = ConditionalUNet()
        layers.checkpoint_activations(unet, checkpointing)
        kept, optimizer = copy.deepcopy(unet) if average else None, torch.optim.AdamW(unet.parameters(), fused=True)
        for _ in range(2):
            x, t = torch.rand(BATCH, 8, SIZE // 8, SIZE // 8), torch.full((BATCH,), 5)
            loss = losses.noise_loss(unet(x, t), x[:, :4])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield kept

    return run


def autoencoder(checkpointing: bool) -> Callable:
    """Steps of a training of the VQGAN with all losses."""
    def run():
        vqgan, critic = MLVQGAN(), PatchDiscriminator()
        vqgan.quantizer.eval()  # the codebook's own memory is a few kilobytes, its count of codes has no shape without content
        layers.checkpoint_activations(vqgan, checkpointing)
        hybrid = losses.HybridLoss(pixel="mse", perceptual=0.0, adversarial=0.01, ms_ssim=1.0)
        hybrid.weights["perceptual"], hybrid.perceptual = 0.001, perceptual()
        optimizers = [torch.optim.Adam([p for p in network.parameters() if p.requires_grad], fused=True) for network in (vqgan, critic)]
        for _ in range(2):
            image = torch.rand(BATCH, 1, SIZE, SIZE)
            result, commitment = vqgan(image)
            loss, _ = hybrid(result, image, commitment, critic)
            other = hybrid.discriminator_loss(critic(result.detach()), critic(image))
            loss.backward(inputs=[p for p in vqgan.parameters() if p.requires_grad])
            other.backward(inputs=list(critic.parameters()))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            yield

    return run


def perceptual() -> torch.nn.Module:
    """LPIPS with VGG16 without its weights, which have no content here anyway."""
    import lpips
    found = losses.Perceptual.__new__(losses.Perceptual)
    torch.nn.Module.__init__(found)
    found.network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False).eval()
    return found


def peak(run: Callable, precision: str, grad: bool) -> float:
    """GiB of the tensors alive at once, after the first part of a run."""
    with FakeTensorMode(), Alive() as alive, torch.set_grad_enabled(grad), \
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        steps = run()
        next(steps)
        alive.peak = alive.now
        for _ in steps:
            pass
    return alive.peak / GIB


def main() -> None:
    rows = {"GL-LCM image, leg, one at a time": (lambda p: inference(3, p), False), "BS-LDM image, one at a time": (lambda p: inference(1, p), False),
            "LDM training step": (lambda p: noise_estimator(True, False), True),
            "LDM training step, checkpointing": (lambda p: noise_estimator(True, True), True),
            "LCM training step, checkpointing": (lambda p: noise_estimator(False, True), True),
            "VQGAN training step": (lambda p: autoencoder(False), True), "VQGAN training step, checkpointing": (lambda p: autoencoder(True), True)}
    print(f"computed, {SIZE} x {SIZE}, trainings with batch {BATCH}, GiB of tensors alive at once; PyTorch {torch.__version__}\n")
    print("| | float32 | bf16 |\n|---|---|---|")
    for name, (build, grad) in rows.items():
        print(f"| {name} | " + " | ".join(f"{peak(build(precision), precision, grad):.1f}" for precision in ("float32", "bf16")) + " |", flush=True)


if __name__ == "__main__":
    main()
