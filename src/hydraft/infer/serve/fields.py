"""Types of the fields of request bodies: strict, with null for absent, and with reasons for what is not supported."""

from itertools import islice
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticSerializationError, to_json

from hydraft.data.reading.row import is_broken

SLICE = 100
"""Entries of an object that are validated together."""


class Strict(BaseModel):
    """Strict types (``"5"`` is no number), and no unknown names. A field that is null is as good as absent, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {name: each for name, each in value.items() if each is not None and name in cls.model_fields}
        unknown = next(
            (name for name, each in value.items() if each is not None and name not in cls.model_fields), None
        )
        return known if unknown is None else {**known, unknown: value[unknown]}  # an error for each would take seconds


def in_slices(kind: Any) -> Any:
    """The type of an object with any number of entries, of which no more than ``SLICE`` are reported: to report all takes seconds."""
    adapter = TypeAdapter(kind, config=Strict.model_config)

    def first_wrong(value: Any) -> Any:
        if not isinstance(value, dict) or len(value) <= SLICE:
            return value
        entries = iter(value.items())
        while part := dict(islice(entries, SLICE)):
            try:
                adapter.validate_python(part)
            except ValidationError:
                return part
        return value

    return Annotated[kind, BeforeValidator(first_wrong)]


def check_unicode(value: Any) -> None:
    """Refuse a JSON value with a text that UTF-8 does not have, half of a surrogate pair, which JSON can hold.

    Raises:
        PydanticCustomError: has its place.
    """
    try:
        to_json(value)
    except (PydanticSerializationError, ValueError):  # also what is nested too deeply
        left: list[tuple[str, Any]] = [("", value)]
        while left:
            place, each = left.pop()
            if isinstance(each, str) and is_broken(each):
                raise invalid(place.lstrip("."), "not Unicode text") from None
            if isinstance(each, dict):
                left += [
                    pair for key, inner in each.items() for pair in ((place, key), (f"{place}.{key}"[:200], inner))
                ]
            elif isinstance(each, list):
                left += [(f"{place}.{index}"[:200], inner) for index, inner in enumerate(each)]


def invalid(param: str, reason: str) -> PydanticCustomError:
    """The error of a field that is wrong beside others: the client gets ``param`` and ``reason``."""
    return PydanticCustomError("refused", "{reason}", {"param": param, "reason": reason})


def unsupported(reason: str) -> Any:
    """The type of a field that must be absent or null; the client gets ``reason``."""

    def refuse(value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError("refused", "{reason}", {"reason": reason})
        return value

    return Annotated[Any, BeforeValidator(refuse), WithJsonSchema({"type": "null"})]


def only(*accepted: Any, reason: str) -> Any:
    """The type of a field that may have these values, which change nothing, or null; the client gets ``reason`` for another one."""

    def check(value: Any) -> Any:
        if value is not None and not any(value == each and type(value) is type(each) for each in accepted):
            raise PydanticCustomError("refused", "{reason}", {"reason": reason})
        return value

    return Annotated[Any, BeforeValidator(check), WithJsonSchema({"enum": [*accepted, None]})]
