"""The console shows one progress bar at a time, and resumes an interrupted one."""

import os
import time
from pathlib import Path

from conftest import SCALE
from hydraft.system.console import Screen


def test_the_time_of_an_interruption_is_not_counted(tmp_path: Path) -> None:
    screen = Screen(os.open(tmp_path / "stderr", os.O_CREAT | os.O_WRONLY), visible=True)
    with screen:
        screen.phase("training", 10)
        for _ in range(5):
            time.sleep(0.02)
            screen.advance()
        bar = screen.progress.tasks[0]
        elapsed, left = bar.elapsed or 0, bar.time_remaining
        with screen.aside("scoring at step 5", 2):
            assert [task.visible for task in screen.progress.tasks] == [False, True]
            time.sleep(0.5 * SCALE)
            screen.advance(2)
            assert screen.completed == 2
            assert (screen.progress.tasks[1].elapsed or 0) >= 0.5 * SCALE
        assert (screen.name, screen.completed, screen.progress.tasks) == ("training", 5, [bar])
        assert bar.visible
        assert (bar.elapsed or 0) - elapsed < 0.3 * SCALE
        assert bar.time_remaining == left
        screen.advance(1, "loss 1.0", line=True)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert lines == ["training …", "scoring at step 5 …", "training 6/10  loss 1.0"]
