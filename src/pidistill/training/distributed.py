"""How a run is spread over processes: DDP, FSDP, micro-batches.

Which of them is decided by the launcher: `torchrun` and `accelerate launch` start processes whose
gradients are averaged (DDP); `accelerate launch --use_fsdp`, or a config of accelerate that says
so, divides weights, gradients, moments and averages among them (FSDP).
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from pidistill.errors import PidistillError
from pidistill.methods.base import Method
from pidistill.processes import meet_after_restart
from pidistill.training.config import RunConfig

log = logging.getLogger("pidistill")

STRATEGIES = {
    DistributedType.MULTI_CPU: "DDP",
    DistributedType.MULTI_GPU: "DDP",
    DistributedType.FSDP: "FSDP",
}
"""How several processes share a run, for people to read."""


def make_accelerator(
    mixed_precision: str, *, log_with: list[str] | None, project_config: ProjectConfiguration
) -> Accelerator:
    """An accelerator of the processes that the launcher started; arguments as accelerate's.

    FSDP is always its second version, whichever the launcher names: it keeps the parameters and
    their names. It casts no weights, because differences of the student stay in single precision;
    half precision comes from autocast, as without FSDP. Where there are CPUs only, accelerate
    ignores the wish for FSDP; here it is granted, over gloo.
    """
    meet_after_restart()
    # One process has one precision at a time, but the runs of a comparison follow one another.
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()
    plugin = _fsdp_plugin()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=not torch.accelerator.is_available(),  # torchrun's processes find each other there
        fsdp_plugin=plugin,
        log_with=log_with,
        project_config=project_config,
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        PartialState().distributed_type = DistributedType.FSDP  # which later states start from
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """The launcher's settings of FSDP, or None where it asks for none.

    Unless the launcher names other classes, what is gathered at once is a block of the network.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        log.info("FSDP is used in its version 2")
    keep = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=keep not in ("false", "shard_grad_op", "no_reshard", "no_shard"),
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,  # every process loads the student
    )


def num_micro_batches(config: RunConfig, num_processes: int) -> int:
    """How many micro-batches a process's share of a batch is cut into.

    It is `gradient_accumulation_steps`, or the smallest multiple of it that `max_micro_batch`
    allows.

    Raises `PidistillError` when the batch cannot be divided so.
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
    """Class names of the blocks of a network: what its lists and dictionaries of modules hold.

    Single layers among them are left out.
    """
    held = (
        block
        for container in module.modules()
        if isinstance(container, nn.ModuleList | nn.ModuleDict)
        for block in container.children()
    )
    return sorted({type(block).__name__ for block in held if any(block.children())})


def start_fsdp(module: nn.Module) -> None:
    """Call a prepared module for nothing, where FSDP divided it; other modules are left alone.

    FSDP wants its outermost module to be called first, and the loss of another part may call an
    inner one before that. `module` takes a loss and a batch.
    """
    if isinstance(module, FSDPModule):
        nn.Module.__call__(module, lambda batch: None, None)
        module.reshard()


@contextlib.contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let parts of a prepared module be called by themselves, by all processes together.

    FSDP gathers the weights of a module when that module is called, and the outermost module holds
    what no inner one does.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    try:
        yield
    finally:
        if isinstance(module, FSDPModule):
            module.reshard()


def compile_networks(method: Method, device: torch.device) -> None:
    """Compile the networks of a method in place; names of weights stay as they are.

    Raises `PidistillError` when there is no compiler for `device`.
    """
    require_compiler(device)
    for network in method.networks():
        network.compile()


def require_compiler(device: torch.device) -> None:
    """Raise `PidistillError` unless torch can compile for `device`; it takes a few seconds."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # every missing compiler has an exception of its own
        reason = str(error).strip().partition("\n")[0]
        raise PidistillError(
            f"torch_compile is set, but torch cannot compile for {device.type} here: {reason}; "
            "install a C++ compiler (CPU) or triton (GPU), or leave it out"
        ) from None
