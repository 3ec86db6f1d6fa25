"""What is kept as JSON and read back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proxykd.errors import IntegrityError
from proxykd.runs.storage import read_json


class JsonModel(BaseModel):
    """Frozen; an unknown or a missing key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=JsonModel)


def read_model(path: Path, model: type[M]) -> M:
    """What a JSON file holds.

    Raises:
        IntegrityError: the file is torn, or another version of the code wrote it; the message names the field.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        [first, *_] = error.errors()
        field = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{path}: {field}: {first['msg']}; another version of proxykd wrote it: read it with that one, or "
            f"begin anew with --fresh"
        ) from None
