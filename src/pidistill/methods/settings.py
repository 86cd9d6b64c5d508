"""What the settings of every method have in common. Imports no torch."""

import pydantic

from pidistill.settings import STRICT


class MethodSettings(pydantic.BaseModel):
    """Settings of a method, checked strictly: the table `[method]` of a run config."""

    model_config = STRICT

    name: str
    """Name in `pidistill.methods.METHODS`."""
