"""Folders of the project that no run is saved in, however they are written."""

from pathlib import Path

import pytest

from hydraft.errors import ConfigError
from hydraft.runs import claim
from hydraft.system.source_tree import ROOT


@pytest.mark.parametrize("inside", ["conf/new", "src/hydraft/new", ".git/x/y", "data/../tests/new"])
def test_no_run_is_saved_among_the_files_of_the_project(inside: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    for place in (ROOT / inside, link / inside):
        with pytest.raises(ConfigError, match=r"is in (conf|src|\.git|tests), a folder of the project"):
            claim.check(place, str(place))
    claim.check(ROOT / "outputs" / "new", "outputs/new")
    claim.check(tmp_path / "conf" / "new", "conf/new")
