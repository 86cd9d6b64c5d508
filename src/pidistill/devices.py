"""Moving tensors to a device and waiting for it, or not."""

import torch
from torch import Tensor

SHARE = 0.25
"""Share of a device's free memory that data may take."""


def wait_for(device: torch.device) -> None:
    """Wait until `device` has done its work, for measuring its time."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def sent_to(device: torch.device, x: Tensor) -> Tensor:
    """`x` on `device`; a copy from the CPU to a CUDA device is not waited for."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def kept_on(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors on a CUDA `device` if all fit there with room to spare, else where they are."""
    if device.type != "cuda":
        return list(tensors)
    free, _ = torch.cuda.mem_get_info(device)
    fits = sum(x.nbytes for x in tensors if x is not None) < SHARE * free
    return [x.to(device) if fits and x is not None else x for x in tensors]
