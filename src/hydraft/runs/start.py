"""``lora.start``: which adapter a run starts from, and what of the lora section it decides. No torch.

The adapter must be one of the run's own base. Its rank, alpha, biases, targets and method become those of the run, as far as the command
line does not name them; named ones must be equal. Of the weights, only names and shapes are read here.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydraft.config.choices import Hub, Init, Mode
from hydraft.config.lora import ALL_LINEAR, LoraConfig, LoraMethod, as_targets, start_name
from hydraft.config.schema import Config, load_config
from hydraft.errors import ConfigError
from hydraft.models import adapter_files, base_identity, hugging_face_hub, lora_targets
from hydraft.models.adapter_files import AdapterFiles
from hydraft.runs import claim, run_folder

SETTING = "lora.start"
OWN = ("method", "r", "alpha", "bias", "target_modules", "rank_pattern", "alpha_pattern")
"""Settings of the lora section that the adapter decides."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def settled(config: Config, overrides: Collection[str], folder: Path | None = None) -> tuple[Config, list[str]]:
    """``config`` with the folder of its ``lora.start`` and what that adapter decides, and lines about it.

    Args:
        overrides: of the command line or of the job, which name the settings that were typed.
        folder: of the run, if it is known; a run that is there already keeps the adapter that it started from.

    Raises:
        ConfigError: there is no such adapter, it is for another base, or a typed setting is not its own.
    """
    lora = config.lora
    if lora.start is None:
        return config, []
    said, typed = f"{SETTING}={lora.start}", _typed(overrides)
    if "method" in typed:
        _check_method(lora, said)
    earlier = None if folder is None else _of_run(config, folder)
    if earlier is not None:
        start, own, lines = earlier.start, {name: getattr(earlier, name) for name in OWN}, []
        layers: set[str] = set()
    else:
        place = _find(config, said)
        files = adapter_files.read(place, said, with_weights=_trains(config) or not _is_cached(place))
        lines = _check_base(config, files, said)
        start, own, layers = str(files.folder), {name: getattr(files, name) for name in OWN}, files.layers
    for name in typed:
        _check_typed(lora, name, own[name], layers)
    taken = {name: value for name, value in own.items() if name not in typed}
    found = dataclasses.replace(lora, start=start, **taken)
    changed = [name for name in OWN if getattr(found, name) != getattr(lora, name)]
    if changed:
        values = ", ".join(f"{name}={_shown(getattr(found, name))}" for name in changed)
        lines.append(f"{SETTING}: {start_name(str(start))} decides {values}")
    return dataclasses.replace(config, lora=found), lines


def _typed(overrides: Collection[str]) -> list[str]:
    """Those of ``OWN`` that overrides name; that of the group names the method."""
    keys = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides}
    return [name for name in OWN if f"lora.{name}" in keys or (name == "method" and "lora" in keys)]


def _check_method(lora: LoraConfig, said: str) -> None:
    """Refuse methods that cannot start from an adapter."""
    if lora.method is LoraMethod.none:
        raise ConfigError(
            f"{said}: lora=none trains all weights and has no adapter: use lora=default, or leave lora.start out"
        )
    if lora.variant.shared:
        raise ConfigError(f"{said}: lora={lora.method.value} trains no A and B: leave lora out, or lora.start")
    if lora.variant.computed or not lora.variant.exact:
        raise ConfigError(
            f"{said}: lora={lora.method.value} computes its first weights; an adapter that was saved is plain LoRA: "
            "leave lora out, or lora.start"
        )


def _of_run(config: Config, folder: Path) -> LoraConfig | None:
    """The lora section of the run that is in ``folder`` already, if it started from what ``config`` names."""
    if not claim.holds_run(folder, config):
        return None
    before, start = claim.read(folder).lora, str(config.lora.start)
    if before.start is None:
        return None
    path = Path(start).expanduser().resolve()
    named = {str(path), str(path / "adapter")}
    same = start == "last" or before.start in named or start_name(before.start).partition("@")[0] == start
    return before if same else None


def _find(config: Config, said: str) -> Path:
    """The folder of the adapter, as an absolute path.

    Raises:
        ConfigError: there is none.
    """
    start = str(config.lora.start)
    folder = run_folder.find("last", SETTING) if start == "last" else Path(start).expanduser()
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(start):
            raise ConfigError(f"{said}: no such folder")
        return _from_hub(config, said)
    folder = folder.resolve()
    if not (folder / claim.CONFIG).is_file() or (folder / adapter_files.SETTINGS).is_file():
        if not (folder / adapter_files.SETTINGS).is_file():
            raise ConfigError(
                f"{said}: neither a run's folder (config.yaml) nor an adapter's ({adapter_files.SETTINGS})"
            )
        return folder
    if (folder / "adapter").is_dir():
        return folder / "adapter"
    if (folder / "model").is_dir():
        raise ConfigError(
            f"{said}: {folder} trained all weights and has no adapter: train its model on with model=auto "
            f"model.path={folder / 'model'}, and leave lora.start out"
        )
    saved = sorted(place.name for place in (folder / "checkpoints").glob("step-*"))
    way = f"resume it, or give its checkpoint {folder / 'checkpoints' / saved[-1]}" if saved else "give another one"
    raise ConfigError(f"{said}: {folder} saved no adapter (status {run_folder.status(folder) or 'not ended'}): {way}")


