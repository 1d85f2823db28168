"""Resolves ``run=`` to a run, an adapter or a model, from its files. No torch."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydraft.config import text
from hydraft.config.choices import Init, Precision, QuantKind, Thinking
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config, QuantConfig, load_config
from hydraft.errors import ConfigError
from hydraft.infer import adapters, places
from hydraft.infer.source import ADAPTER, Kind, Source
from hydraft.models import base_identity, prepare, stored_quant, vocabulary
from hydraft.models.families.registry import published_family
from hydraft.system import ownership

ADAPTER_CONFIG = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find(options: InferConfig) -> list[Source]:
    """The sources that ``run=`` names, in their order; several are adapters of one base.

    Raises:
        ConfigError: one is missing, incomplete, a pickle, or does not fit its base or the other adapters.
    """
    given = options.run
    if isinstance(given, Mapping):
        named = {str(name): str(place) for name, place in given.items()}
        sources = [_with_options(place, options, name) for name, place in named.items()]
    else:
        places = [str(place) for place in given] if isinstance(given, (list, tuple)) else [str(given)]
        sources = [_with_options(place, options, None) for place in places]
        adapters.make_names_unique(sources)
    if not sources:
        raise ConfigError("run=[]: is empty; give run=last, or a run's folder")
    adapters.check_same_base(sources)
    names = [source.name for source in sources]
    if options.adapter is not None and options.adapter not in names:
        raise ConfigError(f"adapter={options.adapter}: not among those of run ({', '.join(names)})")
    return sources


def _with_options(place: str, options: InferConfig, name: str | None) -> Source:
    """The source at ``place``, with the command line's settings applied."""
    source = look(place)
    source.name = name or source.name
    if options.base is not None:
        if source.kind is Kind.model:
            raise ConfigError(f"base={options.base}: {source.folder} is a whole model, which needs none: leave it out")
        source.model = ModelConfig(
            name=Path(options.base).name, path=options.base, dtype=source.model.dtype, hub=source.model.hub
        )
    if options.revision is not None:
        source.model.revision = options.revision
    if options.quant.kind is not None:
        source.quant = QuantConfig(options.quant.kind, options.quant.double_quant)
    if options.dtype is not Precision.auto:
        source.precision, source.model.dtype = options.dtype, Precision.auto
    if options.template is not None:
        source.template = options.template
    if options.thinking is not Thinking.auto:
        source.thinking = options.thinking
    if source.kind is Kind.adapter and options.trust_remote_code and options.base is None:
        _refuse_named_code(source)
    _check_code(source.model, options.trust_remote_code)
    check_base(source, options.other_base)
    source.quant, note = stored_quant.follow(source.model, source.quant)
    source.notices += [note] if note else []
    return source


def _refuse_named_code(source: Source) -> None:
    """Refuse to run the code of a base that only another user's folder names.

    Raises:
        ConfigError: the message has the override that names it.
    """
    places = (source.folder / base_identity.NAME, *([] if source.run is None else [source.run / "config.yaml"]))
    file = next((place for place in places if place.is_file()), source.folder / ADAPTER_CONFIG)
    if doubt := ownership.doubt(file.parent, file.name):
        revision = f" revision={shlex.quote(source.model.revision)}" if source.model.revision else ""
        raise ConfigError(
            f"run={source.folder}: {doubt}, and names the model whose code trust_remote_code=true would run: "
            f"name it on the command line: base={shlex.quote(source.model.path)}{revision}"
        )


def look(place: str) -> Source:
    """The source at ``place``: a folder, ``last`` or ``best``.

    Raises:
        ConfigError: it is not a run, a sweep, an adapter or a model.
    """
    found = places.find(place)
    source = _read(found.folder, found.run, place)
    source.chosen = found.notes
    return source


def _read(folder: Path, run: Path | None, place: str) -> Source:
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter(folder, run)
    if (folder / "config.json").is_file():
        return _model(folder, run)
    _refuse_pickles(folder, ())
    raise ConfigError(
        f"run={place}: not a run's folder (config.yaml), an adapter's (adapter_config.json) or a model's (config.json)"
    )


def _adapter(folder: Path, run: Path | None) -> Source:
    if not (folder / ADAPTER).is_file():
        _refuse_pickles(folder, ())
        raise ConfigError(f"run={folder}: no {ADAPTER} in it")
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, method = str(settings.get("base_model_name_or_path") or ""), settings.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"run={folder}: its {ADAPTER_CONFIG} is not that of an adapter") from None
    if method not in ("LORA", "VERA"):  # others of peft load further models and adapters that their config names
        raise ConfigError(
            f"run={folder}: its {ADAPTER_CONFIG} has peft_type {method}; only LoRA and VeRA adapters can be used"
        )
    known = _origin(folder, run)
    if known is not None:
        return _described(Kind.adapter, folder, run, known)
    model = ModelConfig(name=Path(base).name, path=base, revision=settings.get("revision"))
    notice = f"{folder}: records its base by name only ({base or 'none'}); the base was not verified"
    return Source(
        Kind.adapter, folder, _name(folder, run), model, QuantConfig(), Precision.auto, "chat", notices=[notice]
    )


