"""The tools of a record and the calls of them, as OpenAI writes them. No torch."""

import json
from collections.abc import Mapping
from typing import Any

from hydraft.data.keys import present
from hydraft.data.reading.json_values import parse
from hydraft.data.texts import kind_of, plain_text
from hydraft.errors import ConfigError

ARGUMENTS = ("arguments", "parameters")


def tools_of(value: Any, key: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """The tools: a list, or its JSON, of OpenAI's objects or of functions (``{name, description, parameters}``).

    Raises:
        ConfigError: it is something else.
    """
    if not present(value) or (isinstance(value, str) and not value.strip()):
        return ()
    found: Any = _parsed(value, key, place)
    tools: list[dict[str, Any]] = []
    listed: list[Any] = found if isinstance(found, list) else [found]
    for number, tool in enumerate(listed, 1):
        where = f"{place}: tool {number} of {key!r}"
        if isinstance(tool, str):
            tool = _parsed(tool, key, place)
        if not isinstance(tool, dict):
            raise ConfigError(f"{where} must be an object, and is {kind_of(tool)}")
        if tool.get("type", "function") != "function" and "function" not in tool and "name" not in tool:
            raise ConfigError(f"{where} is of the type {tool['type']}; only functions are supported")
        function: dict[str, Any] = tool["function"] if isinstance(tool.get("function"), dict) else tool
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ConfigError(f"{where} has no 'name'")
        tools.append({"type": "function", **(tool if function is not tool else {"function": tool})})
    _check_characters(tools, key, place)
    return tuple(tools)


def requested(turn: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in ``tool_calls``, or in ``function_call`` (OpenAI before 2024), of an answer."""
    keys = [key for key in ("tool_calls", "function_call") if present(turn.get(key))]
    if len(keys) > 1:
        raise ConfigError(f"{place}: has 'tool_calls' and 'function_call'")
    return calls_of(turn[keys[0]], keys[0], place) if keys else ()


def calls_of(value: Any, key: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """One call or a list of them, or their JSON: ``{name, arguments}``, also below ``function``.

    Raises:
        ConfigError: a call has no name, or its arguments are no object.
    """
    found = _parsed(value, key, place)
    calls = [_call(call, key, place) for call in (found if isinstance(found, list) else [found])]
    if not calls:
        raise ConfigError(f"{place}: {key!r} has no call")
    _check_characters(calls, key, place)
    return tuple(calls)


def are_calls(value: Any) -> bool:
    """Whether a value is a list of calls, or its JSON (xLAM's ``answers``)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse(value)
        except ValueError:
            return False
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(c, dict) and "name" in c and len(c) == 2 for c in value)
    )


def _call(call: Any, key: str, place: str) -> Mapping[str, Any]:
    if not isinstance(call, dict):
        raise ConfigError(
            f"{place}: a call in {key!r} must be an object with 'name' and 'arguments', and is {kind_of(call)}"
        )
    function = call.get("function", call)
    if isinstance(function, str):  # {"function": "name", "arguments": …}
        function = {**call, "name": function}
    if call.get("type", "function") != "function" or not isinstance(function, dict):
        raise ConfigError(f"{place}: a call in {key!r} is of the type {call.get('type')}; only functions are supported")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}: a call in {key!r} has no 'name'")
    given: Any = next((function[each] for each in ARGUMENTS if function.get(each) is not None), {})
    if isinstance(given, str):
        given = _parsed(given, f"arguments of {name}", place) if given.strip() else {}
    if not isinstance(given, dict):
        raise ConfigError(f"{place}: the arguments of the call of {name} must be an object, and are {kind_of(given)}")
    identity = call.get("id")
    return {**({"id": identity} if isinstance(identity, str) and identity else {}), "name": name, "arguments": given}


def _parsed(value: Any, key: str, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError:
        raise ConfigError(f"{place}: {key!r} is not JSON") from None


def _check_characters(values: Any, key: str, place: str) -> None:
    """Refuse halves of surrogate pairs anywhere in it."""
    plain_text(json.dumps(values, ensure_ascii=False, default=str), key, place)