def _from_hub(config: Config, said: str) -> Path:
    """The folder of an adapter on the hub, in the hub's cache; with ``mode=plan``, only its settings are downloaded."""
    if config.model.hub is not Hub.huggingface:
        raise ConfigError(
            f"{said}: no such folder; with model.hub={config.model.hub.value} an adapter is given as a folder"
        )
    wanted = [adapter_files.SETTINGS, base_identity.NAME, *([adapter_files.WEIGHTS] if _trains(config) else [])]
    try:
        return hugging_face_hub.files(str(config.lora.start), wanted)
    except ConfigError as error:
        raise ConfigError(f"{said}: no such folder here, and {error}") from None


def _trains(config: Config) -> bool:
    return config.mode in (Mode.train, Mode.verify)


def _is_cached(place: Path) -> bool:
    """Whether a folder is one of the hub's cache, which may have some of an adapter's files only."""
    return place.parent.name == "snapshots"


def _check_base(config: Config, files: AdapterFiles, said: str) -> list[str]:
    """Compare the base that an adapter records with that of the run; returns lines about what could not be compared.

    Raises:
        ConfigError: they are different.
    """
    model, known = config.model, _recorded(files.folder, said)
    recorded = (known or {}).get("base", {})
    base, path = str(recorded.get("name") or files.base), str(recorded.get("path") or files.base)
    expected = recorded.get("sha256")
    found = None if expected is None else base_identity.fingerprint(model, config.seed)
    if found is not None:
        if found == expected:
            return []
        drawn = known is not None and known["model"].get("init") == Init.random.value and model.init is Init.random
        way = f"its random base has seed={known.get('seed')}" if known and drawn else f"give model.path={path}"
        raise ConfigError(
            f"{said}: was trained on {base} (sha256 {str(expected)[:12]}), and {model.path} is another model (sha256 {found[:12]}): {way}"
        )
    if not path:
        return [f"{said}: records no base; only the shapes of its tensors can be compared"]
    if not _same(path, model.path):
        other = f"; if that is the same one, write it as base_model_name_or_path into {files.folder / adapter_files.SETTINGS}"
        raise ConfigError(
            f"{said}: was trained on {path}, and model.path={model.path}: give the model that it was trained on"
            + (other if known is None else "")
        )
    return [f"{said}: records its base by name only ({path}); its weights were not compared"]


def _recorded(folder: Path, said: str) -> dict[str, Any] | None:
    """What an adapter of hydraft records of its base, or what its run does; None for one of another program."""
    file = folder / base_identity.NAME
    if file.is_file():
        try:
            known = dict(json.loads(file.read_text(encoding="utf-8")))
            assert isinstance(known["base"], dict) and isinstance(known["model"], dict)
            return known
        except (OSError, ValueError, TypeError, KeyError, AssertionError, RecursionError):
            raise ConfigError(f"{said}: {file} is damaged; it records the base of the adapter") from None
    run = next((up for up in (folder.parent, folder.parent.parent) if (up / claim.CONFIG).is_file()), None)
    if run is None:
        return None
    model = load_config(run / claim.CONFIG).model
    return {"base": {"name": model.name, "path": model.path}, "model": base_identity.plain(model)}


def _same(one: str, other: str) -> bool:
    """Whether two names of a model, each a path or a name on the hub, mean the same as far as names tell."""
    return one == other or _last(one) == _last(other)


def _last(name: str) -> str:
    cached = re.search(r"models--[^/]+?--([^/]+)/snapshots/", name)
    return (cached[1] if cached else Path(name).name).casefold()


def _check_typed(lora: LoraConfig, name: str, own: Any, layers: set[str]) -> None:
    """Refuse a typed setting that is not the adapter's own. Which layers ``all-linear`` means is compared when they exist.

    Raises:
        ConfigError: names it.
    """
    given = getattr(lora, name)
    if name == "target_modules" and given != own:
        targets = as_targets(given)
        if ALL_LINEAR in targets or not layers or lora_targets.matching(targets, layers) == layers:
            return
    elif given == own:
        return
    raise ConfigError(
        f"lora.{name}={_shown(given)}: the adapter of {SETTING} has {name}={_shown(own)}: leave lora.{name} out, or lora.start for a "
        "new adapter"
    )


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return (
        f"[{','.join(value)}]" if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    )
