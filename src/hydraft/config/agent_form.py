"""Settings as other programs type them: ``--lora.r=8`` and ``None``, as the agents of wandb do. No torch."""

import re

from hydraft.config import groups, moved, reference
from hydraft.config.setting_kind import is_optional

DASHED = re.compile(r"--([A-Za-z_][\w.]*)=(.*)", re.DOTALL)


def plain(argument: str, command: str) -> str:
    """``argument`` as an override if it names a setting or a group of ``command`` (``train`` or ``infer``); else as it is.

    ``None``, Python's spelling, is ``null`` where a setting may be null.
    """
    match = DASHED.fullmatch(argument)
    known = match is not None and (
        match[1] in reference.names(command) or match[1] in groups.defaults(command) or match[1] in moved.MOVED
    )
    if match and known:
        argument = f"{match[1]}={match[2]}"
    key, equals, value = argument.partition("=")
    return f"{key}=null" if equals and value == "None" and is_optional(key.lstrip("+")) else argument
