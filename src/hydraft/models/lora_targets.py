"""Which layers ``lora.target_modules`` means: checked against a model's names, and translated from published ones. No torch.

As in peft, a name matches the layers that have it as their whole name or as its last parts, and a regular expression matches whole
names. Unlike in peft, each name must match: a misspelt one would leave layers without an adapter.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

from hydraft.config.lora import ALL_LINEAR, LoraConfig, pattern
from hydraft.errors import ConfigError
from hydraft.models.families.registry import lora_names, native_targets


def resolve(lora: LoraConfig, modules: Collection[str], linear: Collection[str]) -> list[str] | str:
    """The ``target_modules`` of peft that the lora section means in a model.

    Args:
        lora: with names or a regular expression, and what narrows them (``exclude_modules``, ``layers``).
        modules: the name of every module of the model.
        linear: the names of its linear layers without the language-model head.

    Returns:
        ``all-linear``, names of the model, or a regular expression with names of the model. If something narrows them, whole names.

    Raises:
        ConfigError: one of them is in no layer's name, or a pattern of ranks or alphas is in none with an adapter.
    """
    targets = _resolved(lora.targets, modules, linear)
    if not (lora.excluded or lora.layers or lora.rank_pattern or lora.alpha_pattern):
        return targets
    found = set(linear) if targets == ALL_LINEAR else matching(targets, modules)
    kept = _narrowed(lora, found)
    for name in ("rank_pattern", "alpha_pattern"):
        for key in getattr(lora, name):
            if not any(pattern([key], layer) for layer in kept):
                raise ConfigError(
                    f"lora.{name}: {key} is the name of no layer with an adapter (they are: {', '.join(_leaves(kept))})"
                )
    return targets if kept == found else sorted(kept)


def copied(lora: LoraConfig, own: Collection[str], targets: Collection[str]) -> list[str]:
    """The modules that ``lora.modules_to_save`` means, by whole names.

    Args:
        own: the modules with parameters of their own that are not quantised.
        targets: the layers with an adapter.

    Raises:
        ConfigError: a name matches none, or one with an adapter.
    """
    names = native_targets(lora.modules_to_save, own)
    for name in names:
        if not matching([name], own):
            raise ConfigError(
                f"lora.modules_to_save={_typed(lora.modules_to_save)}: {name} is the name of no unquantised module with weights of its own "
                f"(there are: {', '.join(_leaves(own))})"
            )
    found = matching(names, own)
    if both := sorted(found & set(targets)):
        raise ConfigError(
            f"lora.modules_to_save={_typed(lora.modules_to_save)}: {both[0]} gets an adapter too: add it to lora.exclude_modules, or leave it "
            "out"
        )
    return sorted(found)


def _narrowed(lora: LoraConfig, found: set[str]) -> set[str]:
    """Of the layers ``found``, those that ``exclude_modules`` and ``layers`` leave."""
    names = lora.excluded if isinstance(lora.excluded, str) else native_targets(lora.excluded, found)
    for name in [names] if isinstance(names, str) else names:
        if not matching(name if isinstance(names, str) else [name], found):
            raise ConfigError(
                f"lora.exclude_modules={_typed(lora.exclude_modules)}: {name} matches no layer that lora.target_modules names "
                f"(they are: {', '.join(_leaves(found))})"
            )
    kept = found - matching(names, found)
    numbers = {name: _number(name) for name in kept}
    if lora.layers:
        known = sorted({number for number in numbers.values() if number is not None})
        if missing := sorted(set(lora.layers) - set(known)):
            last = f"numbers {known[0]} to {known[-1]}" if known else "none"
            raise ConfigError(
                f"lora.layers={_typed(lora.layers)}: no layer {missing[0]} gets an adapter (there are: {last})"
            )
        kept = {name for name in kept if numbers[name] in lora.layers}
    if not kept:
        raise ConfigError(f"lora.exclude_modules={_typed(lora.exclude_modules)}: no layer is left that gets an adapter")
    return kept


def _number(name: str) -> int | None:
    """The number of a layer's decoder layer; None outside of them."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _typed(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _resolved(requested: list[str] | str, modules: Collection[str], linear: Iterable[str]) -> list[str] | str:
    """What the names or the regular expression ``requested`` mean, before they are narrowed."""
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
