"""One process, or several started by `torchrun` or `accelerate launch`.

Imports no torch until several processes communicate.
"""

import dataclasses
import datetime
import os
from typing import Any


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def num_processes() -> int:
    """The number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Whether `torchrun --max-restarts` restarted the processes after losing one."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launcher_store(**options: Any) -> Any:
    import torch.distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    distributed: Any = torch.distributed
    return distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, **options)


def is_first_to_fail() -> bool:
    """Whether this process was the first to fail and should therefore report the error.

    The processes count their failures in the launcher's store. If the store is gone, the main
    process reports.
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
    """The processes that share the work, and this one's index among them."""

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

        The parts are consecutive, in the order of the processes. Batches of `unit` items are never
        split, so each is computed exactly as by a single process.
        """
        units = -(-num // unit)
        first, last = (units * index // self.count for index in (self.index, self.index + 1))
        return range(min(num, first * unit), min(num, last * unit))

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes, in order; an empty list except in the main process."""
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
        """The sum of each number over the processes, in double precision."""
        if self.count == 1:
            return numbers
        import torch

        total = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(total, group=self.group)
        return list(total.tolist())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Wait until every process gets here."""
        self.sum([0.0])


ALONE = Processes()
"""A single process."""


def meet_after_restart() -> None:
    """Form the process group if `torchrun --max-restarts` restarted the processes.

    The launcher may keep one store for all attempts, where a process would find the address of a
    lost one and wait for it forever. Every attempt after the first therefore uses its own prefix.
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
    """Connect to the other processes that the launcher started."""
    if num_processes() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    meet_after_restart()
    state = PartialState(cpu=not torch.accelerator.is_available())
    patience = datetime.timedelta(days=1)  # for the slowest process
    group = torch.distributed.new_group(backend="gloo", timeout=patience)
    return Processes(state.process_index, state.num_processes, group)
