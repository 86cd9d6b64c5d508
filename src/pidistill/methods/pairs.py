"""Pairs of starting noise and the teacher's sample, made once and stored on disk in shards.

A folder of pairs holds `manifest.json`, which records how they were made, and safetensors files
`shard-00000.safetensors`, ... with `z`, `x` and, for a class-conditional teacher, `label`. Pair i
depends only on the seed and i; label i is `i % num_classes`. Shards are written atomically, so an
interrupted job resumes at the first missing shard. Several processes make different shards.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, write_json
from pidistill.noise import Draws, device_of
from pidistill.numerics import precise
from pidistill.ode import solve
from pidistill.processes import ALONE, Processes
from pidistill.storage import read_tensors, write_tensors
from pidistill.students.base import require_finite
from pidistill.students.labels import labels_for
from pidistill.teachers.fingerprint import teacher_fingerprint

MANIFEST = "manifest.json"
SHARD = 1024
"""Pairs in a full shard."""


class Pairs(NamedTuple):
    """Pairs that fit in memory."""

    z: Tensor
    """Starting noise at `sigma_max`, shape (n, *sample_shape), float32."""
    x: Tensor
    """The teacher's samples from `z`, of the same shape."""
    label: Tensor | None
    """Class labels (n,), int64, or None for an unconditional teacher."""


@dataclasses.dataclass(frozen=True)
class PairFolder:
    """The first `num` pairs of a teacher, in a folder."""

    folder: Path
    teacher: Denoiser
    spec: str | None
    """The teacher's spec, for display only; the fingerprint identifies the teacher."""
    num: int
    solver: str
    """A key of `ode.SOLVERS`."""
    steps: int
    """Number of nodes of the rho-7 grid (see `ode.solve`)."""
    seed: int
    batch_size: int
    """Number of pairs to solve for at once."""
    processes: Processes = ALONE

    @property
    def _starts(self) -> range:
        """The first pair of each of this process's shards."""
        return range(self.processes.index * SHARD, self.num, self.processes.count * SHARD)

    @property
    def share(self) -> int:
        """The number of pairs in this process's shards."""
        return sum(min(SHARD, self.num - first) for first in self._starts)

    def _shard(self, first: int) -> Path:
        return self.folder / f"shard-{first // SHARD:05d}.safetensors"

    def make(self) -> Iterator[int]:
        """Make the missing pairs, yielding how many of this process's `share` are done.

        All processes must call it; each returns once all pairs exist.

        Raises:
            PidistillError: The folder holds a damaged file, or pairs made with other settings.
        """
        self._open()
        earlier = 0
        yield earlier
        for first in self._starts:
            needed = min(SHARD, self.num - first)
            path = self._shard(first)
            parts = [read_tensors(path)] if path.exists() else []
            done = len(parts[0]["x"]) if parts else 0
            if done >= needed:
                yield earlier + needed
            while done < needed:
                count = min(self.batch_size, needed - done)
                parts.append(self.solve(first + done, count))
                done += count
                if done == needed:
                    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
                    # Another run may have written a longer shard in the meantime.
                    if not path.exists() or len(read_tensors(path)["x"]) < needed:
                        write_tensors(path, whole)
                yield earlier + done
            earlier += needed
        self.processes.wait()

    def _open(self) -> None:
        """Write the manifest if there is none, then check it; the other processes wait."""
        manifest = {
            "teacher": self.spec,
            "teacher_fingerprint": teacher_fingerprint(self.teacher),
            "sigma_min": self.teacher.sigma_min,
            "sigma_max": self.teacher.sigma_max,
            "num_classes": self.teacher.num_classes,
            "sample_shape": list(self.teacher.sample_shape),
            "solver": self.solver,
            "steps": self.steps,
            "seed": self.seed,
        }
        if self.processes.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / MANIFEST).exists():
                write_json(self.folder / MANIFEST, manifest)
        self.processes.wait()
        _require_same(self.folder, read_json(self.folder / MANIFEST), manifest)

    @precise()
    def solve(self, first: int, count: int) -> dict[str, Tensor]:
        """The pairs `first .. first + count - 1`, by name, on the CPU.

        Their noise has a separate stream, so no seed draws a sample from a training pair's noise.
        """
        eps = Draws(self.seed, first, count).normal("pair z", self.teacher.sample_shape)
        z = (self.teacher.sigma_max * eps).float()
        label = labels_for(self.teacher, count, first=first)
        device = device_of(self.teacher)
        on_device = None if label is None else label.to(device)
        x = solve(
            self.teacher, z.to(device), steps=self.steps, solver=self.solver, label=on_device
        ).x.cpu()
        require_finite(x, self.teacher.source, first)
        return {"z": z, "x": x} if label is None else {"z": z, "x": x, "label": label}

    def load(self) -> Pairs:
        """Load the pairs; raises `PidistillError` if a shard is missing, damaged or too short."""
        shards = [read_tensors(self._shard(first)) for first in range(0, self.num, SHARD)]
        whole = {key: torch.cat([shard[key] for shard in shards])[: self.num] for key in shards[0]}
        if len(whole["x"]) < self.num:
            raise PidistillError(
                f"{self.folder} holds {len(whole['x'])} pairs; expected {self.num}; remove the "
                "truncated shard"
            )
        return Pairs(whole["z"], whole["x"], whole.get("label"))


def _require_same(folder: Path, found: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise `PidistillError` unless the manifest found matches the expected one."""
    if found.get("teacher_fingerprint") != manifest["teacher_fingerprint"]:
        raise PidistillError(
            f"the pairs in {folder} were made by {found.get('teacher')}, whose weights or settings "
            f"differ from those of {manifest['teacher']}; choose another folder of pairs"
        )
    for key in manifest.keys() - {"teacher"}:
        if found.get(key) != manifest[key]:
            raise PidistillError(
                f"the pairs in {folder} were made with {key} {found.get(key)!r}, but this run "
                f"needs {manifest[key]!r}; choose another folder of pairs"
            )
