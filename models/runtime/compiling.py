"""torch.compile where it pays. What a reader follows is the plain network; that also runs where compiling fails."""
from collections.abc import Callable

import torch
from torch import nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)  # what autocast computes in bf16
RECOMPILES = 64  # of one function: pipelines with other networks or batches count as such, and beyond PyTorch's 8 all of them run plain


def should_compile(setting: str | bool, device: torch.device) -> bool:
    """'auto' -> on a GPU, where it takes a minute or two once; on a CPU it gives a tenth and takes minutes."""
    return device.type == "cuda" if setting == "auto" else bool(setting)


def prepare_for_inference(network: nn.Module, device: torch.device, precision: str, compiled: bool) -> nn.Module:
    """A network for evaluation, in place, as its layers are fastest; the same results up to rounding.

    With bf16 the weights that autocast would cast in each call are cast once. Channels last in memory where convolutions are faster
    so: on a CPU; on a GPU only compiled, or without group normalisation, whose plain kernel gives channels first back.
    """
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, WEIGHTED):
                module.to(torch.bfloat16)
    normalised = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    if device.type == "cpu" or compiled or not normalised:
        network.to(memory_format=torch.channels_last)
    return network


class Compiled:
    """A network without gradients, compiled for the shapes of its first call; on a GPU its kernels are replayed as one CUDA graph.

    Other shapes, such as a last smaller batch, and all where compiling fails, run plain.
    """

    def __init__(self, network: Callable, warn: Callable[[str], None] = print):
        self.network, self.warn, self.shapes = network, warn, None
        self.fast: Callable | None = None

    @property
    def works(self) -> bool:
        return self.shapes is None or self.fast is not None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = [x.shape for x in inputs]
        if self.shapes is None:
            self.shapes = shapes
            torch._dynamo.config.recompile_limit = RECOMPILES
            graphs = {"mode": "reduce-overhead"} if inputs[0].is_cuda else {}
            self.fast = torch.compile(self.network, dynamic=False, **graphs)
        if self.fast is None or shapes != self.shapes:
            return self.network(*inputs)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self.fast(*inputs).clone()  # the next replay overwrites the graph's own result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in as many ways as they have parts
            self.fast = None
            result = self.network(*inputs)
            self.warn(told(error))
            return result


def compile_for_training(networks: list[nn.Module], call: Callable, inputs: tuple[torch.Tensor, ...], precision: str,
                         warn: Callable[[str], None]) -> bool:
    """Compile networks in place, names of weights unchanged; whether that is possible here. No CUDA graphs: weights change.

    call(*inputs): what a training step computes with them, on tensors of a batch's shapes. It is run forward and backward once, as a
    compiler fails no earlier.
    """
    for network in networks:
        network.to(memory_format=torch.channels_last)
        network.compile(dynamic=False)
    try:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            something_like_a_loss = call(*inputs).float().mean()
        something_like_a_loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        for network in networks:
            network._compiled_call_impl = None  # what Module.compile sets, and has no opposite
        warn(told(error))
        return False
    finally:
        for network in networks:
            network.zero_grad(set_to_none=True)
    return True


def told(error: Exception) -> str:
    return f"warning: not compiled, slower: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
