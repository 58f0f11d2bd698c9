"""The fast paths give the images of the plain one: compiled, channels last, bf16; for every sampler and guidance."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from golden_draws import fill

from models import images, pipelines, scores
from models.layers import GroupNorm32
from models.runtime import compiling
from models.runtime.device import autocast
from models.simulate import phantom
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

SIZE = 64  # of the images, pixels
CALL = 6  # images in a call of the U-Net, the same for all methods, so that it is compiled once
# method, its keywords, noise estimates a step
WAYS = [
    (pipelines.BSLDM, {"sampler": "ddpm"}, 1),
    (pipelines.BSLDM, {"sampler": "ddim"}, 1),
    (pipelines.BSLDM, {"sampler": "dpmpp"}, 1),
    (pipelines.GLLCM, {"guidance": "leg"}, 3),
    (pipelines.GLLCM, {"guidance": "leg_shared"}, 2),
    (pipelines.GLLCM, {"guidance": "cfg"}, 2),
    (pipelines.GLLCM, {"guidance": "vanilla"}, 2),
]
IDS = [next(iter(options.values())) for _, options, _ in WAYS]


@pytest.fixture(scope="module")
def networks():
    """Small ones, for a compiler's sake, with a tenth of the estimate.

    Random estimates amplify rounding, where trained ones correct it.
    """
    vqgan = fill(MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32))
    unet = fill(ConditionalUNet(width=32, multipliers=(1,), blocks=1, heads=4, attention=(1,)))
    unet.out[2].weight.mul_(0.1)
    return vqgan, unet


@pytest.fixture(scope="module")
def saved(networks, tmp_path_factory):
    """The files of the two networks."""
    folder = tmp_path_factory.mktemp("weights")
    paths = [folder / "vqgan.safetensors", folder / "unet.safetensors"]
    for network, path in zip(networks, paths):
        network.save(path)
    return paths


@pytest.fixture(scope="module")
def compiled_parts(saved):
    return pipelines.BSLDM.load(*saved, compiled=True).parts


def result(method, estimates: int) -> torch.Tensor:
    patients = [phantom.simulate(seed, SIZE) for seed in range(CALL // estimates)]
    cxr = torch.stack([images.to_network(patient.cxr, SIZE) for patient in patients])
    names = [str(i) for i in range(len(patients))]
    return method(cxr, names, np.stack([patient.mask for patient in patients]))


@pytest.mark.slow
@pytest.mark.parametrize("method, options, estimates", WAYS, ids=IDS)
def test_compiled_and_plain_give_the_same_image(networks, saved, compiled_parts, method, options, estimates):
    """The plain pipeline holds the networks as they are, channels first."""
    fast = method.load(*saved, compiled=True, steps=4, **options)
    fast.parts = fast.estimator, fast.encoder, fast.decoder = compiled_parts
    plain = result(method(*networks, steps=4, **options), estimates)
    found = result(fast, estimates)
    assert fast.compiled
    assert all(compiled.shapes for compiled in fast.parts)
    assert (plain - found).abs().mean() < 1e-4  # sums of another order; single codes or clipped pixels differ by more


@pytest.mark.slow
@pytest.mark.parametrize("method, options, estimates", WAYS, ids=IDS)
def test_bf16_gives_the_same_image_at_36_db(networks, saved, method, options, estimates):
    low = method.load(*saved, precision="bf16", steps=4, **options)
    assert low.unet.input_blocks[0][0].weight.dtype == torch.bfloat16  # a convolution
    assert low.unet.out[0].weight.dtype == torch.float32  # a group normalisation
    plain = result(method(*networks, steps=4, **options), estimates)
    found = result(low, estimates)
    assert found.dtype == torch.float32
    plain, found = (images.to_unit(image.double()).flatten(0, 2).numpy() for image in (plain, found))
    assert scores.psnr(plain, found) > 36


def test_bf16_calls_are_within_45_db(networks):
    vqgan, unet = networks
    torch.manual_seed(0)
    x = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    z = torch.randn(2, 4, 16, 16)
    t = torch.tensor([3, 800])
    for call in (lambda: unet(torch.cat([z, z], 1), t), lambda: vqgan.encode(x), lambda: vqgan.decode(z)):
        with torch.no_grad():
            plain = call()
            with autocast(torch.device("cpu"), "bf16"):
                low = call()
        error = (low.double() - plain).square().mean() / (plain.max() - plain.min()) ** 2  # as PSNR has it
        assert low.dtype == torch.bfloat16
        assert 1e-8 < error < 10**-4.5  # the lower bound: it is not float32 in disguise


@pytest.mark.slow
def test_weights_cast_once_are_those_that_autocast_casts(networks):
    unet = networks[1]
    z = torch.randn(1, 8, 16, 16)
    gpu = torch.device("cuda")  # for which the U-Net keeps its layout, so that only the types differ
    prepared = compiling.prepare_for_inference(copy.deepcopy(unet), gpu, "bf16", compiled=False)
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(prepared(z, torch.tensor([5])), unet(z, torch.tensor([5])))


def test_quantisation_and_group_normalisation_stay_in_float32(networks):
    vqgan = networks[0]
    torch.manual_seed(0)
    z_e = torch.randn(1, 4, 16, 16)
    x = 100 + torch.randn(2, 32, 8, 8)  # a mean of 100 leaves bf16 statistics nothing of a deviation of 1
    with autocast(torch.device("cpu"), "bf16"):
        assert vqgan.quantize(z_e.bfloat16())[0].dtype == torch.float32
        codes = vqgan.quantize(z_e)[2]
        normalised = GroupNorm32(32).requires_grad_(False)(x)
    assert torch.equal(codes, vqgan.quantize(z_e)[2])
    assert torch.allclose(normalised, GroupNorm32(32).requires_grad_(False)(x))


def layout_of_gpu(fastest_layout, network, device, compiled: bool) -> torch.memory_format:
    """What `fastest_layout` says of a GPU, wherever the test runs."""
    return fastest_layout(network, torch.device("cuda"), compiled)


def is_channels_last(network: torch.nn.Module) -> bool:
    kernels = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.slow
def test_other_shapes_run_plain_and_a_failing_compiler_is_told_once(networks, monkeypatch):
    unet = copy.deepcopy(networks[1]).to(memory_format=torch.channels_last)
    warnings: list[str] = []
    z, t = torch.randn(1, 8, 16, 16), torch.tensor([5])
    other_z, other_t = torch.randn(2, 8, 16, 16), torch.tensor([5, 6])

    def broken(*_):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    compiled = compiling.Compiled(unet, warnings.append)
    with torch.no_grad():
        assert torch.equal(compiled(z, t), unet(z, t))
        assert compiled.shapes == [z.shape, t.shape]

        # from now on what is compiled fails; a call of other shapes does not use it
        compiled.fast = broken
        assert torch.equal(compiled(other_z, other_t), unet(other_z, other_t))
        assert compiled.works and not warnings

        # two calls of the first shapes do, and the first of them warns and gives the weights a GPU's plain layout
        assert is_channels_last(unet)
        monkeypatch.setattr(compiling, "fastest_layout", partial(layout_of_gpu, compiling.fastest_layout))
        for _ in range(2):
            assert torch.equal(compiled(z, t), unet(z, t))
            assert not compiled.works
            assert not is_channels_last(unet)

        # of a method, the layout is its network's
        encode = compiling.Compiled(copy.deepcopy(networks[0]).encode, warnings.append)
        encode(torch.zeros(1, 1, 16, 16))
        encode.fast = broken
        encode(torch.zeros(1, 1, 16, 16))
    assert warnings == 2 * ["warning: not compiled, slower: RuntimeError: no compiler here"]


@pytest.mark.slow
def test_a_network_compiled_for_training_keeps_its_names_and_gradients():
    plain = fill(MLVQGAN(channels=(8,), residual_channels=8, residual_layers=1, codes=8)).requires_grad_(True)
    fast = copy.deepcopy(plain)
    x = torch.rand(2, 1, 16, 16)
    gradients = []
    assert compiling.compile_for_training([fast.encoder], fast.encoder, (x,), "float32", pytest.fail)
    for network in (plain, fast, copy.deepcopy(fast)):
        network.encode(x).square().mean().backward()
        gradients.append(network.encoder.blocks[0].conv.weight.grad)
        assert network.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.allclose(gradients[0], other, atol=1e-6) for other in gradients[1:])


class Unruly(torch.autograd.Function):
    """Fails in its backward pass, where a compiler does its second half."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no compiler")


