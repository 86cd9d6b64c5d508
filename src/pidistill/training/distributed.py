"""Distributing a run over processes: DDP, FSDP, micro-batches.

The launcher selects the strategy: `torchrun` and `accelerate launch` start processes that average
their gradients (DDP); `accelerate launch --use_fsdp`, or an accelerate config to that effect,
shards weights, gradients, moments and averages (FSDP).
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.utils.flop_counter import FlopCounterMode

from pidistill.errors import PidistillError
from pidistill.methods.base import Method
from pidistill.noise import device_of
from pidistill.processes import meet_after_restart
from pidistill.training.config import RunConfig

log = logging.getLogger("pidistill")

STRATEGIES = {
    DistributedType.MULTI_CPU: "DDP",
    DistributedType.MULTI_GPU: "DDP",
    DistributedType.FSDP: "FSDP",
}
"""How several processes share a run, for display."""


_DDP = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
"""Buffers of networks here are constants, and gradients need no second copy."""


def make_accelerator(
    mixed_precision: str, *, log_with: list[str] | None, project_config: ProjectConfiguration
) -> Accelerator:
    """The accelerator of the launched processes; arguments as accelerate's.

    FSDP is always version 2, whatever the launcher names, because it preserves parameters and their
    names. It casts no weights, since student differences need single precision; half precision
    comes from autocast, as without FSDP. On CPUs, where accelerate ignores a request for FSDP, FSDP
    runs over gloo.
    """
    meet_after_restart()
    # Accelerate keeps one precision per process; consecutive runs of a comparison may differ.
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()
    plugin = _fsdp_plugin()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=not torch.accelerator.is_available(),  # torchrun's processes find each other there
        fsdp_plugin=plugin,
        kwargs_handlers=[_DDP],
        log_with=log_with,
        project_config=project_config,
    )
    if mixed_precision == "fp16" and accelerator.scaler is None:  # accelerate skips it on a CPU
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        PartialState().distributed_type = DistributedType.FSDP  # later states copy it
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """The launcher's FSDP settings, or None if it does not request FSDP.

    By default, FSDP gathers one block of the network at a time.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        log.info("using version 2 of FSDP")
    keep = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=keep not in ("false", "shard_grad_op", "no_reshard", "no_shard"),
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,  # every process loads the student
    )


def num_micro_batches(config: RunConfig, num_processes: int) -> int:
    """The number of micro-batches per process and optimizer step.

    It is `gradient_accumulation_steps`, or its smallest multiple that `max_micro_batch` allows.

    Raises `PidistillError` if the batch cannot be divided evenly.
    """
    least = config.gradient_accumulation_steps * num_processes
    if config.batch_size % least:
        raise PidistillError(
            f"batch_size is {config.batch_size}; expected a multiple of {least}, the number of "
            "processes times gradient_accumulation_steps"
        )
    share = config.batch_size // num_processes
    parts = config.gradient_accumulation_steps
    if config.max_micro_batch is not None:
        while share % parts or share // parts > config.max_micro_batch:
            parts += config.gradient_accumulation_steps
    return parts


def block_names(module: nn.Module) -> list[str]:
    """Class names of a network's blocks: the non-leaf items of its `ModuleList`s and dicts."""
    held = (
        block
        for container in module.modules()
        if isinstance(container, nn.ModuleList | nn.ModuleDict)
        for block in container.children()
    )
    return sorted({type(block).__name__ for block in held if any(block.children())})


def start_fsdp(module: nn.Module) -> None:
    """If FSDP sharded `module`, call it once without effect.

    FSDP requires the outermost module to be called first, but the loss of another part may call an
    inner one earlier. `module` accepts a loss and a batch.
    """
    if isinstance(module, FSDPModule):
        nn.Module.__call__(module, lambda batch: None, None)
        module.reshard()


@contextlib.contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Allow submodules of a prepared module to be called directly; all processes must enter it.

    FSDP gathers a module's weights only when it is called, and the outermost module owns the
    weights that belong to no inner one.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    try:
        yield
    finally:
        if isinstance(module, FSDPModule):
            module.reshard()


def suit_device(method: Method, device: torch.device) -> None:
    """Lay convolutional weights out as CUDA's kernels like them; CPU kernels prefer the default."""
    if device.type == "cuda":
        for network in method.networks():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


EARNS = 1e16
"""Operations of a run that earns compilation on a CUDA device: some ten minutes, of which it saves
more than it takes."""


def compiles(config: RunConfig, method: Method, device: torch.device) -> bool:
    """Whether to compile the networks: as `torch_compile` says, or if the run earns it.

    Only CUDA devices compile unasked, since compilation changes rounding, and runs on a CPU repeat
    bit for bit.
    """
    if config.torch_compile is not None or device.type != "cuda":
        return bool(config.torch_compile)
    passes = 3 * method.student_evaluations + method.target_evaluations + method.teacher_evaluations
    samples = config.batch_size * config.max_train_steps
    earns = passes * samples * operations(method.student) > EARNS
    if earns:
        log.info("compiling the networks; --no-torch-compile does without")
    return earns


def operations(student: Any) -> int:
    """Floating-point operations of an evaluation of one sample by the student's network."""
    device = device_of(student)
    u, c_noise = torch.zeros(1, *student.sample_shape, device=device), torch.zeros(1, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device) if student.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.network(u, c_noise, label)
    return counter.get_total_flops()


def compile_networks(method: Method, device: torch.device) -> None:
    """Compile a method's networks in place; weight names do not change.

    Every shape is compiled for itself, and so is every use, with gradient and without; beyond
    torch's own limit on their number, it would go on without compilation.

    Raises `PidistillError` if there is no compiler for `device`.
    """
    require_compiler(device)
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for network in method.networks():
        network.compile(dynamic=False)


def compile_network(model: nn.Module) -> None:
    """Compile the network of a student or denoiser in place, for sampling.

    Raises `PidistillError` if it has none, or there is no compiler for its device.
    """
    network = getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        raise PidistillError(f"a {type(model).__name__} has no network to compile")
    require_compiler(device_of(model))
    network.compile(dynamic=False)


def uncompiled(method: Method) -> contextlib.AbstractContextManager[Any]:
    """Within the block, compiled networks run as they are, for shapes that are seen but once."""
    if all(network._compiled_call_impl is None for network in method.networks()):
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def require_compiler(device: torch.device) -> None:
    """Raise `PidistillError` unless torch can compile for `device`; takes a few seconds."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each missing compiler raises a different exception
        reason = str(error).strip().partition("\n")[0]
        raise PidistillError(
            f"torch_compile is set, but torch cannot compile for {device.type} here: {reason}; "
            "install a C++ compiler (CPU) or triton (GPU), or unset torch_compile"
        ) from None
