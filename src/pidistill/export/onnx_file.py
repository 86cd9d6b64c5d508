"""Exports a student as one ONNX file: inputs `z` and, with classes, `label`; output `samples`.

The batch size is dynamic. The file's metadata specify the starting noise.
"""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.export.card import without_folders
from pidistill.export.flow_map import flow_map_sample, flow_scales
from pidistill.export.one_step import Scales, one_step_sample, scales_of
from pidistill.noise import initial_noise
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.labels import labels_for

OPSET = 18
"""The native operator set of torch's exporter; others would need conversion."""

MOST_BYTES = 2**31 - 2**20
"""Just below protobuf's limit of 2 GiB."""

WORST_DIFFERENCE = 1 / 255
"""Largest allowed difference from torch, relative to the largest value: half an 8-bit level."""

CHECKED_SAMPLES = 5
"""Batch size of the check, different from the traced one."""


class OneStepModule(nn.Module):
    """`one_step_sample` as a module."""

    def __init__(self, network: nn.Module, scales: Scales) -> None:
        super().__init__()
        self.network, self.scales = network, scales

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples from the starting noise `z` (b, ...) and `label` (b,), int64."""
        return one_step_sample(self.network, z, label, self.scales)


class OneMapModule(nn.Module):
    """`flow_map_sample` in one evaluation; the embedding of the second time is a constant."""

    shift: Tensor

    def __init__(self, student: FlowMapStudent) -> None:
        super().__init__()
        self.network, self.layer, self.scales = (
            student.network,
            student.layer,
            flow_scales(student, 1),
        )
        time = torch.tensor([self.scales.maps[0].second_time])
        self.register_buffer("shift", student.second_time(time).detach())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples from the starting noise `z` (b, ...) and `label` (b,), int64."""

        def embedding(time: Tensor) -> Tensor:
            return self.shift.expand(time.shape[0], -1)  # len() would fix the batch size

        return flow_map_sample(self.network, self.layer, embedding, z, label, self.scales)


def write_onnx(path: Path, student: Student) -> float | None:
    """Write a student, on the CPU, to the ONNX file `path` and check it.

    Returns:
        The largest absolute difference between samples from onnxruntime and torch, over
        `CHECKED_SAMPLES` samples; None if onnxruntime is not installed.

    Raises:
        PidistillError: A library is missing, the student is too large or cannot be exported, ONNX
            lacks an operation of its network, or the check fails.
    """
    try:
        for library in ("onnx", "onnxscript"):
            importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise PidistillError(
            f"ONNX needs the library {error.name}, which is not installed; "
            'run: pip install "pidistill[onnx]"'
        ) from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    if size > MOST_BYTES:
        raise PidistillError(
            f"the student's weights take {size / 2**30:.1f} GiB; one ONNX file holds at most "
            "2 GiB: export to diffusers instead"
        )
    module = _module_of(student).eval()
    program = _program(module, student)
    facts = {
        "sigma_min": student.sigma_min,
        "sigma_max": student.sigma_max,
        "sample_shape": list(student.sample_shape),
        "num_classes": student.num_classes,
        "nfe": 1,
    }
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    program.model.metadata_props.update({"source": without_folders(student.source), **metadata})
    program.save(str(path), external_data=False)
    return _checked_difference(path, module, student)


def _module_of(student: Student) -> OneStepModule | OneMapModule:
    if isinstance(student, FlowMapStudent):
        return OneMapModule(student)
    return OneStepModule(student.network, scales_of(student))


def _program(module: nn.Module, student: Student) -> Any:
    inputs = _example_inputs(student, 2)  # torch specialises on a batch size of 1
    try:
        with _quiet():
            return torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["samples"],
                dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in inputs},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise PidistillError(
            f"the network {type(student.network).__name__} cannot be exported to ONNX: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _checked_difference(path: Path, module: nn.Module, student: Student) -> float | None:
    """Compare onnxruntime's samples with torch's; None without onnxruntime."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    inputs = _example_inputs(student, CHECKED_SAMPLES)
    with torch.no_grad():
        expected = module(*inputs.values())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    samples = torch.from_numpy(session.run(["samples"], arrays)[0])
    difference = (samples - expected).abs().max().item()
    largest = max(1.0, expected.abs().max().item())
    if not difference <= WORST_DIFFERENCE * largest:
        raise PidistillError(
            f"onnxruntime's samples differ from torch's by up to {difference:.2g} at values up to "
            f"{largest:.2g}, which is more than rounding error; the file is not written"
        )
    return difference


def _example_inputs(student: Student, num: int) -> dict[str, Tensor]:
    """Inputs by name, for the first `num` samples of seed 0."""
    inputs = {"z": initial_noise(student, num, seed=0)}
    label = labels_for(student, num)
    return inputs if label is None else {**inputs, "label": label}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's output and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
