"""``--cfg job``: the composed config as YAML that can be read and read again: the option of each group, and what is not the default. No torch."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, flag_override

from hydraft.config import groups, moved, own_options, reference

ASKED = (["--cfg", "job"], ["-c", "job"])


def requested(arguments: Sequence[str]) -> tuple[list[str], bool] | None:
    """The overrides of a command line with ``--cfg job``, and whether it has ``--resolve``; None if Hydra is to answer it."""
    left = [argument for argument in arguments if argument != "--resolve"]
    for flag in ("--cfg=job", "-c=job"):
        if flag in left:
            left[left.index(flag) : left.index(flag) + 1] = ["--cfg", "job"]
    at = next((place for place in range(len(left)) if left[place : place + 2] in ASKED), None)
    if at is None:
        return None
    overrides = left[:at] + left[at + 2 :]
    if any(one.startswith("-") or one.startswith("hydra.searchpath") for one in overrides):
        return None
    return overrides, "--resolve" in arguments


def text(command: str, overrides: list[str], resolve: bool) -> str:
    """The config as YAML, in the order of the schema; each comment is about the line that it is in or above."""
    with initialize_config_dir(str(own_options.CONF), version_base="1.3"):
        composed = compose(command, overrides, return_hydra_config=True)
    choices = {name: option for name, option in composed.hydra.runtime.choices.items() if option is not None}
    HydraConfig.instance().set_config(composed)  # for ${hydra:…}
    job = copy.copy(composed)
    with flag_override(job, ["struct", "readonly"], False):
        job.pop("hydra")
    values = OmegaConf.to_container(job, resolve=resolve, enum_to_str=True)
    assert isinstance(values, dict)
    values = moved.composed(values)
    defaults = {one.name: one.default for section in reference.sections(command) for one in section.settings}
    other = [
        f"{name}={option}"
        for name, option in choices.items()
        if "/" not in name and name not in values and groups.file_of(name, option).is_file()
    ]
    head = [f"# {' '.join(other)}"] if other else []
    return "\n".join([*head, *_lines(values, "", defaults, choices)]) + "\n"


def _lines(
    values: Mapping[Any, Any], prefix: str, defaults: Mapping[str, str], choices: Mapping[str, Any]
) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            option = choices.get(name)
            yield f"{indent}{_key(key)}:" + (f"  # {name}={option}" if option is not None else "")
            yield from _lines(value, f"{name}.", defaults, choices)
            continue
        default = defaults.get(name)
        changed = default not in (None, reference.REQUIRED) and not _is(value, str(default))
        yield f"{indent}{_key(key)}: {_flow(value)}" + (f"  # default: {default}" if changed else "")


def _key(key: Any) -> str:
    return _flow(key)


def _flow(value: Any) -> str:
    """A value on one line of YAML, as OmegaConf reads it back."""
    from omegaconf._utils import get_omega_conf_dumper

    dumped: str = yaml.dump(
        value, default_flow_style=True, allow_unicode=True, width=2**31, sort_keys=False, Dumper=get_omega_conf_dumper()
    )
    return dumped.removesuffix("\n").removesuffix("\n...").rstrip("\n")


def _is(value: Any, default: str) -> bool:
    """Whether a value is this default, as it is typed."""
    if isinstance(value, float):
        return float(default) == value if default.replace(".", "").replace("e-", "").isdigit() else False
    return reference.shown(value) == default
