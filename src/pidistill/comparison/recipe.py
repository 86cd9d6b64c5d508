"""Recipes: what is compared, on which teacher, with which budget, read from TOML.

A recipe lists runs (`[[run]]`), sweeps (`[[sweep]]`: one setting in several values), or both. See
docs/comparing.md.
"""

from pathlib import Path
from typing import Annotated, Any

import pydantic

from pidistill.settings import nested, read_toml, validate


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


DECIDED = {
    "seed": "seeds of the recipe say it",
    "teacher": "teacher of the recipe says it",
    "data": "data of the recipe says it",
}
"""Settings that a recipe decides for all its runs."""


def _own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for key, reason in DECIDED.items():
        if key in settings:
            raise ValueError(f"{key} is no setting of a run here: {reason}")
    return settings


_Settings = Annotated[dict[str, Any], pydantic.AfterValidator(_own_settings)]
"""Settings as in a run's config, but for those that the recipe decides."""


class Budget(_Table):
    """What every run may spend; exactly one of the three is given."""

    teacher_evaluations: int | None = pydantic.Field(default=None, ge=1)
    """Evaluations of the teacher a run, those before its first step included."""
    images: int | None = pydantic.Field(default=None, ge=1)
    """Samples that the student sees in training."""
    seconds: float | None = pydantic.Field(default=None, gt=0)
    """Time on this machine, preparation included; the steps that fit are measured first."""

    @pydantic.model_validator(mode="after")
    def _one_of_them(self) -> "Budget":
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError("name exactly one of teacher_evaluations, images, seconds")
        return self

    def __str__(self) -> str:
        """In words."""
        ((unit, amount),) = self.model_dump(exclude_none=True).items()
        return f"{amount:,} {unit.replace('_', ' ')}"


class RunEntry(_Table):
    """A table `[[run]]`."""

    name: str = pydantic.Field(min_length=1)
    """What the tables call it."""
    preset: str = "fast"
    """The preset that its settings override."""
    settings: _Settings = {}
    """Settings as in a run's config."""


class Sweep(_Table):
    """A table `[[sweep]]`: the same run with one thing changed."""

    name: str = pydantic.Field(min_length=1)
    """Its title."""
    about: str = ""
    """The question it answers, for the page."""
    preset: str = "fast"
    """The preset that its settings override."""
    settings: _Settings = {}
    """Settings that all its runs share."""
    key: str | None = None
    """The setting that changes, such as `method.num_nodes`, with `values`."""
    values: list[Any] = []
    """Values of `key`."""
    variants: dict[str, _Settings] = {}
    """Or: settings by name, where more than one key changes together."""

    @pydantic.model_validator(mode="after")
    def _values_or_variants(self) -> "Sweep":
        if bool(self.values) == bool(self.variants) or bool(self.key) != bool(self.values):
            raise ValueError("give either key and values, or a table of variants")
        shown = [_shown(value) for value in self.values]
        twice = [name for name in shown if shown.count(name) > 1]
        if twice:
            raise ValueError(f"values hold {twice[0]} more than once")
        if self.key is not None:
            _own_settings(nested(self.key, None))
        return self

    def entries(self) -> list[RunEntry]:
        """Its runs, in order, each named after its value or variant; `settings` are not in them."""
        changes = dict(self.variants)
        for value in self.values:
            assert self.key is not None
            changes[_shown(value)] = nested(self.key, value)
        return [
            RunEntry(name=name, preset=self.preset, settings=change)
            for name, change in changes.items()
        ]

    def numbers(self) -> list[float] | None:
        """The values as numbers, for an axis; None where they are not numbers."""
        if self.values and all(isinstance(v, int | float) and v is not True for v in self.values):
            return [float(value) for value in self.values]
        return None


class Recipe(_Table):
    """A comparison: what is compared, and on what terms."""

    title: str = pydantic.Field(min_length=1)
    teacher: str
    """Teacher spec."""
    data: str | None = None
    """Images for the methods that need some; no other run sees them."""
    reference: str | None = None
    """What Frechet distances are taken to; None leaves them out."""
    seeds: list[int] = pydantic.Field(default=[0, 1, 2], min_length=1)
    """A run is trained once with each."""
    num_samples: int = pydantic.Field(default=5000, ge=2)
    """Samples that a run is measured with."""
    evaluation_seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the noise of those, the same for all runs and for the teacher."""
    evaluations: list[Annotated[int, pydantic.Field(ge=1)]] = pydantic.Field(
        default=[1], min_length=1
    )
    """Evaluations a sample with which students are measured, where they can take so many; a student
    that takes none of these is measured with as many as it was trained for."""
    budget: Budget
    settings: _Settings = {}
    """Settings of every run, between its preset and its own."""
    run: list[RunEntry] = []
    sweep: list[Sweep] = []

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if not self.run and not self.sweep:
            raise ValueError("name at least one [[run]] or [[sweep]]")
        sweeps = [file_name(sweep.name) for sweep in self.sweep]
        if "runs" in sweeps:
            raise ValueError("no [[sweep]] can be named 'Runs': the table of all [[run]]s is")
        for what, names in (
            ("[[run]]", [entry.name for entry in self.run]),
            ("[[sweep]]", sweeps),
            ("seed", [str(seed) for seed in self.seeds]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{what} {min(twice)!r} is there twice")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises `PidistillError` with one line on the first problem: a file that is missing or no TOML,
    an unknown key (with the nearest known one), a value out of range.
    """
    return validate(Recipe, read_toml(path), str(path))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def file_name(title: str) -> str:
    """A title as the name of a file: letters and digits in lower case, and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
