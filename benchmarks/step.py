"""Time training steps of every method, and sampling, beside a plain step of the published method.

    python benchmarks/step.py --sizes unet16 --methods pid --precisions bf16,no --json

The plain step is written below in the most direct way: float32, the student's two evaluations one
after the other, torch's generator, TF32 convolutions as torch has them by default. It and every
step of ours take turns in one process, so that a busy machine slows both alike; `ratio` is the
quotient of the medians. Both have the published optimizer (RAdam) and three averages. Networks
have random weights, which cost what trained ones cost. On a CPU the time is that of the process
(one thread by default), otherwise the wall's, after waiting for the device.

Prints a table, or with --json one object whose `results` hold `size, method, precision, compile,
ms, baseline_ms, ratio` and more; --out FILE writes it, too.
"""

import argparse
import contextlib
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.devices import wait_for
from pidistill.files import write_json
from pidistill.machine import machine
from pidistill.methods import method_class
from pidistill.networks import new_network
from pidistill.noise import Draws, drawing_device, initial_noise
from pidistill.ode import solve
from pidistill.precondition import EDMPrecondition
from pidistill.students.base import Student
from pidistill.training.assemble import build_method
from pidistill.training.config import parse_config
from pidistill.training.distributed import compile_networks
from pidistill.training.trainer import Trainer


class Size(NamedTuple):
    """A network and the batch that it is trained with."""

    network: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    batch: int


