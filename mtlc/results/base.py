"""Reads and writes the JSON of results, which `mtlc VERB --json` prints and a run leaves behind: the base of them all.

A result is written with the fields that were given to it and no others. So a key that a verb leaves out where it has
nothing to say stays out, and what was read from a file of an earlier version is written as it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mtlc.errors import UserError
from mtlc.files import write_json


class Result(BaseModel):
    """What a verb found. The docstring under a field says what it is, with its unit; the docs' schema is made from it.

    None is what was not measured or does not apply. Unknown keys, of a later version, are left out.
    """

    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, ser_json_inf_nan="null", use_attribute_docstrings=True
    )

    def to_dict(self) -> dict[str, Any]:
        """JSON values: NaN and infinity, which JSON does not have, are None."""
        found: dict[str, Any] = json.loads(self.model_dump_json(exclude_unset=True, by_alias=True))
        return found

    def write(self, path: Path) -> None:
        """Write the JSON file at `path`, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, data: object, where: str) -> Self:
        """The result in JSON values that came from `where`. Raises `UserError` naming the key that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {key}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
