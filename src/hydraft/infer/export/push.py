"""``export.push``: uploads an export to a repository on the Hugging Face hub, with ``huggingface_hub``. No torch."""

import json
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants

from hydraft.config.choices import ExportKind
from hydraft.config.infer import InferConfig
from hydraft.config.printed import shell_word
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import card_head
from hydraft.infer.source import Source
from hydraft.models import base_identity
from hydraft.system import files


def check(source: Source, options: InferConfig) -> None:
    """Refuse an upload that cannot succeed, before anything is loaded. The network is not used.

    Raises:
        ConfigError: there is no token or no license, or others cannot have the base.
    """
    if options.export.push is None:
        return
    push = f"export.push={options.export.push}"
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{push}: HF_HUB_OFFLINE is set: unset it, or leave export.push out")
    if huggingface_hub.get_token() is None:
        raise ConfigError(f"{push}: there is no token of the hub: hf auth login, or set HF_TOKEN")
    if options.export.license is None and "license" not in card_head.of_base(source):
        raise ConfigError(
            f"{push}: the license of the base is not known: give export.license=apache-2.0, or what it is"
        )
    if options.export.kind is ExportKind.adapter and card_head.base_model(source) is None:
        raise ConfigError(
            f"{push}: the adapter's base is a folder of this machine, which others do not have: give base=<its name on the hub>, "
            "or use export.kind=merged"
        )


def without_folders(folder: Path, base: str) -> None:
    """In an exported adapter, name its base as on the hub, and leave out what is of the training records."""
    (folder / "probe.json").unlink(missing_ok=True)
    place = folder / base_identity.NAME
    known = files.read_object(place)
    if known:
        known["base"]["path"] = known["model"]["path"] = base
        files.write_json(place, known)
    place = folder / "adapter_config.json"
    files.write_json(place, json.loads(place.read_text(encoding="utf-8")) | {"base_model_name_or_path": base})


def upload(folder: Path, options: InferConfig) -> str:
    """Upload the files of ``folder`` in one commit; large files that are there already are not sent again. The repository's address.

    Raises:
        RunFailed: the hub refuses it, or cannot be reached; the folder is kept, and the message has the command that goes on.
    """
    name = str(options.export.push)
    api = HfApi()
    try:
        made = api.create_repo(name, private=not options.export.public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload by hydraft")
    except Exception as error:  # the hub's client raises many types, and those of its network library
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        again = f"hf upload {name} {shell_word(str(folder))} .{'' if options.export.public else ' --private'}"
        raise RunFailed(f"export.push={name}: {reason}; the export is kept, and this uploads it: {again}") from error
    return str(made)
