"""``mode=verify``: trains a few steps of a config and of its reference on this machine, and compares them. No torch at module level.

The reference has ZeRO-0, one rank, torch's kernels and padded batches. Both runs have the same records in the same order and the same
global batches, so that what differs is how they are computed.
"""

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.data.records import Read
from hydraft.errors import ConfigError, RunFailed, RunStopped
from hydraft.launch import run as launch
from hydraft.launch.external import environment
from hydraft.launch.verify import configs, curves
from hydraft.launch.verify.curves import Apart, Curve
from hydraft.models import prepare, quantised_copy, stored_quant
from hydraft.plan import plan, preflight, render
from hydraft.plan.preflight import Admitted, Measured
from hydraft.runs import claim, run_folder
from hydraft.system import files, hardware, program, temporary
from hydraft.system.console import Screen
from hydraft.system.hardware import Hardware
from hydraft.training.objectives.registry import make_objective

REFERENCE, TESTED, CONTROL = "reference", "this config", "reference again"
RESULT = "verify.json"
POLL = 0.2
"""Seconds between two looks at the steps of a run."""


def verify(requested: Config, folder: Path) -> None:
    """Compare ``requested`` with its reference, print the differences, and write them to ``verify.json`` in ``folder``.

    Raises:
        ConfigError: one of the two cannot run here.
        RunFailed: one of the two failed, or they differ by more than their precision explains.
    """
    _refuse(requested)
    machine = hardware.detect()
    objective = make_objective(requested.objective)
    objective.check(requested)
    tested, reference = admit(requested, machine, objective.read)
    for admitted in (reference, tested):
        prepare.native(admitted.config.model, admitted.config.seed, storage=quantised_copy.of_run(admitted.config))
        stored_quant.check(admitted.config.model, admitted.config.quant)
    with claim.writable(folder), temporary.folder("verify") as place, Screen(os.dup(1), visible=True) as screen:
        _announce(screen, requested, tested, reference)
        theirs = _train(REFERENCE, reference, place, folder, screen)
        ours = _train(TESTED, tested, place, folder, screen)
        found, precision = curves.apart(ours, theirs), tested.config.train.precision.value
        within = found.within(precision)
        again = configs.control(reference.config) if curves.exceeded(within) else None
        if again is not None:
            screen.say(
                f"out of bounds: {', '.join(curves.exceeded(within))}; how far rounding alone takes this config:"
            )
            alone = _train(CONTROL, dataclasses.replace(reference, config=again), place, folder, screen)
            within = found.within(precision, curves.apart(alone, theirs))
        screen.progress.stop()
        missing = configs.not_covered(requested, tested.config, machine)
        _report(screen, (ours, theirs), found, within, precision)
        wrong = _verdict(
            screen, within, missing, f"{precision}, and of rounding in this config" if again else precision
        )
        files.write_json(folder / RESULT, _values((tested, reference), (ours, theirs), found, within, missing))
    if wrong:
        raise RunFailed(f"{TESTED} does not train as the {REFERENCE} does; the figures are in {folder / RESULT}")


def _announce(screen: Screen, requested: Config, tested: Admitted, reference: Admitted) -> None:
    """Print both configs, in what they differ, and what both have otherwise than ``requested``."""
    for name, admitted in ((REFERENCE, reference), (TESTED, tested)):
        screen.say(f"{name}: {plan.headline(admitted.config)}")
    differ = configs.differs(tested.config, reference.config)
    screen.say(f"they differ in: {differ}" if differ else "they do not differ: nothing is verified")
    for note in (*tested.notes, *configs.held_fixed(requested)):
        screen.say(note)


def _refuse(requested: Config) -> None:
    """Refuse settings that ``mode=verify`` has no use for.

    Raises:
        ConfigError: names the override.
    """
    if requested.resume is not None:
        raise ConfigError(f"resume={requested.resume}: mode=verify trains two new runs: leave it out")
    if requested.cluster.gpu_memory is not None:
        raise ConfigError(f"cluster.gpu_memory={requested.cluster.gpu_memory}: is for mode=plan: leave it out")
    if environment.detect() is not None:
        raise ConfigError(f"mode=verify: starts its own ranks: use {program.typed('train')} without another launcher")


