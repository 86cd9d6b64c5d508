"""One process or several that work together, as `torchrun` and `accelerate launch` start them."""

import dataclasses
import datetime
import os
from typing import Any

PATIENCE = datetime.timedelta(days=1)
"""How long a process waits for what the slowest one makes."""


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes; asked without importing torch."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes that share a piece of work, and which of them this one is."""

    index: int = 0
    count: int = 1
    group: Any = None
    """Their process group, on the CPU; None where there is one process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.index == 0

    def gather(self, item: Any) -> list[Any]:
        """What every process passed in, in their order; an empty list but in the main process."""
        if self.count == 1:
            return [item]
        import torch.distributed

        gathered: list[Any] | None = [None] * self.count if self.is_main else None
        torch.distributed.gather_object(item, gathered, dst=0, group=self.group)
        return gathered or []

    def share(self, item: Any) -> Any:
        """What the main process passed in."""
        if self.count == 1:
            return item
        import torch.distributed

        items = [item]
        torch.distributed.broadcast_object_list(items, src=0, group=self.group)
        return items[0]


def join_processes() -> Processes:
    """Meet the other processes that the launcher started; alone where there was no launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, group)
