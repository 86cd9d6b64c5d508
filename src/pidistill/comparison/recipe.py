"""Recipes: what is compared, on which teacher and with which budget, read from TOML.

A recipe lists runs (`[[run]]`), sweeps (`[[sweep]]`: one setting at several values), or both. See
docs/comparing.md.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

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
    """Time spent in training steps and in the preparation before them, on this machine."""

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


class RateSearch(_Table):
    """The table `learning_rates`: how the learning rate of every configuration is chosen.

    Each is trained for a share of the budget at several multiples of its own rates, and at further
    ones while the best of them is the smallest or the largest. The table shows the best.
    """

    multiples: list[Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        default=[0.25, 0.5, 1, 2, 4], min_length=2
    )
    """What the rates of a configuration are multiplied by, to begin with."""
    share: float = pydantic.Field(default=0.25, gt=0, le=1)
    """The part of the budget that each try may spend."""
    most: int = pydantic.Field(default=9, ge=2)
    """Most tries of a configuration."""
    seed: int = pydantic.Field(default=1000, ge=0, lt=2**63)
    """Training seed of the tries, which is none of the table's."""
    metric: Literal["fid", "error"] | None = None
    """What is lowest at the best rate; None: the Frechet distance if there is a reference, else the
    error."""

    def judged_by(self, reference: str | None) -> str:
        """The metric that decides, as the table names it in its results."""
        is_distance = self.metric == "fid" or (self.metric is None and reference is not None)
        return "frechet_distance" if is_distance else "rms_error"


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
    learning_rates: Annotated[
        RateSearch | None,
        pydantic.BeforeValidator(lambda v: {"multiples": v} if isinstance(v, list) else v),
    ] = None
    """How learning rates are chosen, as a table or by its `multiples` alone; None trains every run
    at its own rates."""
    settings: _Settings = {}
    """Settings of every run, between its preset and its own."""
    run: list[RunEntry] = []
    sweep: list[Sweep] = []

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if not self.run and not self.sweep:
            raise ValueError("add at least one [[run]] or [[sweep]]")
        _require_distinct("seed", [str(seed) for seed in self.seeds])
        self._require_rates_to_choose()
        _require_distinct("[[run]]", [entry.name for entry in self.run])
        _require_distinct("[[sweep]]", ["runs", *(file_name(sweep.name) for sweep in self.sweep)])
        return self

    def _require_rates_to_choose(self) -> None:
        search = self.learning_rates
        if search is None:
            return
        _require_distinct("multiple", [f"{multiple:g}" for multiple in search.multiples])
        if search.seed in self.seeds:
            raise ValueError(f"learning_rates.seed is {search.seed}, one of seeds; choose another")
        if search.metric == "fid" and self.reference is None:
            raise ValueError("learning_rates.metric is 'fid', which needs a reference; set it, too")
        for sweep in self.sweep:
            if sweep.key in ("learning_rate", "learning_rate_scale"):
                raise ValueError(
                    f"sweep {sweep.name!r} varies the learning rate, which learning_rates would "
                    "choose; remove one of the two"
                )


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises `PidistillError` on the first problem: the file is missing or not TOML, a key is unknown
    (the message names the nearest known one), a value is out of range.
    """
    return validate(Recipe, read_toml(path), str(path))


def file_name(title: str) -> str:
    """A title as a file name: letters and digits in lower case, and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
