"""Pairs of noise and the teacher's solution from it, made once and kept in shards on the disk.

A folder of pairs holds `manifest.json`, which says how they were made, and safetensors files
`shard-00000.safetensors`, ... of `z`, `x` and, for a class-conditional teacher, `label`. Pair i
depends on the seed and i only, and label i is `i % num_classes`. A shard is written at once or not
at all, and what is there is kept, so that making pairs goes on where it was cut. Several processes
make a shard each, and the shards are those that one process makes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, write_json
from pidistill.noise import Draws, device_of
from pidistill.ode import solve
from pidistill.processes import ALONE, Processes
from pidistill.storage import read_tensors, write_tensors
from pidistill.students.base import labels_for
from pidistill.teachers.fingerprint import teacher_fingerprint

MANIFEST = "manifest.json"
SHARD = 1024
"""Pairs in a full shard."""


class Pairs(NamedTuple):
    """Pairs that fit in memory."""

    z: Tensor
    """Starting noise at `sigma_max`, shape (n, *sample_shape), float32."""
    x: Tensor
    """The teacher's samples from it, of the same shape."""
    label: Tensor | None
    """Their labels (n,), int64, or None for an unconditional teacher."""


def describe_pairs(
    teacher: Denoiser, spec: str | None, *, solver: str, steps: int, seed: int
) -> dict[str, Any]:
    """How pairs are made, as JSON values.

    Folders of pairs are the same where these are, but for the teacher's spec.

    Args:
        teacher: The teacher.
        spec: Its spec, or None.
        solver: Its solver, a key of `ode.SOLVERS`.
        steps: Nodes of the rho-7 grid (see `ode.solve`).
        seed: Seed of the noise.
    """
    return {
        "teacher": spec,
        "teacher_fingerprint": teacher_fingerprint(teacher),
        "sigma_min": teacher.sigma_min,
        "sigma_max": teacher.sigma_max,
        "num_classes": teacher.num_classes,
        "sample_shape": list(teacher.sample_shape),
        "solver": solver,
        "steps": steps,
        "seed": seed,
    }


def open_pairs(folder: Path, manifest: dict[str, Any], processes: Processes = ALONE) -> None:
    """Begin a folder of pairs, or go on with one; the main process does, and the others wait.

    Raises `PidistillError` when it holds pairs that were made otherwise than `manifest` says.
    """
    if processes.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            write_json(folder / MANIFEST, manifest)
    processes.wait()
    old = read_json(folder / MANIFEST)
    if old.get("teacher_fingerprint") != manifest["teacher_fingerprint"]:
        raise PidistillError(
            f"the pairs in {folder} were made with a teacher of other weights or settings "
            f"({old.get('teacher')}) than {manifest['teacher']}; choose another folder of pairs"
        )
    for key, value in manifest.items():
        if key != "teacher" and old.get(key) != value:
            raise PidistillError(
                f"the pairs in {folder} were made with {key} {old.get(key)!r}, but this run asks "
                f"for {value!r}; choose another folder of pairs"
            )


def make_pairs(
    folder: Path,
    teacher: Denoiser,
    manifest: dict[str, Any],
    num: int,
    *,
    batch_size: int,
    processes: Processes = ALONE,
) -> Iterator[int]:
    """Make the first `num` pairs in `folder`, but for those that are there.

    Args:
        folder: Where they are kept, from `open_pairs`.
        teacher: The teacher, on its device.
        manifest: What `describe_pairs` says of them.
        num: How many pairs there have to be.
        batch_size: Pairs that are solved for at once.
        processes: Those that share the shards; all of them call this, and come back when all of the
            pairs are there.

    Yields:
        How many pairs of its share (`share_of_pairs`) are there, after every batch.

    Raises:
        PidistillError: The folder holds a damaged file.
    """
    earlier = 0
    for first in range(processes.index * SHARD, num, processes.count * SHARD):
        needed = min(SHARD, num - first)
        path = folder / f"shard-{first // SHARD:05d}.safetensors"
        parts = [read_tensors(path)] if path.exists() else []
        done = len(parts[0]["x"]) if parts else 0
        if done >= needed:
            earlier += needed
            yield earlier
            continue
        while done < needed:
            count = min(batch_size, needed - done)
            parts.append(solve_pairs(teacher, manifest, first + done, count))
            done += count
            if done == needed:
                whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
                if not path.exists() or len(read_tensors(path)["x"]) < needed:  # of another run
                    write_tensors(path, whole)
            yield earlier + done
        earlier += needed
    processes.wait()


def share_of_pairs(num: int, processes: Processes) -> int:
    """How many of `num` pairs this process makes, or finds there."""
    return sum(
        min(SHARD, num - first)
        for first in range(processes.index * SHARD, num, processes.count * SHARD)
    )


def solve_pairs(
    teacher: Denoiser, manifest: dict[str, Any], first: int, count: int
) -> dict[str, Tensor]:
    """The pairs `first .. first + count - 1`, by name, on the CPU; arguments as `make_pairs`.

    Their noise has a stream of its own: no sample of any seed is a pair that was trained on.
    """
    eps = Draws(manifest["seed"], first, count).normal("pair z", teacher.sample_shape)
    z = (teacher.sigma_max * eps).float()
    label = labels_for(teacher, count, first=first)
    device = device_of(teacher)
    x = solve(
        teacher,
        z.to(device),
        steps=manifest["steps"],
        solver=manifest["solver"],
        label=None if label is None else label.to(device),
    ).x.cpu()
    return {"z": z, "x": x} if label is None else {"z": z, "x": x, "label": label}


def load_pairs(folder: Path, num: int) -> Pairs:
    """Load the first `num` pairs of `folder`, which `make_pairs` made.

    Raises `PidistillError` when a shard is missing, damaged or too short.
    """
    shards = [
        read_tensors(folder / f"shard-{index:05d}.safetensors") for index in range(-(-num // SHARD))
    ]
    whole = {key: torch.cat([shard[key] for shard in shards])[:num] for key in shards[0]}
    if len(whole["x"]) < num:
        raise PidistillError(
            f"{folder} holds {len(whole['x'])} pairs; expected {num}; run it again to make the rest"
        )
    return Pairs(whole["z"], whole["x"], whole.get("label"))
