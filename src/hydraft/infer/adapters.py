"""Checks of several adapters that are loaded together: unique names and one base. No torch."""

from typing import TYPE_CHECKING

from hydraft.errors import ConfigError

if TYPE_CHECKING:
    from hydraft.infer.source import Source


def make_names_unique(sources: "list[Source]") -> None:
    """Prefix equal names with the name of the parent folder.

    Raises:
        ConfigError: a folder is listed twice, or two names are still equal.
    """
    for source in sources:
        same_name = [other for other in sources if other is not source and other.name == source.name]
        if any(other.folder.resolve() == source.folder.resolve() for other in same_name):
            raise ConfigError(f"run: {source.folder} is listed twice")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            place = source.run or source.folder
            source.name = f"{place.resolve().parent.name}-{source.name}"
    names = [source.name for source in sources]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"run: two are named {double}; name them: run={{one: …, two: …}}")


def check_same_base(sources: "list[Source]") -> None:
    """Refuse sources that cannot be loaded over one base.

    Raises:
        ConfigError: two of them differ in base, quantisation or precision.
    """
    if len(sources) == 1:
        return
    if model := next((source for source in sources if source.kind.value == "model"), None):
        raise ConfigError(f"run: {model.folder} is a whole model; only adapters of one base can be loaded together")
    first = sources[0]
    for other in sources[1:]:
        if (first.model.path, first.model.revision, first.model.init, first.model.scale, first.model.size) != (
            other.model.path, other.model.revision, other.model.init, other.model.scale, other.model.size,
        ):  # fmt: skip
            raise ConfigError(
                f"run: {first.name} is for {first.model.path} and {other.name} for {other.model.path}; adapters that are loaded together need the same base"
            )
        if (first.model.rope, first.model.rope_factor) != (other.model.rope, other.model.rope_factor):
            raise ConfigError(
                f"run: {first.name} was trained with model.rope={first.model.rope.value}, {other.name} with "
                f"model.rope={other.model.rope.value}; adapters that are loaded together need the same positions"
            )
        if first.base_sha256 and other.base_sha256 and first.base_sha256 != other.base_sha256:
            raise ConfigError(
                f"run: {first.name} and {other.name} were trained on different weights, both called {first.model.path}"
            )
        if (first.quant, first.precision) != (other.quant, other.precision):
            raise ConfigError(
                f"run: {first.name} was trained with quant={first.quant.kind.value} in {first.precision.value}, {other.name} with "
                f"quant={other.quant.kind.value} in {other.precision.value}: choose one with quant=… and dtype=…"
            )
