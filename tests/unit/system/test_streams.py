"""Writing to an output that is lost, in a process of its own for each case."""

import os
import subprocess
import sys
import tty

import pytest

BEGIN = "import os, sys, threading; from hydraft.system import streams; streams.guard()\n"


def run(code: str, streams: str) -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` after ``guard``, with the shell's redirections ``streams``; $? is that of Python."""
    line = f'"{sys.executable}" -c "$0" {streams}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", line, BEGIN + code], capture_output=True, text=True, check=False)


GO_ON = "streams.go_on()\n"
MANY = "for number in range(3): print('x' * 99_999, flush=True)\n"
DONE = "os.write(2, b'done')"


@pytest.mark.parametrize(
    ("code", "streams", "ended", "said"),
    [
        (GO_ON + MANY + DONE, "| true", 0, "stdout: Broken pipe; this goes on, and what it prints is lost\ndone"),
        (GO_ON + MANY + DONE, "> /dev/full", 0, "stdout: No space left on device; this goes on, and what it prints is lost\ndone"),
        (GO_ON + "print(1)", "> /dev/full", 0, "stdout: No space left on device; this goes on, and what it prints is lost\n"),
        (GO_ON + "streams.show(b'x' * 99_999); " + DONE, "> /dev/full", 0, "stdout: No space left on device; this goes on, and what it prints is lost\ndone"),
        (GO_ON + "print('x', file=sys.stderr)", "2>&1 | true", 0, ""),
        (MANY + DONE, "| true", 141, ""),
        ("print(1)", "> /dev/full", 1, "stdout: No space left on device\n"),
        ("print(1, file=sys.stderr); print(2)", "2> /dev/full", 0, ""),
        (MANY + DONE, "1>&-", 0, "done"),
        ("print(1); print(2, file=sys.stderr); print(sys.stdin.read())", "<&- 1>&- 2>&-", 0, ""),
        ("file = open(os.devnull); os.write(2, str(file.fileno()).encode())", "<&- 1>&-", 0, "3"),
        ("os.system('echo 1; echo 2 >&2; cat')", "<&- 1>&- 2>&-", 0, ""),
        (GO_ON + "from rich.console import Console; import time; time.sleep(0.1); Console().print('y'); " + DONE, "| true", 0, "stdout: Broken pipe; this goes on, and what it prints is lost\ndone"),
    ],
)  # fmt: skip
def test_lost_and_closed_streams(code: str, streams: str, ended: int, said: str) -> None:
    code = code.replace("print('x' * 99_999", "import time; time.sleep(0.1); print('x' * 99_999")  # true has ended
    done = run(code, streams)
    assert (done.returncode, done.stderr) == (ended, said)


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything() -> None:
    done = run("os.set_blocking(1, False); print('x' * 999_999)", "| (sleep 0.1; wc -c) ")
    assert (done.returncode, done.stdout.strip()) == (0, "1000000")


def test_what_cannot_be_encoded_is_printed_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run("print('é\\udcff')", "| cat")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\\udcff\n", "")


SENT = "\x1b]52;c;aGk=\x07\x1b[2J\x1b[6n\x1bP\x9b1A\x08\0|\x1b[1;31mred\x1b[0m\x1b[2K\x1b[1A\x1b[?25l\ta\r\né"
SHOWN = (
    "\\x1b]52;c;aGk=\\x07\\x1b[2J\\x1b[6n\\x1bP\\x9b1A\\x08\\x00|\x1b[1;31mred\x1b[0m\x1b[2K\x1b[1A\x1b[?25l\ta\r\né"
)


def test_text_from_outside_cannot_command_a_terminal() -> None:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    subprocess.run([sys.executable, "-c", f"{BEGIN}print({SENT!r}, end='', flush=True)"], stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 9999).decode() == SHOWN
    os.close(ours)
    assert run(f"print({SENT!r}, end='')", "| cat").stdout == SENT.replace("\r\n", "\n")  # as text is read here


def test_another_stream_in_place_of_stdout_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from hydraft.system import streams

    before = sys.stdout
    streams.guard()
    assert sys.stdout is before
