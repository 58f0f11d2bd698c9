"""torch.compile where it pays. What a reader follows is the plain network, which also runs where compiling fails."""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)  # the layers that autocast computes in bf16

# torch.compile gives up on a function after this many recompilations. PyTorch's default of 8 is too few: pipelines
# share functions, and each new network or batch size counts as one.
RECOMPILE_LIMIT = 64


def should_compile(setting: str | bool, device: torch.device) -> bool:
    """The setting `compile`: 'auto' is yes on a GPU, where compiling takes a minute or two once, and no on a CPU.

    On a CPU it takes minutes and makes a network faster by a tenth.
    """
    return device.type == "cuda" if setting == "auto" else bool(setting)


def prepare_for_inference(network: nn.Module, device: torch.device, precision: str, compiled: bool) -> nn.Module:
    """Give a network's weights, in place, the fastest type and memory layout; its results stay the same up to rounding.

    precision: "bf16" or "float32". compiled: whether the network will be compiled.
    """
    # autocast casts weights to bf16 in each call; here they are cast once
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, WEIGHTED):
                module.to(torch.bfloat16)

    return network.to(memory_format=fastest_layout(network, device, compiled))


def fastest_layout(network: nn.Module, device: torch.device, compiled: bool) -> torch.memory_format:
    """The memory layout of a network's weights in which inference is fastest."""
    # Convolutions are faster with channels last in memory. On a GPU, though, the plain kernel of group normalisation
    # returns channels first, and the copies between the layouts cost more than they save.
    has_group_norm = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    if device.type == "cpu" or compiled or not has_group_norm:
        return torch.channels_last
    return torch.contiguous_format


class Compiled:
    """A network without gradients, compiled for the shapes of its first call; on a GPU replayed as one CUDA graph.

    Calls with other shapes, such as a last smaller batch, run plain. So does everything after compiling has failed,
    which `warn` is told once; the weights then get the layout of a plain network. network: a module, or a method of
    one.
    """

    def __init__(self, network: Callable, warn: Callable[[str], None] = print):
        self.network = network
        self.warn = warn
        self.shapes: list[torch.Size] | None = None  # of the first call's inputs
        self.fast: Callable | None = None  # the compiled network, unless compiling has failed

    @property
    def works(self) -> bool:
        """False after compiling has failed."""
        return self.shapes is None or self.fast is not None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = [x.shape for x in inputs]

        # the first call says what to compile for
        if self.shapes is None:
            self.shapes = shapes
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            mode = "reduce-overhead" if inputs[0].is_cuda else None  # with CUDA graphs
            self.fast = torch.compile(self.network, dynamic=False, mode=mode)

        if self.fast is None or shapes != self.shapes:
            return self.network(*inputs)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self.fast(*inputs).clone()  # the next replay overwrites the graph's own result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # every stage of a compiler raises errors of its own types
            self.fast = None
            module = cast(nn.Module, getattr(self.network, "__self__", self.network))  # that of a method
            module.to(memory_format=fastest_layout(module, inputs[0].device, compiled=False))
            result = self.network(*inputs)
            self.warn(failure_message(error))  # after the plain call, whose own error would be the true one
            return result


def compile_for_training(
    networks: list[nn.Module],
    call: Callable,
    inputs: tuple[torch.Tensor, ...],
    precision: str,
    warn: Callable[[str], None],
) -> bool:
    """Compile networks in place, with the names of their weights unchanged; False, and all as before, where it fails.

    call(*inputs) is what a training step computes with the networks, on tensors of a batch's shapes. It runs forward
    and backward once, because a compiler fails no earlier. Without CUDA graphs, since weights change.
    """
    for network in networks:
        network.to(memory_format=torch.channels_last)
        network.compile(dynamic=False)
    try:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            stand_in_for_loss = call(*inputs).float().mean()
        stand_in_for_loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        for network in networks:
            network._compiled_call_impl = None  # set by Module.compile, which has no opposite
            network.to(memory_format=torch.contiguous_format)
        warn(failure_message(error))
        return False
    finally:
        for network in networks:
            network.zero_grad(set_to_none=True)
    return True


def failure_message(error: Exception) -> str:
    """The start of a compiler's message, which may be pages long, in one line."""
    text = " ".join(str(error).split())
    return f"warning: not compiled, slower: {type(error).__name__}: {text[:200]}"
