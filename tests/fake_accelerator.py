"""Training steps of every method on an accelerator that computes nothing.

Prints a JSON object: what went wrong by case, or "". A process of its own, since torch believes
in the accelerator from then on.
"""

import contextlib
import json
import traceback

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pidistill import noise
from pidistill.data import Dataset
from pidistill.denoiser import PreconditionedDenoiser
from pidistill.methods.pairs import Pairs
from pidistill.networks.mlp import MLP
from pidistill.noise import Draws
from pidistill.precondition import EDMPrecondition
from pidistill.processes import ALONE
from pidistill.training.batches import make_batch
from pidistill.training.losses import LogSigmaBins, Measured

from method_runs import METHODS, build, images_of

CASES = {
    **{name: (name, {}) for name in METHODS},
    **{
        f"pid {key} {value}": ("pid", {key: value})
        for key, value in (
            ("derivative", "one-sided"),
            ("draw", "nodes"),
            ("draw", "rho"),
            ("draw", "log-normal"),
            ("draw", "theta"),
            ("draw", "log-theta"),
            ("parametrisation", "soft"),
            ("residual", "velocity"),
            ("distance", "pseudo-huber"),
        )
    },
}
NAME = "fakegpu"


class NoCopiesFromTheHost(TorchDispatchMode):
    """Fails where a tensor with values is copied to the accelerator, which waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if func is torch.ops.aten.copy_.default else args[0]
            target = kwargs.get("device") or args[0].device
            assert not (source.device.type == "cpu" and target.type == NAME), "copied from the host"
        return func(*args, **kwargs)


def move(module):
    """Replace a module's weights and buffers by fake ones on the accelerator."""

    def fake(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(fake(weight), weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer)


@contextlib.contextmanager
def accelerator(method):
    """A method whose networks are on an accelerator that has no values."""
    with FakeTensorMode():
        for value in vars(method).values():
            if isinstance(value, torch.nn.Module):
                move(value)
        yield


def data_on_device(data):
    pixels = torch.empty(data.pixels.shape, device=DEVICE)
    labels = None if data.labels is None else torch.empty(64, dtype=torch.int64, device=DEVICE)
    return Dataset(pixels, labels, data.num_classes, data.name)


def take_a_step(name, settings):
    """Take the updates of a step."""
    network = MLP((1, 4, 4), num_classes=3, width=32, num_blocks=1)
    teacher = PreconditionedDenoiser(
        network, EDMPrecondition(), sample_shape=(1, 4, 4), num_classes=3, source="test"
    )
    data = images_of(teacher)
    method = build(name, teacher, data=data, **settings)
    with accelerator(method):
        measured = Measured(LogSigmaBins(0.002, 80.0), ALONE, DEVICE)
        if name == "knowledge":
            x = torch.empty(40, *teacher.sample_shape, device=DEVICE)
            method.pairs = Pairs(x, x, torch.empty(40, dtype=torch.int64, device=DEVICE))
        batch = make_batch(method, data_on_device(data), Draws(0, 3, 10, DEVICE), DEVICE)
        for step in (0, 8):
            method.start_phase(step, 10)
            with NoCopiesFromTheHost():
                for update in method.updates(step):
                    losses = update.loss(batch)
                    assert losses.loss.device == losses.sigma.device == DEVICE
                    losses.loss.mean().backward()
                    measured.add(update.part, [losses], losses.loss.sum().detach(), 1)
                method.after_step(step)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(NAME)
    DEVICE = torch.device(NAME, 0)
    noise._DRAWN_ON = (NAME,)
    found = {}
    for case, arguments in CASES.items():
        try:
            take_a_step(*arguments)
            found[case] = ""
        except Exception:
            found[case] = traceback.format_exc()
    print(json.dumps(found))
