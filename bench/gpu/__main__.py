"""The command: python -m bench.gpu (see ``bench/gpu/__init__.py``, or ``make bench-gpu``)."""

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench.gpu import parts, wheels  # noqa: E402
from bench.gpu.steps import OK, Budget, Outcome, run  # noqa: E402

ROOM = 40 << 30
"""Bytes needed for the random weights of all parts, with a margin; they are kept in memory if this much is free."""
SHARED_MEMORY = Path("/dev/shm")


def options() -> argparse.Namespace:
    """Parse the command line; an empty value counts as missing, since make passes empty variables."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=sys.modules["bench.gpu"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--budget", default="", help="seconds in total; by default 530, for a rehearsal 1,500")
    parser.add_argument("--parts", default="", help=f"of {' '.join(parts.ALL)}; by default {' '.join(parts.DEFAULT)}")
    parser.add_argument("--out", default="", help="folder of the results; by default bench/results/gpu-<card>")
    parser.add_argument("--wheels", default="", help="folder of wheels to install first, into a separate folder")
    parser.add_argument(
        "--scratch", default="", help="folder for runs and random weights; kept, unlike the default temporary folder"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, even on a machine with a GPU")
    found = parser.parse_args()
    try:
        found.budget = float(found.budget) if found.budget else None
    except ValueError:
        parser.error(f"BUDGET={found.budget}: must be a number of seconds")
    found.parts = found.parts.split() or list(parts.DEFAULT)
    if unknown := [name for name in found.parts if name not in parts.ALL]:
        parser.error(f"PARTS={' '.join(found.parts)}: unknown part {unknown[0]}; available: {' '.join(parts.ALL)}")
    return found


def environment(site: list[str], cache: Path) -> dict[str, str]:
    """Environment of every step: this checkout on the path, after the wheels, and no network access."""
    path = os.pathsep.join(filter(None, [*site, str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    fixed = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**os.environ, **fixed, "PYTHONPATH": path, "HYDRAFT_CACHE": str(cache)}


def machine(scratch: Path, site: list[str], separate: list[str], rehearse: bool) -> parts.Machine:
    """Describe this machine."""
    sys.path[1:1] = [*site, str(ROOT / "src")]
    importlib.invalidate_caches()
    from hydraft.system import hardware

    card = min((gpu.memory for gpu in hardware.detect().gpus), default=None)
    sys.path += separate
    packages = {name for name in ("liger_kernel", "unsloth", "xdist", "pytest_timeout") if find_spec(name) is not None}
    del sys.path[len(sys.path) - len(separate) :]
    path = environment([*site, *separate], scratch)["PYTHONPATH"] if separate else ""
    return parts.Machine(
        scratch, card, rehearse or card is None, frozenset(packages), path, gpu_tests=parts.gpu_tests()
    )


def models_in_memory(scratch: Path, here: parts.Machine, keep: bool) -> Path | None:
    """Keep the random weights in main memory if they fit, and return the folder; None where they stay in ``scratch``.

    With a kept scratch folder, this folder is kept too.
    """
    link = scratch / "models"
    if here.rehearse or link.exists() or not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < ROOM:
        return None
    folder = Path(tempfile.mkdtemp(prefix="hydraft-bench-", dir=SHARED_MEMORY))
    (folder / "models").mkdir()
    link.symlink_to(folder / "models")
    return None if keep else folder


def described(here: parts.Machine, found: dict[str, Any], chosen: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """The figures, with what they were measured on."""
    from bench.results import described as header

    how = {"rehearsal": here.rehearse, "parts": chosen.parts, "budget": budget.seconds, "seconds": round(budget.spent)}
    return {**header(), **how, **found}


def keep(out: Path, here: parts.Machine, outcomes: list[Outcome], chosen: argparse.Namespace, budget: Budget) -> str:
    """Write the results so far to ``out`` and return the table."""
    from bench.gpu import collect

    found = collect.gather(here.scratch, outcomes)
    text = collect.table(found)
    (out / "results.json").write_text(
        json.dumps(described(here, found, chosen, budget), indent=1, ensure_ascii=False) + "\n"
    )
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    collect.pack(here.scratch, out / "logs.tgz")
    return text


def measure(here: parts.Machine, site: list[str], out: Path, chosen: argparse.Namespace, budget: Budget) -> bool:
    """Run the parts, print the outcome of each step and the summary; return whether no step failed."""
    logs, outcomes, text = here.scratch / "logs", list[Outcome](), ""
    logs.mkdir(exist_ok=True)
    variables = environment(site, here.scratch / "cache")
    try:
        for name in chosen.parts:
            for outcome in run(parts.part(name, here), budget, logs, variables):
                outcomes.append(outcome)
                detail = f": {outcome.said}" if outcome.status.startswith(("failed", "out of")) else ""
                clock = f"[{budget.spent:4.0f} s, {max(0.0, budget.left):4.0f} s left]"
                print(f"{clock} {name}: {outcome.name} {outcome.status}, {outcome.seconds:.0f} s{detail}", flush=True)
            text = keep(out, here, outcomes, chosen, budget)
    finally:  # results are written after a signal, too
        text = keep(out, here, outcomes, chosen, budget)
    print(f"\n{text}\n\n{out}: {', '.join(sorted(file.name for file in out.iterdir()))}; {budget.spent:.0f} s")
    return all(outcome.status == OK or outcome.status.startswith("skipped") for outcome in outcomes)


def main() -> int:
    """Return 0 if every step that could run was ok, 1 otherwise."""
    chosen = options()
    budget = Budget(chosen.budget or parts.SECONDS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(ROOT)
    out = Path(chosen.out).resolve() if chosen.out else None
    scratch = Path(chosen.scratch or tempfile.mkdtemp(prefix="hydraft-bench-")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    in_memory = None
    try:
        site, separate = wheels.paths(
            Path(chosen.wheels).resolve() if chosen.wheels else None, scratch / "site", "unsloth" in chosen.parts
        )
        here = machine(scratch, site, separate, chosen.rehearse)
        if here.rehearse and chosen.budget is None:
            budget.seconds = parts.REHEARSAL_SECONDS
        from bench.results import FOLDER, card, slug

        where = "no GPU here" if here.card is None else card()
        how = "a rehearsal with tiny shapes, which measures nothing" if here.rehearse else f"{here.card / 2**30:.0f} GiB" if here.card else ""  # fmt: skip
        print(f"{where}: {how}; {budget.seconds:.0f} s for {' '.join(chosen.parts)}; scratch in {scratch}", flush=True)
        out = out or FOLDER / ("rehearsal" if here.rehearse else f"gpu-{slug(card())}")
        out.mkdir(parents=True, exist_ok=True)
        in_memory = models_in_memory(scratch, here, bool(chosen.scratch))
        return 0 if measure(here, site, out, chosen, budget) else 1
    finally:
        for folder in (in_memory, None if chosen.scratch else scratch):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
