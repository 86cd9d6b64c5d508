"""Recipes: what is compared, on which teacher and with which budget, read from TOML.

A recipe lists runs (`[[run]]`), sweeps (`[[sweep]]`: one setting at several values), or both. See
docs/comparing.md.
"""

from pathlib import Path
from typing import Annotated, Any

import pydantic

from pidistill.settings import STRICT, nested, read_toml, validate

SHARED = {"seed": "seeds", "teacher": "teacher", "data": "data"}
"""Settings that are the same for all runs, and the key of the recipe that sets them."""


def _without_shared(settings: dict[str, Any]) -> dict[str, Any]:
    for key in SHARED.keys() & settings.keys():
        raise ValueError(
            f"{key} cannot differ between the runs of a recipe; set {SHARED[key]} at its top"
        )
    return settings


def _require_distinct(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name!r} is given twice")


_Settings = Annotated[dict[str, Any], pydantic.AfterValidator(_without_shared)]
_Name = Annotated[str, pydantic.Field(min_length=1)]


class _Table(pydantic.BaseModel):
    model_config = STRICT


class Budget(_Table):
    """What every run may spend; exactly one of the three is given."""

    teacher_evaluations: int | None = pydantic.Field(default=None, ge=1)
    """Teacher evaluations per run, those before its first step included; a backward pass through
    the teacher counts as two."""
    images: int | None = pydantic.Field(default=None, ge=1)
    """Samples that the student sees in training."""
    seconds: float | None = pydantic.Field(default=None, gt=0)
    """Time on this machine, preparation included; the time of a step is measured first."""

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> "Budget":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("set exactly one of teacher_evaluations, images, seconds")
        return self

    @property
    def amount(self) -> float:
        """How much may be spent, in `unit`."""
        return float(self.teacher_evaluations or self.images or self.seconds or 0)

    @property
    def unit(self) -> str:
        """What is counted: teacher evaluations, images or seconds."""
        (key,) = self.model_dump(exclude_none=True)
        return str(key).replace("_", " ")

    def __str__(self) -> str:
        return f"{self.amount:,.10g} {self.unit}"


class RunEntry(_Table):
    """A table `[[run]]`."""

    name: _Name
    """Its name in tables and plots."""
    preset: str = "fast"
    """The preset that its settings override."""
    settings: _Settings = {}
    """Settings as in a run's config."""


class Sweep(_Table):
    """A table `[[sweep]]`: one run with one thing varied."""

    name: _Name
    """Its title."""
    about: str = ""
    """The question it answers, for the page."""
    preset: str = "fast"
    """The preset that its settings override."""
    settings: _Settings = {}
    """Settings that all its runs share."""
    key: str | None = None
    """The setting that is varied, such as `method.num_nodes`; needs `values`."""
    values: list[Any] = []
    """Values of `key`."""
    variants: dict[str, _Settings] = {}
    """Instead of `key` and `values`: settings by name, where several keys vary together."""

    @pydantic.model_validator(mode="after")
    def _values_or_variants(self) -> "Sweep":
        if bool(self.values) == bool(self.variants) or bool(self.key) != bool(self.values):
            raise ValueError("set either key and values, or variants")
        _require_distinct("value", [str(value) for value in self.values])
        if self.key is not None:
            _without_shared(nested(self.key, None))
        return self

    def entries(self) -> list[RunEntry]:
        """Its runs, each named after its value or variant; `settings` are not in them."""
        changes = self.variants or {str(v): nested(str(self.key), v) for v in self.values}
        return [
            RunEntry(name=name, preset=self.preset, settings=change)
            for name, change in changes.items()
        ]

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers, which make an axis."""
        return bool(self.values) and all(type(value) in (int, float) for value in self.values)


class Recipe(_Table):
    """A comparison: what is compared, and on what terms."""

    title: _Name
    teacher: str
    """Teacher spec."""
    data: str | None = None
    """Data spec: images for the methods that train on images; the others never see them."""
    reference: str | None = None
    """What Frechet distances are taken to; None leaves them out."""
    features: str = "auto"
    """The features of those distances, as for `evaluate`: `auto`, a name, or a folder of
    `train-features`."""
    seeds: list[Annotated[int, pydantic.Field(ge=0, lt=2**63)]] = pydantic.Field(
        default=[0, 1, 2], min_length=1
    )
    """Every run is trained once with each."""
    num_samples: int = pydantic.Field(default=5000, ge=2)
    """Samples that each run is measured with."""
    evaluation_seed: int = pydantic.Field(default=0, ge=0)
    """Seed of their noise, the same for all runs and the teacher."""
    evaluations: list[Annotated[int, pydantic.Field(ge=1)]] = pydantic.Field(
        default=[1], min_length=1
    )
    """NFE at which students are measured; those that a student does not support are left out, and
    a student that supports none of them is measured at the NFE it was trained for."""
    budget: Budget
    settings: _Settings = {}
    """Settings of every run, between its preset and its own."""
    run: list[RunEntry] = []
    sweep: list[Sweep] = []

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if not self.run and not self.sweep:
            raise ValueError("add at least one [[run]] or [[sweep]]")
        _require_distinct("seed", [str(seed) for seed in self.seeds])
        _require_distinct("[[run]]", [entry.name for entry in self.run])
        _require_distinct("[[sweep]]", ["runs", *(file_name(sweep.name) for sweep in self.sweep)])
        return self


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises `PidistillError` on the first problem: the file is missing or not TOML, a key is unknown
    (the message names the nearest known one), a value is out of range.
    """
    return validate(Recipe, read_toml(path), str(path))


def file_name(title: str) -> str:
    """A title as a file name: letters and digits in lower case, and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
