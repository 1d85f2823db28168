"""Checkpoints of ModelScope, through a stand-in with the signature of ``modelscope.snapshot_download`` (1.40)."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, config_of
from hydraft.config.choices import Hub
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import base_identity, prepare, shapes
from hydraft.models.load import load_tokenizer
from hydraft.plan import plan
from hydraft.system import program
from published import CHATGLM2, chatglm2_tensors, save, sentencepiece_model

TINY = ROOT / "src/hydraft/models/tiny"
STAND_IN = '''
"""Copies the files of a model from the folder HUB/<model>/<revision>, as the package downloads them."""
import fnmatch, json, os, shutil
from pathlib import Path
from typing import Any

def snapshot_download(
    model_id=None, revision=None, cache_dir=None, user_agent=None, local_files_only=False, cookies=None,
    ignore_file_pattern=None, allow_file_pattern=None, local_dir=None, allow_patterns=None, ignore_patterns=None,
    max_workers=None, repo_id=None, repo_type=None, progress_callbacks=None, token=None, endpoint=None,
) -> str:
    home = Path(os.environ["MODELSCOPE_STAND_IN"])
    with (home / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([model_id, revision, allow_patterns]) + "\\n")
    source = home / "hub" / model_id / revision
    if not source.is_dir():
        raise ValueError(f"The specified branch or tag : {revision} not exist!\\nsecond line")
    target = home / "cache" / model_id.replace(".", "___") / revision
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
            shutil.copy(file, target)
    return str(target)
'''


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in's folder; ``hub/<owner>/<name>/<revision>`` are its models."""
    package = tmp_path / "packages/modelscope"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("MODELSCOPE_STAND_IN", str(tmp_path))
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "own"))
    shutil.copytree(TINY, tmp_path / "hub/owner/tiny-1.0/master")
    yield tmp_path
    sys.modules.pop("modelscope", None)


def calls(hub: Path) -> list[list[object]]:
    file = hub / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def model(path: str = "owner/tiny-1.0", **settings: Any) -> ModelConfig:
    return ModelConfig(**{"name": "auto", "path": path, "hub": Hub.modelscope} | settings)


def test_a_model_is_downloaded_once_from_the_default_branch(hub: Path) -> None:
    section = model()
    assert shapes.planned_config(section) is None and base_identity.fingerprint(section, 0) is None
    assert calls(hub) == []  # a plan asks no hub
    found = prepare.native(section, 0)
    assert Path(found.path).parent.parent.parent == hub / "cache" and found.revision is None
    assert calls(hub)[0][:2] == ["owner/tiny-1.0", "master"]
    assert len(load_tokenizer(found)) > 100
    before = len(calls(hub))
    assert prepare.native(section, 0) == found
    prepare.tokenizer(section)
    assert len(calls(hub)) == before
    assert shapes.planned_config(section) == json.loads((TINY / "config.json").read_text())
    layout, _ = plan.known_layout(dataclasses.replace(Config(), model=section))
    assert layout is not None and layout.count == 1_921_728
    assert base_identity.fingerprint(section, 0) == base_identity.fingerprint(dataclasses.replace(found), 0)


def test_the_same_name_on_hugging_face_is_another_model(hub: Path) -> None:
    prepare.native(model(), 0)
    assert shapes.planned_config(model(hub=Hub.huggingface)) is None


def test_a_preview_downloads_no_weights(hub: Path) -> None:
    prepare.tokenizer(model())
    (downloaded,) = (hub / "cache").rglob("tokenizer.json")
    assert not list(downloaded.parent.glob("*.safetensors"))
    assert list(Path(prepare.native(model(), 0).path).glob("*.safetensors"))


def test_a_revision_is_a_download_of_its_own(hub: Path) -> None:
    shutil.copytree(TINY, hub / "hub/owner/tiny-1.0/v2")
    first, second = (prepare.native(model(**more), 0).path for more in ({}, {"revision": "v2"}))
    assert first != second and [call[1] for call in calls(hub)][-1] == "v2"
    with pytest.raises(
        ConfigError, match=r"model\.path=owner/tiny-1\.0: could not be .*branch or tag : v3 not exist!\)$"
    ):
        prepare.native(model(revision="v3"), 0)


def test_a_published_checkpoint_is_converted_from_its_pickles(hub: Path) -> None:
    target = hub / "hub/THUDM/chatglm2-6b/master"
    target.parent.mkdir(parents=True)
    save(target, CHATGLM2, chatglm2_tensors(), sentencepiece_model(), "bin")
    found = prepare.native(model(path="THUDM/chatglm2-6b"), 0)
    assert (Path(found.path) / "conversion.json").is_file()


def test_a_model_of_pickles_is_refused_by_its_name(hub: Path) -> None:
    target = hub / "hub/owner/pickled/master"
    shutil.copytree(TINY, target)
    for file in target.glob("*.safetensors*"):
        file.rename(target / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"^model\.path=owner/pickled: no weights in it"):
        prepare.native(model(path="owner/pickled"), 0)


def test_remote_code_is_refused(hub: Path) -> None:
    with pytest.raises(ConfigError, match="a revision on ModelScope is a branch or a tag"):
        prepare.check(model(trust_remote_code=True, revision="a" * 40))


def test_without_the_package_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))
    install = re.escape(program.install("modelscope"))
    with pytest.raises(ConfigError, match=rf"model\.hub=modelscope needs a package .*{install}"):
        config_of("model=auto", "model.path=owner/tiny-1.0", "model.hub=modelscope")
    assert config_of("mode=plan", "model=qwen", "model.hub=modelscope").model.hub.value == "modelscope"
    assert config_of("model.hub=modelscope").model.name == "tiny"  # its folder is here
    with pytest.raises(ConfigError, match="pip install"):
        prepare.native(model(), 0)
