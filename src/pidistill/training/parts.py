"""A part of a method in training: its optimizer, its averages, its files."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pidistill.methods.base import Batch, Losses, Part
from pidistill.methods.settings import OptimizerSettings, rate_by_size
from pidistill.model_folder import weights_name
from pidistill.sharding import divided, load_whole, whole_tensors
from pidistill.storage import read_tensors
from pidistill.training.averages import Averages
from pidistill.training.distributed import block_names, start_fsdp, whole_weights

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "radam": torch.optim.RAdam,
}

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "linear": lambda fraction: 1 - fraction,
    "cosine": lambda fraction: (1 + math.cos(math.pi * fraction)) / 2,
}


class _Wrapped(nn.Module):
    """The module that accelerate wraps; its forward is the loss of an update."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._no_split_modules = block_names(module)  # accelerate's name

    def forward(self, loss: Callable[[Batch], Losses], batch: Batch) -> Losses:
        return loss(batch)


class TrainedPart:
    """A `Part` with its optimizer and averages."""

    def __init__(
        self,
        part: Part,
        defaults: OptimizerSettings,
        accelerator: Accelerator,
        *,
        ema_rates: list[float],
        ema_warmup: bool,
    ) -> None:
        """Build the optimizer and wrap it and the module with the accelerator.

        Args:
            part: The part.
            defaults: Optimizer settings for a part without its own.
            accelerator: The accelerator.
            ema_rates: Rates of the averages, for a part that is averaged.
            ema_warmup: Whether the averages forget faster at first.
        """
        self.name, self.module = part.name, part.module
        self.accelerator, self.defaults = accelerator, defaults
        self.adopt(part.optimizer)
        self.ema_rates = ema_rates if part.averaged else []
        self.ema_warmup = ema_warmup
        optimizer = OPTIMIZERS[self.settings.optimizer](
            part.module.parameters(),
            lr=self.highest_rate,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            weight_decay=self.settings.adam_weight_decay,
        )
        self.wrapped, self.optimizer = accelerator.prepare(_Wrapped(part.module), optimizer)
        start_fsdp(self.wrapped)
        self.restart()

    def adopt(self, settings: OptimizerSettings | None) -> None:
        """Train by `settings` from now on; None means the run's own."""
        self.settings = settings or self.defaults
        size = sum(parameter.numel() for parameter in self.module.parameters())
        rate = self.settings.learning_rate or rate_by_size(size)
        self.highest_rate = self.defaults.learning_rate_scale * rate

    def restart(self) -> None:
        """Restart the optimizer and the averages from the current weights."""
        self.optimizer.state.clear()
        self.averages = Averages(self.module, self.ema_rates, warmup=self.ema_warmup)
        self.num_updates = 0

    def learning_rate(self, done: int, steps: int) -> float:
        """The learning rate after `done` of the `steps` steps of a phase."""
        settings = self.settings
        warmup = settings.lr_warmup_steps
        rise = min(1.0, (done + 1) / warmup) if warmup else 1.0
        decay = DECAYS[settings.lr_scheduler](min(1.0, done / max(1, steps)))
        return self.highest_rate * rise * max(decay, settings.lr_end)

    def step(self, learning_rate: float) -> Tensor:
        """Take an optimizer step with the current gradients; returns their norm, a scalar.

        In fp16, a step whose gradients overflow is skipped; their norm is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            group["betas"] = (self.settings.adam_beta1, self.settings.adam_beta2)
            group["weight_decay"] = self.settings.adam_weight_decay
        self.accelerator.unscale_gradients(self.optimizer)
        parameters = list(self.module.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for module in self.module.modules():
            constrain: Any = getattr(module, "constrain_", None)
            if constrain is not None:
                constrain()
        self.averages.update(self.num_updates)
        self.num_updates += 1
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @property
    def _prefix(self) -> str:
        return "" if self.name == "student" else f"{self.name}-"

    @property
    def _optimizer_file(self) -> str:
        return (
            "optimizer.safetensors"
            if self.name == "student"
            else f"{self.name}-optimizer.safetensors"
        )

    def weight_files(self) -> list[str]:
        """Names of its checkpoint files: the weights, then the averages, one file per rate."""
        averages = [f"{self._prefix}{weights_name(rate)}" for rate in self.ema_rates]
        return [f"{self.name}.safetensors", *averages]

    def weights(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """The weights and averages by file name; all processes call it, one may `keep` them."""
        contents = [
            self.module.state_dict(),
            *map(self.averages.weights, range(len(self.ema_rates))),
        ]
        return {
            name: whole_tensors(content, keep)
            for name, content in zip(self.weight_files(), contents, strict=True)
        }

    def optimizer_state(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by file name, as in `weights`."""
        named = {
            f"{index}.{key}": value
            for index, entries in self.optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        }
        return {self._optimizer_file: whole_tensors(named, keep)}

    def load(self, checkpoint: Path, num_updates: int) -> None:
        """Restore everything from the files of a checkpoint."""
        self.num_updates = num_updates
        own, *averages = self.weight_files()
        load_whole(self.module, read_tensors(checkpoint / own))
        for index, name in enumerate(averages):
            self.averages.load(index, read_tensors(checkpoint / name))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in read_tensors(checkpoint / self._optimizer_file).items():
            number, _, key = name.partition(".")
            like = parameters[int(number)]
            is_counter = value.shape != like.shape
            state.setdefault(int(number), {})[key] = value if is_counter else divided(value, like)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextlib.contextmanager
def only(part: TrainedPart, parts: Iterable[TrainedPart]) -> Iterator[None]:
    """Freeze every other part within the block, gathering its weights if FSDP sharded them."""
    others = [other for other in parts if other is not part]
    with contextlib.ExitStack() as stack:
        for other in others:
            other.module.requires_grad_(False)
            stack.enter_context(whole_weights(other.wrapped))
        yield
    for other in others:
        other.module.requires_grad_(True)
