"""Tensors of which every process holds a part, as FSDP leaves them, and whole ones.

Ordinary tensors pass through unchanged. What gathers or divides a tensor must be called by all
processes.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of `tensor`, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered from the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_of(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor whose local parts are `part`, divided as `like` is."""
    if not isinstance(like, DTensor):
        return part
    sharded: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole(sharded)


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """The whole `tensor`, divided as `like` is and on its device."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    sharded: Tensor = distribute_tensor(tensor, like.device_mesh, like.placements)
    return sharded


def whole_tensors(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor, on the CPU, gathered one after the other; empty unless `keep`."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            gathered[name] = full.cpu()
    return gathered


@torch.no_grad()
def load_whole(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole weights into a module whose own may be divided; names and shapes must agree."""
    for name, tensor in module.state_dict().items():
        local(tensor).copy_(local(divided(weights[name], tensor)))
