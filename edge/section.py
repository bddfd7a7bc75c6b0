"""What every section of `station.yaml` is made of: a frozen model without unknown keys, and its numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# strict: YAML reads `yes` as true, which would count as 1
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NumberFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
CountFromOne = Annotated[int, Field(ge=1, strict=True)]
CountFromZero = Annotated[int, Field(ge=0, strict=True)]


class Section(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
