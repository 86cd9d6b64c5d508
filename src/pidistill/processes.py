"""One process, or several that `torchrun` or `accelerate launch` started. Imports no torch."""

import dataclasses
import datetime
import os
from typing import Any


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def num_processes() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Whether `torchrun --max-restarts` started the processes again after one of them was lost."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launcher_store(**options: Any) -> Any:
    import torch.distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    distributed: Any = torch.distributed
    return distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, **options)


def is_first_to_fail() -> bool:
    """Whether no other process failed before this one, which is then the one to say why.

    The processes count their failures in the launcher's store. If it is gone, the main process
    speaks.
    """
    if num_processes() == 1:
        return True
    try:
        store = _launcher_store(timeout=datetime.timedelta(seconds=5))
        first: bool = store.add(f"pidistill/failures/{_attempt()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return is_main_process()
    return first


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes that share a piece of work, and which of them this one is."""

    index: int = 0
    count: int = 1
    group: Any = None
    """Their process group, on the CPU; None for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.index == 0

    def span(self, num: int, unit: int) -> range:
        """This process's part of `num` items; it may be empty.

        The parts follow one another in the order of the processes. A batch of `unit` items is
        never split, so that it is computed just as one process alone would compute it.
        """
        units = -(-num // unit)
        first, last = (units * index // self.count for index in (self.index, self.index + 1))
        return range(min(num, first * unit), min(num, last * unit))

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes, in their order; an empty list except in the main process."""
        if self.count == 1:
            return [item]
        import torch.distributed

        gathered: list[Any] | None = [None] * self.count if self.is_main else None
        torch.distributed.gather_object(item, gathered, dst=0, group=self.group)
        return gathered or []

    def share(self, item: Any) -> Any:
        """The item of the main process."""
        if self.count == 1:
            return item
        import torch.distributed

        items = [item]
        torch.distributed.broadcast_object_list(items, src=0, group=self.group)
        return items[0]

    def sum(self, numbers: list[float]) -> list[float]:
        """The sums of each of these numbers over the processes, in double precision."""
        if self.count == 1:
            return numbers
        import torch

        total = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(total, group=self.group)
        return list(total.tolist())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Wait until every process is here."""
        self.sum([0.0])


ALONE = Processes()
"""A single process."""


def meet_after_restart() -> None:
    """Form the process group if `torchrun --max-restarts` started the processes again.

    The launcher may keep one store for all attempts, in which a process would find the address of
    one that was lost and wait for it in vain. So every attempt after the first uses its own prefix.
    Must be called before accelerate forms the group.
    """
    if num_processes() == 1 or not was_restarted():
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        return
    distributed: Any = torch.distributed
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=distributed.PrefixStore(f"pidistill/attempt-{_attempt()}", _launcher_store()),
        rank=int(os.environ["RANK"]),
        world_size=num_processes(),
    )


def join_processes() -> Processes:
    """Meet the other processes that the launcher started."""
    if num_processes() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    meet_after_restart()
    state = PartialState(cpu=not torch.accelerator.is_available())
    patience = datetime.timedelta(days=1)  # with the slowest process
    group = torch.distributed.new_group(backend="gloo", timeout=patience)
    return Processes(state.process_index, state.num_processes, group)
