"""The benchmarks of tools/ on small networks: that they run, and that what they say is so."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "benchmarks"))
import memory  # noqa: E402

UNET = {"width": 32, "multipliers": (1, 1), "blocks": 1, "heads": 4, "attention": (2,)}
SMALL = memory.Scale(
    side=192,
    batch=2,
    vqgan={"channels": (8, 8, 16), "residual_channels": 8, "codes": 32},
    unet=UNET,
    discriminator={"channels": 4},
)


def test_memory_counts_the_bytes_that_are_alive_and_views_not_twice():
    with memory.Alive() as alive:
        kept = torch.zeros(1000)  # 4000 bytes
        view = kept.view(10, 100)
        passing = torch.zeros(500)  # 2000 bytes
        del passing
        other = view + 1  # 4000 bytes
    assert (alive.now, alive.peak) == (8000, 8000) and len(other) == 10
    del kept, view
    assert alive.now == 4000


@cache
def peak(name: str, precision: str = "float32") -> float:
    return memory.peak(name, precision, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.ROWS)
def test_memory_can_be_computed_for_every_row(name):
    """On tensors without content, where no Python decision may hang on a value."""
    assert peak(name) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BS-LDM image, one at a time", "LDM training step"])
def test_memory_is_less_in_bf16(name):
    assert peak(name, "bf16") < peak(name)


def test_memory_of_inference_is_that_of_real_tensors():
    """Small networks for real: the same steps count the same bytes whether the tensors have content or not."""
    build, _ = memory.ROWS["BS-LDM image, one at a time"]
    torch.manual_seed(0)
    with memory.Alive() as alive, torch.no_grad():
        steps = build(SMALL, "float32")
        next(steps)
        alive.peak = alive.now
        for _ in steps:
            pass
    assert peak("BS-LDM image, one at a time") == pytest.approx(alive.peak / memory.GIB, rel=0.05)


def test_memory_is_less_with_checkpointing_and_more_with_an_average():
    assert peak("VQGAN training step, checkpointing") < peak("VQGAN training step")
    assert peak("LDM training step, checkpointing") < peak("LDM training step")
    assert peak("LCM training step, checkpointing") < peak("LDM training step, checkpointing")


def test_a_distillation_as_it_is_set_takes_no_more_memory_than_the_training_of_a_noise_estimator():
    """Not even than GL-LCM's, which has no average."""
    assert peak("distillation step") < peak("LCM training step") < peak("distillation step, no checkpointing")