def _model(folder: Path, run: Path | None) -> Source:
    _refuse_pickles(folder, ("*.safetensors",))
    itself = ModelConfig(name=_name(folder, run), path=str(folder))
    known = _origin(folder, run) if run is not None or (folder / base_identity.NAME).is_file() else None
    if known is None:
        return Source(Kind.model, folder, itself.name, itself, QuantConfig(), Precision.auto, "chat", run=run)
    source = _described(Kind.model, folder, run, known)
    source.origin, source.model, source.quant = source.model, itself, QuantConfig()
    source.notices = []
    return source


def _described(kind: Kind, folder: Path, run: Path | None, known: dict[str, Any]) -> Source:
    try:
        model = text.to_object(ModelConfig, known["model"])
        source = Source(
            kind,
            folder,
            _name(folder, run),
            model,
            QuantConfig(QuantKind(known["quant"]["kind"]), bool(known["quant"]["double_quant"])),
            Precision(known["precision"]),
            str(known["template"]),
            known["max_length"],
            seed=known["seed"],
            thinking=Thinking(known.get("thinking", "auto")),
            base_sha256=known["base"]["sha256"],
            base_name=known["base"]["name"],
            run=run,
        )
    except Exception as error:
        raise ConfigError(
            f"{folder / base_identity.NAME}: not what hydraft wrote ({str(error).splitlines()[0]})"
        ) from error
    if kind is Kind.adapter and source.base_sha256 is None:
        source.notices.append(f"{folder}: has no hash of its base; only the shapes can be verified")
    return source


def _origin(folder: Path, run: Path | None) -> dict[str, Any] | None:
    """The recorded origin of a folder, or that of its run; None if it was made by another program."""
    file = folder / base_identity.NAME
    if file.is_file():
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            raise ConfigError(f"{file}: is damaged; it records the base of this folder") from None
    if run is None:
        return None
    config: Config = load_config(run / "config.yaml")
    known = base_identity.of(config)
    known["base"]["sha256"] = None  # the base may have changed since the run
    return known


def _name(folder: Path, run: Path | None) -> str:
    """The run's name, with that of the checkpoint if it is one."""
    folder = folder.resolve()
    if run is None:
        return folder.name
    run = run.resolve()
    return run.name if folder.parent == run else f"{run.name}-{folder.name}"


def _check_code(model: ModelConfig, trusted: bool) -> None:
    """Allow remote code only with ``trust_remote_code=true`` on this command line, and only code that cannot change.

    A run's config.yaml may come from anyone, so its own trust_remote_code is not enough.
    """
    if model.trust_remote_code and not trusted:
        raise ConfigError(
            f"model.path={model.path}: was trained with remote code; to run that code here give trust_remote_code=true"
        )
    model.trust_remote_code = trusted
    prepare.check_code(model, "revision")


def check_base(source: Source, other_base: bool) -> None:
    """Refuse a base that is missing, or is not the one that the adapter was trained on.

    Raises:
        ConfigError: the message has both.
    """
    if source.kind is Kind.model:
        vocabulary.check(source.model)
        return
    model = source.model
    if not model.path:
        raise ConfigError(f"run={source.folder}: has no record of its base; give base=<folder or hub name>")
    place = Path(model.path).expanduser()
    if (
        not place.is_dir()
        and (place.is_absolute() or model.path.startswith((".", "~")))
        and model.init is Init.pretrained
    ):
        raise ConfigError(
            f"run={source.folder}: its base {model.path} does not exist any more; give base=<its new folder>"
        )
    try:
        prepare.check(model)
        if place.is_dir() and model.init is Init.pretrained and published_family(place) is None:
            _refuse_pickles(place, ("*.safetensors",))
        if (source.folder / "tokenizer_config.json").is_file():
            vocabulary.check(model, source.folder)
    except ConfigError as error:
        raise ConfigError(f"base={model.path}: {str(error).removeprefix(f'model.path={model.path}: ')}") from None
    if source.base_sha256 is None or other_base:
        return
    found = base_identity.fingerprint(model, source.seed)
    if found is not None and found != source.base_sha256:
        raise ConfigError(
            f"run={source.folder}: was trained on {source.base_name} (sha256 {source.base_sha256[:12]}), and {model.path} is another "
            f"model (sha256 {found[:12]}): give base=<the one it was trained on>, or other_base=true to use it anyway"
        )


def _refuse_pickles(folder: Path, wanted: tuple[str, ...]) -> None:
    """Refuse a folder whose weights are pickles, which may contain code, unless it has ``wanted`` files too."""
    if any(any(folder.glob(pattern)) for pattern in wanted):
        return
    pickles = sorted(
        file.name for file in folder.iterdir() if file.suffix in PICKLES and file.name != "training_args.bin"
    )
    if pickles:
        raise ConfigError(
            f"{folder / pickles[0]}: is a pickle, which may contain code, and is not opened; convert the weights to .safetensors"
        )
    if wanted:
        raise ConfigError(f"{folder}: no weights in it (*.safetensors)")
