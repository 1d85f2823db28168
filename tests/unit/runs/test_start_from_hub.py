"""``lora.start`` with a name on the Hugging Face hub."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from test_start import refused, settled

from hub_server import COMMIT, hub
from hydraft.config.choices import Mode
from hydraft.models import base_identity
from hydraft.models.adapter_files import SETTINGS, WEIGHTS
from using import adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter of rank 4."""
    return adapter(tmp_path_factory.mktemp("runs") / "zh", "quant=none")


def test_an_adapter_on_the_hub_is_read_from_its_cache(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "models--someone--zh-lora"
    shutil.copytree(made / "adapter", place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    config, lines = settled("lora.start=someone/zh-lora")
    assert config.lora.start == str(place / "snapshots" / COMMIT) and config.lora.r == 4
    assert lines[0].startswith("lora.start: someone/zh-lora@0123456 decides r=4")
    (place / "snapshots" / COMMIT / WEIGHTS).unlink()  # a plan downloads the settings only
    assert settled("lora.start=someone/zh-lora", f"mode={Mode.plan.value}")[0].lora.r == 4
    assert f"no {WEIGHTS}" in refused("lora.start=someone/zh-lora")
    assert "could not be downloaded" in refused("lora.start=someone/other")
    assert "given as a folder" in refused("lora.start=someone/other", "model.hub=modelscope")


def test_an_adapter_is_downloaded_from_the_hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By huggingface_hub itself, from a server of this machine: a plan reads the settings only, and nothing is downloaded twice."""
    shutil.copytree(made / "adapter", tmp_path / "hub/someone/zh-lora")
    (tmp_path / "hub/someone/empty").mkdir()
    with hub(tmp_path / "hub", tmp_path / "cache", monkeypatch) as served:
        config, lines = settled("lora.start=someone/zh-lora", f"mode={Mode.plan.value}")
        assert config.lora.r == 4 and lines[0].startswith(f"lora.start: someone/zh-lora@{COMMIT[:7]} decides r=4")
        assert sorted(served) == [SETTINGS, base_identity.NAME]
        config, _ = settled("lora.start=someone/zh-lora")
        place = Path(str(config.lora.start))
        assert (place / WEIGHTS).read_bytes() == (made / "adapter" / WEIGHTS).read_bytes()
        assert sorted(served) == [SETTINGS, WEIGHTS, base_identity.NAME]
        assert "someone/other could not be downloaded from the hub" in refused("lora.start=someone/other")
        assert f"{SETTINGS} is missing" in refused("lora.start=someone/empty")
