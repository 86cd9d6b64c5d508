"""Fail every write of a run in turn, and see that the folder can always be resumed.

    python tests/soak/write_failures.py [--short] [--every N]

Each case begins a run in which, from one write point on (see `faults.py`), the disk is full, the
drive is gone, or the process is killed. Then

- the run has ended with one line that begins `error:`, or by the kill;
- `inspect`, `sample` and now and then `evaluate` take the folder or refuse it in a line;
- `distill --resume` ends as the run that nothing happened to, to the last bit.

Where one may be mounted, a small file system that is really full is tried as well.
"""

import argparse
import collections
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pidistill.cli import main as pidistill

import faults
import forked

NEVER = 10**9
KILLED = -signal.SIGKILL


class Soak:
    """One case after another, and what went wrong."""

    def __init__(self, place: Path) -> None:
        """Train the straight run, and count its write points."""
        forked.load_everything()
        self.place, self.output = place, place / "output.txt"
        self.cases: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        straight, points = place / "straight", place / "points.txt"

        def counted() -> int:
            counter = faults.Counter(straight, faults.nothing, NEVER)
            counter.install()
            code = forked.distil(straight)()
            points.write_text(str(counter.count))
            return code

        self.require(forked.run(counted, self.output) == 0, "the straight run failed")
        self.points = int(points.read_text())
        print(f"{self.points} write points", flush=True)
        self.expected = forked.remains(straight)
        shape = forked.sample_shape(straight)
        np.savez(place / "reference.npz", samples=np.zeros((4, *shape), dtype=np.float32))

    def require(self, fact: bool, what: str) -> None:
        """Note a problem, with what the last command printed, where a fact does not hold."""
        if not fact:
            self.problems.append(f"{what}\n{self.output.read_text(errors='replace')}")
            print(self.problems[-1], flush=True)

    def case(self, kind: str, name: str, folder: Path, broken: Callable[[], int]) -> None:
        """Run `broken`, which works on `folder`; look at the folder; go on from it."""
        self.cases[kind] += 1
        code = forked.run(broken, self.output)
        ended = code in (0, KILLED) or (code == 2 and len(forked.error_lines(self.output)) == 1)
        self.require(ended, f"{name}: exit code {code}")
        self.look(name, folder)

    def look(self, name: str, folder: Path) -> None:
        """No command may trip over the folder."""
        samples, reference = str(self.place / "x.npz"), str(self.place / "reference.npz")
        commands = {
            "inspect": ["inspect", str(folder)],
            "sample": ["sample", str(folder), "-n", "2", "--out", samples],
        }
        if self.cases.total() % 10 == 1:  # it draws pictures, which takes seconds
            evaluate = ["evaluate", str(folder), "--reference", reference, "--num", "4"]
            commands["evaluate"] = evaluate

        def all_of_them() -> int:
            codes = {verb: pidistill(arguments) for verb, arguments in commands.items()}
            print(codes)
            return 0 if set(codes.values()) <= {0, 2} else forked.CRASHED

        self.require(forked.run(all_of_them, self.output) == 0, f"{name}: a command failed")

    def resume(self, name: str, folder: Path) -> None:
        """The run goes on from the folder, and ends as the straight one."""
        code = forked.run(forked.distil(folder), self.output)
        self.require(code == 0, f"{name}: exit code {code} when resumed")
        if code == 0:
            same = forked.remains(folder) == self.expected
            self.require(same, f"{name}: not the straight run")
            left = forked.leftovers(folder)
            self.require(not left, f"{name}: left over are {left}")

    def inject(self, fault: str, first: int) -> None:
        """One fault from one write point on."""
        name, folder = f"{fault} from write point {first}", self.place / "run"

        def broken() -> int:
            faults.Counter(folder, faults.FAULTS[fault], first).install()
            return forked.distil(folder)()

        self.case(fault, name, folder, broken)
        self.resume(name, folder)
        shutil.rmtree(folder, ignore_errors=True)

    def fill(self, kilobytes: int) -> bool:
        """A file system of that size, which grows before the run is resumed; False if refused."""
        disk = self.place / "disk"
        disk.mkdir(exist_ok=True)
        if not mounted(disk, f"size={kilobytes}k"):
            return False
        try:
            name, folder = f"a disk of {kilobytes} kB", disk / "run"
            self.case("really full", name, folder, forked.distil(folder))
            mounted(disk, "remount,size=100m")
            self.resume(name, folder)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return True


def mounted(place: Path, options: str) -> bool:
    """Mount a file system in memory; whether that is permitted."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def cases(points: int, every: int) -> Iterator[tuple[str, int]]:
    """Every fault at every write point, or at every so many, the first by turns."""
    for number, fault in enumerate(faults.FAULTS):
        for first in range(number * every // len(faults.FAULTS), points, every):
            yield fault, first


def soak(every: int, place: Path) -> bool:
    """All cases; whether nothing went wrong."""
    soaked = Soak(place)
    for fault, first in cases(soaked.points, every):
        soaked.inject(fault, first)
    for kilobytes in range(4, 900, 8 * min(every, 20)):
        if not soaked.fill(kilobytes):
            print("skipped: really full disks, since mounting is not permitted here")
            break
    told = ", ".join(f"{number} {kind}" for kind, number in soaked.cases.items())
    print(f"{soaked.points} write points; {told}: {len(soaked.problems)} problems")
    return not soaked.problems


def main() -> int:
    """Read the arguments and soak."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--every", type=int, default=None, help="take every so many write points")
    arguments = parser.parse_args()
    with forked.scratch() as place:
        return 0 if soak(arguments.every or (100 if arguments.short else 1), Path(place)) else 1


if __name__ == "__main__":
    sys.exit(main())
