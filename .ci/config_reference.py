"""Writes docs/config-reference.md from the models that check run configs.

    python .ci/config_reference.py

`tests/test_config_reference.py` fails while the page differs from the models.
"""

import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch.utils.flop_counter import FlopCounterMode

from pidistill.methods import BUILT_IN, method_class
from pidistill.methods.settings import RATES, OptimizerSettings
from pidistill.networks import NETWORKS, new_network
from pidistill.training.config import CHANGEABLE, RunConfig
from pidistill.training.sizes import SIZES, network_of_size

PAGE = Path(__file__).parent.parent / "docs" / "config-reference.md"

INTRODUCTION = """\
# Every key of a run config

*Written by `python .ci/config_reference.py` from the models that check configs.*

A run is determined by its config: `config.toml` in the run folder. `pidistill distill` and
`pidistill train-teacher` build it in layers: a preset, above it the file of `--config`, above
that `--set` and the flags. Every common key is a flag, too: `batch_size` is `--batch-size`.
`--set` sets any key: `--set method.step=0.2`. In Python, the common keys are arguments of
`pidistill.distill`.

The defaults below are those of a config that names nothing; a preset replaces many of them.
`pidistill distill --help` lists the presets, and `config.toml` holds every value that a run was
trained with. An unknown key or a value out of range is an error that names the key.

## What may change on resume

A run that continues with `--resume` must stay the same run. These keys may change:

{changeable}

Raising `max_train_steps` also stretches the schedule of the learning rate, and the phases of a
method that has several. `teacher` and `data` may name another place, if the weights and images
there are the same: the run knows them by content. A change of any other key is an error; start a
new run for it. In the tables, ↻ marks what may change.
"""

SIZES_TEXT = """\
## Choosing a network size

- **A student** copies its teacher's network and starts from its weights. A network of another size
  starts from scratch: choose one only if the teacher has none, or the student has to be smaller.
- **A teacher**: `pidistill train-teacher --size` takes a network from the ladder below; without it,
  the largest that `--time` allows 6,000 steps, by steps that it measures. With `--dry-run`, it says
  what the run takes on your machine: memory, seconds a step, the end.
- **The learning rate** follows from the size, unless it is set: for a teacher, from {small_rate} at
  0.7 million parameters down to the published {large_rate} at 56 million.
- **Points in the plane**, and images that are not square or smaller than 8x8, get a multilayer
  perceptron.

Parameters, and billions of multiplications in one evaluation of one sample, with 10 classes:

{table}

For comparison: the bundled glyphs teacher (32x32 RGB) is an `xs`, trained for 16,000 steps of 64
images; EDM's network for CIFAR-10 has 56 million parameters. A training step of a teacher costs
about three evaluations of every image of its batch; [Choosing a
method](choosing-a-method.md#what-a-step-costs) has the costs of distillation.
"""

NETWORK = """\
## The network: `[network]`

Without this table, the student copies the teacher's network; a teacher without one needs it. It
has two keys, `name` and the table `config`:

```toml
[network]
name = "song_unet"

[network.config]
model_channels = 64
channel_mult = [1, 2, 2]
```

`config` holds the arguments below. Those that follow from the samples, such as the number of
channels, are filled in. `diffusers_unet` and `class_transformer` take the arguments of the
classes `UNet2DModel` and `DiTTransformer2DModel` of diffusers; the networks of text teachers are
copied, never configured. [Choosing a network size](#choosing-a-network-size) helps to choose.
"""

METHOD = """\
## The method: `[method]`

`name` selects the method; the other keys of the table are the method's. [Choosing a
method](choosing-a-method.md) compares them.
"""

TABLES = ("network", "method")
DESCRIBED = ("mlp", "song_unet", "dhariwal_unet", "edm2_unet", "lucidrains_unet")
IMPLIED = (
    *("sample_shape", "num_classes", "label_dim"),
    *("img_resolution", "channels", "in_channels", "out_channels"),
)
"""Arguments of networks that follow from the samples."""