def admit(requested: Config, machine: Hardware, read: Read) -> tuple[Admitted, Admitted]:
    """The plan of the config to verify, with as many of its ranks as fit here, and that of its reference.

    Raises:
        ConfigError: one of them is refused, or does not fit.
    """
    known: Measured = {}

    if requested.debug.on:
        raise ConfigError(f"debug={requested.debug.name}: mode=verify trains runs of its own: leave one of the two out")

    def admitted(config: Config) -> Admitted:
        return preflight.admit(preflight.resolve(config, machine), read, known)

    subject = configs.comparable(requested)
    tested = None
    for candidate in configs.here(subject, machine):
        tested = admitted(candidate)
        if tested.plan.fits is not False:
            break
    assert tested is not None
    if tested.plan.fits is False:
        raise ConfigError(f"mode=verify: {render.verdict(tested.plan)}")
    plain = admitted(configs.reference(tested.config))
    if plain.plan.fits is False:
        raise ConfigError(
            "mode=verify: the reference, one rank at ZeRO-0 without offloading, does not fit here; verify a smaller model of the family "
            "(model.size=…, or model.init=random model.scale=tiny) or shorter records (data.max_length=…)"
        )
    return tested, dataclasses.replace(plain, config=configs.padded(plain.config))


def _train(name: str, admitted: Admitted, place: Path, folder: Path, screen: Screen) -> Curve:
    """Train one of the two runs in a folder below ``place``; the logs of one that fails are copied to ``folder``."""
    run = place / name.replace(" ", "-")
    run_folder.create(run, admitted.config, admitted.plan, admitted.machine)
    try:
        with _watched(screen, name, run):
            launch.run(admitted.config, run, quiet=True)
    except RunFailed as error:
        for log in run.glob("*.log"):
            shutil.copyfile(log, folder / f"{run.name}-{log.name}")
        logs = f"its logs: {folder / run.name}-*.log"
        raise RunFailed(f"{name}: {error.summary}", error.code, error.failure, logs) from None
    except RunStopped as error:
        raise RunStopped(error.summary, error.signal) from None  # there is nothing to resume
    return curves.read(run)


@contextmanager
def _watched(screen: Screen, name: str, run: Path) -> Iterator[None]:
    """While the block trains a run, show the steps that it has logged."""
    screen.phase(name, configs.STEPS)
    ended = threading.Event()

    def show() -> None:
        last = False
        while not last:
            last = ended.wait(POLL)
            for loss in _losses(run)[screen.completed :]:
                screen.advance(1, f"loss {loss:.4f}", line=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _losses(run: Path) -> list[float]:
    """The losses of the steps that a run has logged so far."""
    try:
        whole = (run / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
    except OSError:
        return []
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line["loss"] for line in lines if line.get("loss") is not None]


def _report(
    screen: Screen, runs: tuple[Curve, Curve], found: Apart, within: dict[str, tuple[float, float]], precision: str
) -> None:
    """Print both curves, and their differences beside the bounds."""
    ours, theirs = runs
    steps = zip(ours.losses, theirs.losses, ours.grad_norms, theirs.grad_norms, strict=True)
    rows = [
        [str(step), f"{a:.6f}", f"{b:.6f}", f"{curves.relative(a, b):.1e}", f"{c:.6f}", f"{d:.6f}", f"{curves.relative(c, d):.1e}"]
        for step, (a, b, c, d) in enumerate(steps, 1)
    ]  # fmt: skip
    screen.table("", ["step", "loss", REFERENCE, "apart", "gradient norm", REFERENCE, "apart"], rows)
    screen.table(
        "",
        ["largest difference", "found", f"bound of {precision}", "within"],
        [[name, f"{value:.1e}", f"{bound:.1e}", "yes" if value <= bound else "NO"] for name, (value, bound) in within.items()],
    )  # fmt: skip
    screen.say(
        f"trained weights: root mean square over the elements, as a share of the {ours.moved:.2g} that AdamW can move them; "
        f"the largest difference of an element is {found.largest:.1e}"
    )


def _verdict(screen: Screen, within: dict[str, tuple[float, float]], missing: list[str], bounds: str) -> list[str]:
    """Print what was not covered, and the verdict. Returns the measures that are out of bounds."""
    for line in missing:
        screen.say(f"not covered: {line}")
    wrong = curves.exceeded(within)
    verdict = f"OUT OF BOUNDS: {', '.join(wrong)}" if wrong else f"within the bounds of {bounds}"
    screen.say(f"{configs.STEPS} steps of {TESTED} and of the {REFERENCE}: {verdict}")
    return wrong


def _values(
    admitted: tuple[Admitted, Admitted],
    runs: tuple[Curve, Curve],
    found: Apart,
    within: dict[str, tuple[float, float]],
    missing: list[str],
) -> dict[str, Any]:
    """``verify.json``."""
    return {
        "within_bounds": not curves.exceeded(within),
        "precision": admitted[0].config.train.precision.value,
        "differences": {name: {"found": value, "bound": bound} for name, (value, bound) in within.items()},
        "largest_weight_difference": found.largest,
        "not_covered": missing,
        **{
            name: {"headline": plan.headline(one.config), "losses": curve.losses, "grad_norms": curve.grad_norms}
            for name, one, curve in zip(("tested", "reference"), admitted, runs, strict=True)
        },
    }
