"""Build a trainer from a run config: load the teacher or the data, build the student."""

import os
from pathlib import Path

import torch
from torch import nn

from pidistill.data import Dataset, load_data
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.methods import method_class
from pidistill.methods.base import Method
from pidistill.networks import new_network, require_fit
from pidistill.teachers import load_teacher
from pidistill.training.config import RunConfig
from pidistill.training.run_folder import input_hashes, require_same_inputs
from pidistill.training.trainer import Trainer


def _new_network(config: RunConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network of the table `[network]`, after checking that it fits memory and the samples.

    The memory needed is that of the weights and, on the CPU, also of their gradients, the
    optimizer's two moments and the averages.
    """
    assert config.network is not None
    arguments = (config.network.name, shape, num_classes, config.network.config)
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in new_network(*arguments).parameters())
    copies = 1 if torch.accelerator.is_available() else 4 + len(config.ema_rates)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights * copies > memory:
        raise PidistillError(
            f"network {config.network.name!r} needs {weights * copies / 1e9:.3g} GB with these "
            f"arguments, but this machine has {memory / 1e9:.3g} GB; make the network smaller"
        )
    network = new_network(*arguments)
    require_fit(network, shape, num_classes)
    return network


def build_trainer(
    config: RunConfig,
    folder: str | Path,
    *,
    teacher: Denoiser | None = None,
    network: nn.Module | None = None,
    data: Dataset | None = None,
) -> Trainer:
    """Load everything that `config` names and return the trainer of the run in `folder`.

    Args:
        config: The config.
        folder: The run folder.
        teacher: The teacher; None loads the config's.
        network: The network to train; None builds the config's.
        data: The images; None loads the config's.

    Raises:
        PidistillError: Something that the config names is missing or does not fit, or the run in
            `folder` was started with another teacher or other data.
    """
    if teacher is None and config.teacher is not None:
        teacher = load_teacher(config.teacher)
    if data is None and config.data is not None:
        data = load_data(config.data)
    inputs = input_hashes(teacher, data)
    require_same_inputs(Path(folder), inputs, config)
    with torch.random.fork_rng():  # only initial weights come from the global generator
        torch.manual_seed(config.seed)
        method = build_method(config, teacher, data, network)
    return Trainer(config, method, folder, data=data, inputs=inputs)


def build_method(
    config: RunConfig,
    teacher: Denoiser | None,
    data: Dataset | None,
    network: nn.Module | None = None,
) -> Method:
    """Build the method that `config` names, with its student.

    Args:
        config: The config.
        teacher: The teacher, or None.
        data: The images, or None.
        network: The network to train; None builds the config's.

    Raises:
        PidistillError: An argument that the method needs is None or does not fit.
    """
    kind = method_class(config.method.name)
    if data is not None and kind.needs != "images":
        raise PidistillError(
            f"data is {data.name!r}, but {config.method.name} trains without data; omit it"
        )
    if teacher is not None:
        shape, num_classes = teacher.sample_shape, teacher.num_classes
    elif data is not None:
        shape, num_classes = data.sample_shape, data.num_classes
    else:
        raise PidistillError("the config has neither teacher nor data; set one of them")
    if network is None and config.network is not None:
        network = _new_network(config, shape, num_classes)
    elif network is None and (teacher is None or teacher.network_to_copy() is None):
        network = new_network("mlp", shape, num_classes, {})
    return kind.build(config.method, teacher=teacher, data=data, network=network)
