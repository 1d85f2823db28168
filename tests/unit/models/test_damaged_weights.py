"""A checkpoint with a file that a download or a copy has cut is refused with the name of the file, before it is loaded."""

import os
import shutil
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import ConfigError
from hydraft.models import prepare
from hydraft.system.source_tree import TINY


@pytest.mark.parametrize("left", [0.5, 0.0, 5], ids=["half", "nothing", "a part of the length of its header"])
def test_a_cut_file_of_a_folder_is_named(tmp_path: Path, left: float) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    model = config_of("model=auto", f"model.path={folder}").model
    assert prepare.native(model, 0) == model
    weights = folder / "model.safetensors"
    os.truncate(weights, int(left * weights.stat().st_size) if left < 1 else int(left))
    with pytest.raises(ConfigError, match=rf"^model\.path={folder}: {weights}: .*: download or copy the file again$"):
        prepare.native(model, 0)