UNET = {"model_channels": 128, "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.0}
SIZES = {
    "digits": Size("mlp", {}, (1, 8, 8), 10, 128),
    "glyphs": Size(
        "song_unet",
        {
            "model_channels": 16,
            "channel_mult": [1, 2, 4],
            "num_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
            "patch_size": 2,
        },
        (3, 32, 32),
        10,
        64,
    ),
    "unet16": Size(
        "song_unet",
        {
            "model_channels": 64,
            "channel_mult": [1, 2],
            "num_blocks": 2,
            "attn_resolutions": [8],
            "dropout": 0.0,
        },
        (3, 16, 16),
        0,
        16,
    ),
    "cifar10": Size("song_unet", {**UNET, "channel_mult": [2, 2, 2]}, (3, 32, 32), 0, 128),
    "imagenet64": Size("dhariwal_unet", {"dropout": 0.0}, (3, 64, 64), 1000, 24),
    "edm2-s": Size("edm2_unet", {"model_channels": 192}, (4, 64, 64), 1000, 24),
}
METHODS = ("pid", "pid-map", "correction", "consistency", "progressive", "boot", "knowledge")
SETTINGS: dict[str, dict[str, Any]] = {
    "correction": {"first_share": 1e-6, "auxiliary_warmup": 0},
    "progressive": {"start_steps": 8},
    "knowledge": {"num_pairs": 256, "steps": 4},
}
PUBLISHED = {"optimizer": "radam", "learning_rate": 1e-4, "ema_rates": [0.999, 0.9999, 0.99995]}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense half-precision operations per second of tensor cores, from NVIDIA's data sheets."""
NODES = 18
"""Nodes of Heun's method, which take 35 evaluations."""


def teacher_of(size: Size, device: torch.device) -> Denoiser:
    """A denoiser with random weights."""
    torch.manual_seed(0)
    network = new_network(size.network, size.shape, size.classes, size.config)
    return (
        PreconditionedDenoiser(
            network, EDMPrecondition(), sample_shape=size.shape, num_classes=size.classes, source=""
        )
        .to(device)
        .eval()
        .requires_grad_(False)
    )


def plain_step(size: Size, teacher: Denoiser, device: torch.device) -> Callable[[], None]:
    """A step of the published method, written directly."""
    torch.backends.cudnn.allow_tf32 = True
    network = copy.deepcopy(teacher.network_to_copy()[0]).to(device).requires_grad_(True)  # type: ignore[index]
    optimizer = torch.optim.RAdam(network.parameters(), lr=1e-4, betas=(0.9, 0.999))
    averages = [copy.deepcopy(network).requires_grad_(False) for _ in PUBLISHED["ema_rates"]]
    rho, low, high = 7, teacher.sigma_min, teacher.sigma_max
    i = torch.arange(250, dtype=torch.float64) / 249
    nodes = (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    nodes = nodes.float().to(device)
    c_in = 1 / (0.25 + high**2) ** 0.5

    def student(z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        share = (sigma / high).reshape(-1, *[1] * (z.ndim - 1))
        F = network(c_in * z, sigma.log() / 4, label)[:, : z.shape[1]]
        return share * z + (1 - share) * F

    def step() -> None:
        z = high * torch.randn(size.batch, *size.shape, device=device)
        label = None
        if size.classes:
            label = torch.randint(size.classes, (size.batch,), device=device)
        index = torch.randint(249, (size.batch,), device=device)
        sigma, sigma_next = nodes[index], nodes[index + 1]
        x, x_next = student(z, sigma, label), student(z, sigma_next, label)
        over = (sigma / (sigma - sigma_next)).reshape(-1, *[1] * (z.ndim - 1))
        with torch.no_grad():
            target = teacher(x, sigma, label)
        loss = (x - over * (x - x_next) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for rate, average in zip(PUBLISHED["ema_rates"], averages, strict=True):
                for p, q in zip(network.parameters(), average.parameters(), strict=True):
                    q.lerp_(p, 1 - rate)
        loss.item()

    return step


def trainer_of(name: str, size: Size, teacher: Denoiser, precision: str, folder: str) -> Trainer:
    """A trainer of a method, with the published optimizer and averages."""
    method = {"name": name, **SETTINGS.get(name, {})}
    if name == "pid":
        method |= {"parametrisation": "edm", "draw": "log"}
    table = {
        "method": method,
        "mixed_precision": precision,
        "batch_size": size.batch,
        "max_train_steps": 10**6,
        "torch_compile": False,
        "preview_steps": 0,
        "logging_steps": 10**6,
        "checkpointing_steps": 10**6,
        **PUBLISHED,
    }
    data = None
    if method_class(name).needs == "images":
        label = torch.arange(256) % size.classes if size.classes else None
        data = Dataset(torch.zeros(256, *size.shape), label, size.classes, "zeros")
    config = parse_config([table])
    method_of = build_method(config, teacher, data)
    trainer = Trainer(config, method_of, folder, data=data)
    for _ in trainer.prepare():
        pass
    return trainer


def medians(
    steps: dict[str, Callable[[], Any]], device: torch.device, seconds: float, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of each step, in turns, for about `seconds`, after one round to warm up."""
    clock = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    began = time.perf_counter()
    for turn in range(200):
        for name, step in steps.items():
            wait_for(device)
            start = clock()
            step()
            wait_for(device)
            if turn:
                times[name].append(1000 * (clock() - start))
        if turn >= 5 and time.perf_counter() - began > seconds:
            break
    return times


def parts_of_a_step(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """Milliseconds of the parts of a step of PID, each measured alone."""
    update = next(iter(trainer.method.updates(trainer.step)))
    part = trainer.state.parts[update.part]
    shape, num = trainer.method.student.sample_shape, trainer.micro_batch
    draws = Draws(0, 0, num, drawing_device(device))
    losses: list[Any] = []
    stages: dict[str, Callable[[], Any]] = {
        "noise": lambda: draws.normal("train z", shape),
        "forward": lambda: losses.append(trainer._losses(part, update, 0)),
        "backward": lambda: trainer.accelerator.backward(losses.pop().loss.mean()),
        "optimizer": lambda: part.optimizer.step(),
        "averages": lambda: part.averages.update(10**6),
    }
    times = medians(stages, device, 3.0, torch.get_num_threads())
    part.optimizer.zero_grad()
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def idle_share(step: Callable[[], Any], device: torch.device) -> float | None:
    """The share of five steps' time in which a CUDA device computes nothing."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        began = time.perf_counter()
        for _ in range(5):
            step()
        wait_for(device)
        took = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6
    return round(1 - busy / took, 4)


def operations_per_second(precision: str, device: torch.device) -> float:
    """The rate of a large matrix product, the most that can be had here."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[precision]
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = medians({"product": lambda: a @ a}, device, 1.0, torch.get_num_threads())
    return 2 * side**3 / (min(times["product"]) / 1000)


def measure(
    size_name: str, name: str, precision: str, compiled: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """One row: a method's step beside the plain one."""
    size, device = SIZES[size_name], torch.device(args.device)
    if args.batch:
        size = size._replace(batch=args.batch)
    teacher = teacher_of(size, device)
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_step(size, teacher, device)
        trainer = trainer_of(name, size, teacher, precision, folder)
        device = trainer.accelerator.device
        with FlopCounterMode(display=False) as counter:
            trainer.train_step()
        parts = parts_of_a_step(trainer, device) if not compiled else None
        compile_seconds = None
        if compiled:
            compile_networks(trainer.method, device)
            began = time.perf_counter()
            trainer.train_step()
            compile_seconds = round(time.perf_counter() - began, 1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            trainer.train_step()
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        steps = {"plain": plain, "ours": trainer.train_step}
        times = medians(steps, device, args.seconds, args.threads)
        idle = idle_share(trainer.train_step, device)
    ms, baseline = (statistics.median(times[key]) for key in ("ours", "plain"))
    rate = counter.get_total_flops() / (ms / 1000)
    limit = operations_per_second(precision, device)
    named = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peaks = [peak for key, peak in PEAK.items() if key in named and precision != "no"]
    return {
        "size": size_name,
        "method": name,
        "precision": precision,
        "compile": compiled,
        "batch": size.batch,
        "parameters": sum(p.numel() for p in trainer.method.student.parameters()),
        "ms": round(ms, 3),
        "ms_quartiles": [round(q, 3) for q in statistics.quantiles(times["ours"], n=4)[::2]],
        "baseline_ms": round(baseline, 3),
        "ratio": round(ms / baseline, 4),
        "images_per_second": round(1000 * size.batch / ms, 2),
        "parts_ms": parts,
        "compile_seconds": compile_seconds,
        "memory_bytes": memory,
        "idle_share": idle,
        "operations": counter.get_total_flops(),
        "share_of_matrix_product": round(rate / limit, 4),
        "share_of_data_sheet": round(rate / peaks[0], 4) if peaks else None,
    }


def sampling(size_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a batch in one step, and by Heun's method."""
    size, device = SIZES[size_name], torch.device(args.device)
    size = size._replace(batch=args.batch or size.batch)
    teacher = teacher_of(size, device)
    with tempfile.TemporaryDirectory() as folder:
        student = trainer_of("pid", size, teacher, "no", folder).method.student
    assert isinstance(student, Student)
    z = initial_noise(teacher, size.batch, seed=0)
    label = torch.zeros(size.batch, dtype=torch.int64, device=device) if size.classes else None
    runs = {
        "one_step": lambda: student.sample(z, label=label),
        "heun": lambda: solve(teacher, z, steps=NODES, label=label),
    }
    with torch.no_grad():
        times = medians(runs, device, args.seconds, args.threads)
    one, heun = (statistics.median(times[key]) for key in runs)
    nfe = 2 * NODES - 1
    return {
        "size": size_name,
        "batch": size.batch,
        "one_step_ms": round(one, 3),
        "heun_ms": round(heun, 3),
        "heun_evaluations": nfe,
        "speed_up_over_evaluations": round(heun / one / nfe, 4),
    }


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--sizes", type=names, default=["unet16"], help=",".join(SIZES))
    parser.add_argument("--methods", type=names, default=["pid"], help=",".join(METHODS))
    parser.add_argument("--precisions", type=names, default=["no", "bf16"], help="no,bf16,fp16")
    parser.add_argument("--compile", type=names, default=["off", "on"], help="off,on")
    parser.add_argument("--batch", type=int, help="instead of the size's own")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sampling", action="store_true", help="time sampling, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    for key, known in (("sizes", SIZES), ("methods", METHODS), ("compile", ("off", "on"))):
        for name in getattr(args, key):
            if name not in known:
                parser.error(f"--{key} {name}: expected some of {', '.join(known)}")
    return args


def main() -> None:
    """Time what the options ask for."""
    args = parse()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"machine": machine(), "results": []}
    for size in args.sizes:
        for name in args.methods:
            for precision in args.precisions:
                for compiled in args.compile:
                    with contextlib.redirect_stdout(sys.stderr):
                        row = measure(size, name, precision, compiled == "on", args)
                    found["results"].append(row)
                    line = "{size:10} {method:12} {precision:5} compile {compile!s:5}".format(**row)
                    figures = "{ms:10.1f} ms {baseline_ms:10.1f} ms plain  ratio {ratio:.3f}"
                    print(line, figures.format(**row), file=sys.stderr if args.json else sys.stdout)
                    save(args.out, found)
    if args.sampling:
        found["sampling"] = [sampling(size, args) for size in args.sizes]
        save(args.out, found)
    if args.json:
        print(json.dumps(found))


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Write what was found so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)


if __name__ == "__main__":
    main()
