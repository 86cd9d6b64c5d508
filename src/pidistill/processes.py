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


def num_processes() -> int:
    """How many processes the launcher started; asked without importing torch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Whether `torchrun --max-restarts` starts the processes anew after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_first_to_fail() -> bool:
    """Whether no other process failed before this one: it is the one that says why.

    The processes count their failures in the launcher's store. Where that is gone, so is the first
    process, or the launcher.
    """
    if num_processes() == 1:
        return True
    import torch.distributed

    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            timeout=datetime.timedelta(seconds=5),
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        first: bool = store.add(f"pidistill/failures/{attempt}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return is_main_process()
    return first


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

    def span(self, num: int, unit: int) -> range:
        """This process's part of `num` items, in whole units but for the last; it may be empty.

        The parts follow one another in the order of the processes. A batch of `unit` items is
        never cut, so that it is computed just as one process alone would do.
        """
        units = -(-num // unit)
        first, last = (units * index // self.count for index in (self.index, self.index + 1))
        return range(min(num, first * unit), min(num, last * unit))

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

    def share(self, item: Any) -> Any:
        """What the main process passed in."""
        if self.count == 1:
            return item
        import torch.distributed

        items = [item]
        torch.distributed.broadcast_object_list(items, src=0, group=self.group)
        return items[0]


ALONE = Processes()
"""The one process there is."""


def meet_after_restart() -> None:
    """Form the process group where `torchrun --max-restarts` started the processes anew.

    The launcher may keep one store of addresses for all attempts. A process that reads there the
    address of one that was lost waits for it in vain, so every attempt after the first writes under
    a name of its own. Has to come before accelerate forms the group.
    """
    if num_processes() == 1 or not was_restarted():
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    distributed: Any = torch.distributed
    store = distributed.TCPStore(address, port, is_master=False, wait_for_workers=False)
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=distributed.PrefixStore(f"pidistill/attempt-{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=num_processes(),
    )


def join_processes() -> Processes:
    """Meet the other processes that the launcher started; alone where there was no launcher."""
    if num_processes() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    meet_after_restart()
    state = PartialState(cpu=not torch.accelerator.is_available())
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, group)
