"""Types of the fields of request bodies: strict, with null for absent, and with reasons for what is not supported."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Strict types (``"5"`` is no number), and no unknown names. A field that is null is as good as absent, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


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
