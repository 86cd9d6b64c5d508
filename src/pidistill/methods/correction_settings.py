"""Settings of the method correction."""

from typing import Annotated, Literal

import pydantic

from pidistill.methods.pid import PIDSettings
from pidistill.methods.pid_map import PIDMapSettings
from pidistill.methods.settings import MethodSettings
from pidistill.paths import user_path


class CorrectionSettings(MethodSettings):
    """Settings of the correction."""

    name: Literal["correction"] = "correction"
    start: str | None = None
    """Folder of the run whose student is corrected; if unset, a student is trained first."""
    first: Annotated[PIDMapSettings | PIDSettings, pydantic.Field(discriminator="name")] = (
        PIDMapSettings()
    )
    """The method that trains the student first, and whose loss is the anchor."""
    first_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of the training steps that it takes; none with `start`."""
    weight: float | None = pydantic.Field(default=None, ge=0)
    """Weight of the anchor, lambda: more keeps nearer to the teacher's paths, less comes nearer to
    its distribution, but may lose modes; 0 leaves the anchor out. If unset, 0.03, or 0.3 for a
    teacher without a network, where the auxiliary denoiser has no good start."""
    alpha: float = pydantic.Field(default=1.0, ge=0)
    """The coefficient alpha; published: 1.0 and 1.2."""
    share_from_noise: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Share of the corrected samples of a flow map that start at sigma_max; the others start on
    its paths."""
    auxiliary_warmup: int = pydantic.Field(default=50, ge=0)
    """Updates of the auxiliary denoiser before the first correction."""
    student_learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Learning rate of the student in the correction; if unset, by its number of parameters."""
    auxiliary_learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Learning rate of the auxiliary denoiser; if unset, by its number of parameters."""

    @pydantic.field_validator("start")
    @classmethod
    def _absolute(cls, start: str | None) -> str | None:
        return None if start is None else str(user_path(start).resolve())