def page() -> str:
    """The whole page."""
    common = {name: f for name, f in RunConfig.model_fields.items() if name not in TABLES}
    own = {name: f for name, f in common.items() if name not in OptimizerSettings.model_fields}
    optimizer = {name: common[name] for name in OptimizerSettings.model_fields}
    keys = textwrap.fill(", ".join(f"`{key}`" for key in CHANGEABLE) + ".", 98)
    parts = [
        INTRODUCTION.format(changeable=keys),
        "## Common keys\n",
        table(own),
        "## The optimizer\n",
        table(optimizer),
        METHOD,
    ]
    for name in BUILT_IN:
        kind = method_class(name).Settings
        parts += [f"### `{name}`\n", f"{summary(kind)}\n", table(kind.model_fields, "method.")]
    parts.append(NETWORK)
    for name in DESCRIBED:
        parts += [f"### `{name}`\n", f"{summary(NETWORKS[name])}\n", arguments(NETWORKS[name])]
    small, large = (f"{rate:g}" for rate in RATES)
    parts.append(SIZES_TEXT.format(small_rate=small, large_rate=large, table=sizes()))
    return "\n".join(parts)


SHAPES = {"28x28 grey": (1, 28, 28), "64x64 RGB": (3, 64, 64)}


def sizes() -> str:
    """The ladder of network sizes: layout, parameters and cost for some shapes."""
    cells = [cell for shape in SHAPES for cell in (f"{shape}: parameters", "cost")]
    rows = [row("size", "layout", *cells), "|---|---|" + "---:|" * len(cells)]
    for name in SIZES:
        cells = []
        for shape in SHAPES.values():
            config = network_of_size(name, shape)["config"]
            network = new_network("song_unet", shape, 10, config)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
            parameters = sum(parameter.numel() for parameter in network.parameters())
            cells += [f"{parameters / 1e6:.2g} M", f"{counter.get_total_flops() / 2e9:.2g}"]
        rung = SIZES[name]
        blocks = "1 block" if rung.num_blocks == 1 else f"{rung.num_blocks} blocks"
        layout = f"from {rung.width} channels, {blocks} a level, grids up to {rung.finest}"
        rows.append(row(f"`{name}`", layout, *cells))
    return "\n".join(rows)


def table(fields: dict[str, Any], prefix: str = "") -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        if prefix and name == "name":
            continue
        mark = " ↻" if not prefix and name in CHANGEABLE else ""
        kind = ", ".join(filter(None, [type_name(field.annotation), limits(field.metadata)]))
        default = value_of(field.get_default(call_default_factory=True))
        text = " ".join(str(field.description).split())
        rows.append(row(f"`{prefix}{name}`{mark}", kind, default, text))
    return "\n".join(rows) + "\n"


def arguments(kind: Any) -> str:
    """The table of a network's arguments."""
    texts = {**described(NETWORKS["song_unet"]), **described(kind)}
    rows = ["| key of `network.config` | type | default | meaning |", "|---|---|---|---|"]
    for name, parameter in inspect.signature(kind).parameters.items():
        if name not in IMPLIED:
            default = value_of(parameter.default)
            rows.append(row(f"`{name}`", type_name(parameter.annotation), default, texts[name]))
    return "\n".join(rows) + "\n"


def described(kind: Any) -> dict[str, str]:
    """What the docstring of a class or its constructor says of each argument."""
    text = f"{inspect.getdoc(kind)}\n\n{inspect.getdoc(kind.__init__)}"
    block = re.search(r"Args:\n((?: +.*\n|\n)+)", f"{text}\n")
    lines = block[1] if block else ""
    entries = re.findall(r"^    (\w+): ((?:.*\n)(?:      +.*\n)*)", lines, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def summary(kind: Any) -> str:
    return " ".join(str(inspect.getdoc(kind)).split("\n\n")[0].split())


def type_name(kind: Any) -> str:
    """The type of a value in TOML."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(one) for one in inner if one is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is not None and inner:
        one = type_name(inner[0])
        return f"list of {one}s" if one in ("integer", "number") else f"list of {one}"
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return f"table, settings of `{kind.model_fields['name'].default}`"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "table"}
    return names[kind]


def limits(metadata: list[Any]) -> str:
    """The range of a number, from the constraints of its field."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(
        f"{sign} {number(getattr(one, name))}"
        for one in metadata
        for name, sign in signs.items()
        if getattr(one, name, None) is not None
    )


def number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if power > 19 and value == 2**power else f"{value:,}".replace(".0", "")


def value_of(default: Any) -> str:
    if default is None:
        return "unset"
    if isinstance(default, pydantic.BaseModel):
        return f"`{default.name}`"  # type: ignore[attr-defined]
    if default is inspect.Parameter.empty or repr(default) == "PydanticUndefined":
        return "required"
    if isinstance(default, tuple):
        default = list(default)
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
