"""Which layers ``lora.target_modules`` means: checked against a model's names, and translated from published ones. No torch.

As in peft, a name matches the layers that have it as their whole name or as its last parts, and a regular expression matches whole
names. Unlike in peft, each name must match: a misspelt one would leave layers without an adapter.
"""

import difflib
import re
from collections.abc import Collection, Iterable

from hydraft.config.lora import ALL_LINEAR
from hydraft.errors import ConfigError
from hydraft.models.families.registry import lora_names, native_targets


def resolve(requested: list[str] | str, modules: Collection[str], linear: Iterable[str]) -> list[str] | str:
    """The ``target_modules`` of peft that ``requested`` (``LoraConfig.targets``) means in a model.

    Args:
        requested: names, or a regular expression.
        modules: the name of every module of the model.
        linear: the names of its linear layers without the language-model head.

    Returns:
        ``all-linear``, names of the model, or a regular expression with names of the model.

    Raises:
        ConfigError: one of them is in no layer's name.
    """
    if requested == [ALL_LINEAR]:
        return ALL_LINEAR
    if isinstance(requested, str):
        return _expression(requested, modules)
    found: list[str] = []
    for target in requested:
        if target == ALL_LINEAR:
            found += linear
            continue
        native = native_targets([target], modules)
        if missing := [name for name in native if not matching([name], modules)]:
            raise ConfigError(_unknown(requested, missing[0], modules))
        found += native
    return list(dict.fromkeys(found))


def matching(targets: list[str] | str, modules: Iterable[str]) -> set[str]:
    """The modules that peft's ``target_modules`` matches (``check_target_module_exists`` of peft, tuners/tuners_utils.py)."""
    if isinstance(targets, str):
        return {name for name in modules if re.fullmatch(targets, name)}
    return {name for name in modules if any(name == target or name.endswith(f".{target}") for target in targets)}


def _expression(expression: str, modules: Collection[str]) -> str:
    """The expression as it is, or with the published names in it replaced by native ones."""
    if matching(expression, modules):
        return expression
    names = lora_names()
    translated = re.sub(r"[A-Za-z]\w*", lambda m: _either(names[m[0]]) if m[0] in names else m[0], expression)
    if matching(translated, modules):
        return translated
    raise ConfigError(
        f"lora.target_modules={expression}: as a regular expression it matches no layer; it must match a whole name, such as "
        f"{_example(modules)} (.* matches any part of one)"
    )


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"(?:{'|'.join(names)})"


def _example(modules: Collection[str]) -> str:
    return max(modules, key=lambda name: name.count("."), default="")


def _unknown(requested: list[str], name: str, modules: Collection[str]) -> str:
    leaves = dict.fromkeys(module.rpartition(".")[2] for module in modules if module)
    known = [leaf for leaf in leaves if not leaf.isdigit()]
    close = difflib.get_close_matches(name.rpartition(".")[2], [*known, *lora_names(), ALL_LINEAR], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if re.search(r"[\\^$*+?()\[\]|]", name):
        hint = f"; a regular expression stands alone, without brackets: lora.target_modules='{name}'"
    return f"lora.target_modules=[{','.join(requested)}]: no such layers in this model: {name}{hint} (it has: {', '.join(known)})"