def test_a_training_whose_compiler_fails_in_the_backward_pass_runs_plain(networks, monkeypatch):
    unet = copy.deepcopy(networks[1]).requires_grad_(True)
    z, t = torch.randn(1, 8, 16, 16), torch.tensor([5])
    warnings: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *inputs: Unruly.apply(call(*inputs)))
    assert not compiling.compile_for_training([unet], unet, (z, t), "float32", warnings.append)
    assert warnings == ["warning: not compiled, slower: RuntimeError: no compiler"]
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(parameter.is_contiguous() for parameter in unet.parameters())  # the layout of before
    unet(z, t).mean().backward()
    assert unet.out[2].weight.grad is not None


@pytest.mark.parametrize(
    "setting, device, expected",
    [("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_automatic_compilation_is_for_gpus(setting, device, expected):
    assert compiling.should_compile(setting, torch.device(device)) is expected


def test_layouts():
    unet = ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))
    vqgan = MLVQGAN(channels=(8,), residual_channels=8)

    def channels_last(network, device: str, compiled: bool) -> bool:
        prepared = compiling.prepare_for_inference(copy.deepcopy(network), torch.device(device), "float32", compiled)
        return is_channels_last(prepared)

    assert not channels_last(unet, "cuda", compiled=False)  # its group normalisation would change the layout back
    assert channels_last(unet, "cuda", compiled=True)
    assert channels_last(unet, "cpu", compiled=False)
    assert channels_last(vqgan, "cuda", compiled=False)
