"""Fail every write of a run in turn, and see that the folder can always be resumed.

    python tests/soak/write_failures.py [--short] [--number EVERY]

Each case begins a run in which, from one write point on (see `faults.py`), the disk is full, the
drive is gone, or the process is killed; every so many write points are tried. Then

- the run has ended with one line that begins `error:`, or by the kill;
- `inspect`, `sample` and now and then `evaluate` take the folder or refuse it in a line;
- `distill --resume` ends as the run that nothing happened to, to the last bit.

If one may be mounted, a small file system that is really full is tried as well.
"""

import collections
import json
import shutil
import signal
import subprocess
import sys

import numpy as np

from pidistill.cli import main as pidistill

import faults
import forked

KILLED = -signal.SIGKILL


class Soak:
    """One case after another, and what went wrong."""

    def __init__(self, place):
        """Train the straight run, and count its write points."""
        self.place, self.output = place, place / "output.txt"
        self.cases, self.problems = collections.Counter(), []
        straight, points = place / "straight", place / "points.txt"

        def counted():
            counter = faults.Counter(straight)
            counter.install()
            code = forked.distil(straight)()
            points.write_text(str(counter.count))
            return code

        self.require(forked.run(counted, self.output) == 0, "the straight run failed")
        self.points = int(points.read_text())
        print(f"{self.points} write points", flush=True)
        self.expected = forked.remains(straight)
        shape = json.loads((straight / "network.json").read_text())["sample_shape"]
        np.savez(place / "reference.npz", samples=np.zeros((4, *shape), dtype=np.float32))

    def require(self, fact, what):
        """Note a problem, with what the last command printed, if a fact does not hold."""
        if not fact:
            self.problems.append(what)
            print(f"{what}\n{self.output.read_text(errors='replace')}", flush=True)

    def case(self, kind, name, folder, broken):
        """Run `broken`, which works on `folder`, and look at the folder."""
        self.cases[kind] += 1
        code = forked.run(broken, self.output)
        ended = code in (0, KILLED) or (code == 2 and len(forked.error_lines(self.output)) == 1)
        self.require(ended, f"{name}: exit code {code}")
        commands = [f"inspect {folder}", f"sample {folder} -n 2 --out {self.place}/x.npz"]
        if self.cases.total() % 10 == 1:  # it draws pictures, which takes seconds
            commands.append(f"evaluate {folder} --reference {self.place}/reference.npz --num 4")

        def look():
            codes = {command: pidistill(command.split()) for command in commands}
            print(codes)
            return 0 if set(codes.values()) <= {0, 2} else forked.CRASHED

        self.require(forked.run(look, self.output) == 0, f"{name}: a command failed")

    def resume(self, name, folder):
        code = forked.run(forked.distil(folder), self.output)
        self.require(code == 0, f"{name}: exit code {code} when resumed")
        if code == 0:
            self.require(forked.remains(folder) == self.expected, f"{name}: not the straight run")
            left = forked.leftovers(folder)
            self.require(not left, f"{name}: left over are {left}")

    def inject(self, fault, first):
        """One fault from one write point on."""
        name, folder = f"{fault} from write point {first}", self.place / "run"

        def broken():
            faults.Counter(folder, faults.FAULTS[fault], first).install()
            return forked.distil(folder)()

        self.case(fault, name, folder, broken)
        self.resume(name, folder)
        shutil.rmtree(folder, ignore_errors=True)

    def fill(self, kilobytes):
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


def mounted(place, options):
    """Mount a file system in memory; whether that is permitted."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def fail_writes(every, seed, place):
    """All cases, or every so many; whether nothing went wrong."""
    soaked = Soak(place)
    for number, fault in enumerate(faults.FAULTS):
        for first in range(number * every // len(faults.FAULTS), soaked.points, every):
            soaked.inject(fault, first)
    for kilobytes in range(4, 900, 8 * min(every, 20)):
        if not soaked.fill(kilobytes):
            print("skipped: really full disks, since mounting is not permitted here")
            break
    told = ", ".join(f"{number} {kind}" for kind, number in soaked.cases.items())
    print(f"{soaked.points} write points; {told}: {len(soaked.problems)} problems")
    return not soaked.problems


if __name__ == "__main__":
    sys.exit(forked.soak(__doc__, fail_writes, short=200, long=1))
