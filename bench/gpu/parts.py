"""The parts: every command with its limit in seconds. Uses the standard library only.

The commands are the same on a GPU and in a rehearsal, which uses smaller numbers (``Shape``) and fewer configurations.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu.packs import packs
from bench.gpu.steps import Part, Step

ROOT = Path(__file__).parents[2]
DEFAULT = ("first", "llama", "serve", "tests", "chatglm2")
SECONDS, REHEARSAL_SECONDS = 530, 1500
"""Total time limits; a rehearsal has a long one, since it may run on a slow or shared machine."""
REHEARSAL_FACTOR = 4
"""Factor by which the limit of a step is multiplied in a rehearsal."""
STAGES = ("stage0", "stage1", "stage2", "stage3", "stage2_offload", "stage3_offload")
SMALL_CARD = 40 << 30
"""Bytes; a GPU with less memory trains Llama-3.1-8B with recomputation."""
SHARDED_LIMIT = 4 << 30
"""Bytes that torch may use of the GPU in a run that keeps its weights in main memory: 4-bit Llama-3.1-8B alone has 5.3 GiB."""
NEEDS_CARD = "needs a GPU"


@dataclass(frozen=True)
class Shape:
    """The numbers of a part's run."""

    length: int
    """data.max_length; every record fills it."""
    micro: int
    accumulate: int
    steps: int


@dataclass(frozen=True)
class Machine:
    """What the commands depend on."""

    scratch: Path
    """Folder of runs, logs and models."""
    card: int | None
    """Bytes of the smallest GPU's memory; None without a GPU."""
    rehearse: bool = False
    packages: frozenset[str] = frozenset()
    """Which of liger_kernel, unsloth, xdist and pytest_timeout can be imported."""
    unsloth_path: str = ""
    """PYTHONPATH of unsloth's steps; empty if they use the same one as the others."""
    gpu_tests: tuple[str, ...] = ()
    """Files with tests marked gpu."""
    python: str = sys.executable

    @property
    def records(self) -> Path:
        """The file of long records."""
        return self.scratch / "records.json"

    def model(self, name: str) -> Path:
        """The folder of random weights of a model."""
        return self.scratch / "models" / name

    def shape(self, card: Shape) -> Shape:
        """``card`` on a GPU, small numbers in a rehearsal."""
        return Shape(64, 2, card.accumulate, 5) if self.rehearse else card

    def module(self, name: str, *arguments: str) -> tuple[str, ...]:
        """The command ``python -m name`` with arguments."""
        return (self.python, "-m", name, *arguments)


def gpu_tests() -> tuple[str, ...]:
    """Files below tests/ with a test marked gpu. Others are not collected: a bare machine may lack what they import."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return tuple(str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8"))


def train(machine: Machine, name: str, limit: int, overrides: str, **more: object) -> Step:
    """A run of train.py in the scratch folder."""
    folder = machine.scratch / name
    arguments = [f"hydra.run.dir={folder}", "train.grace=0", "train.save_minutes=null", *overrides.split()]
    return Step(name, limit, (machine.python, "train.py", *arguments), replaces=folder, **more)  # type: ignore[arg-type]


def overrides(command: tuple[str, ...]) -> list[str]:
    """The overrides in a command of train.py (except a resumed run) or of bench.gpu.trainer."""
    if "train.py" in command and "-m" not in command and not any(word.startswith("resume=") for word in command):
        return [word for word in command[2:] if not word.startswith("hydra.")]
    if "bench.gpu.trainer" in command:
        return [word for word in command[3:] if "=" in word and not word.startswith("-")]
    return []


def long_run(machine: Machine, model: str, shape: Shape, recomputes: bool) -> str:
    """Overrides of a timed run: every record fills data.max_length, every step is logged."""
    real = machine.shape(shape)
    return (
        f"model=auto model.path={machine.model(model)} data.train={machine.records} data.eval=null data.max_length={real.length} "
        f"lora.dropout=0 train.micro_batch_size={real.micro} train.gradient_accumulation_steps={real.accumulate} "
        f"train.log_every=1 train.max_steps={real.steps} train.gradient_checkpointing={str(recomputes).lower()} train.loss_spike=null"
    )


def first(machine: Machine) -> Part:
    """Versions and probes, weights for the other parts, and a first run."""
    tiny = ("--tiny",) if machine.rehearse else ()
    count, characters = ("32", "300") if machine.rehearse else ("128", "4000")
    versions = (
        "nvidia-smi; nvcc --version | tail -2; free -g; df -h / /tmp /dev/shm; nproc; "
        f"{machine.python} --version; {machine.python} -m pip list 2>/dev/null; true"
    )
    written = ("bench.gpu.records", str(machine.records), "--count", count, "--characters", characters)
    steps, limit, answer = (5, 2, 8) if machine.rehearse else (60, 12, 48)
    alone = ("matmul", "context") if machine.rehearse else ("alone",)
    earlier = ("records", "environment", "random-chatglm2", "random-llama3", "smoke", "probes")
    return Part(
        "first",
        (
            Step("records", 30, machine.module(*written)),
            Step("environment", 30, ("bash", "-c", versions)),
            *(
                Step(f"random-{name}", 110, machine.module("bench.gpu.weights", name, str(machine.model(name)), *tiny))
                for name in ("chatglm2", "llama3")
            ),
            train(machine, "smoke", 90, f"train.max_steps={steps} data.eval_limit={limit} data.eval_max_new_tokens={answer} quant=nf4 zero=stage2"),
            Step("probes", 110, machine.module("bench.gpu.probes", str(machine.scratch / "probes.jsonl"), "shared")),
            # the remaining probes need the machine for themselves
            Step("probes-alone", 75, machine.module("bench.gpu.probes", str(machine.scratch / "probes.jsonl"), *alone), after=earlier),
        ),
        at_once=2 if machine.rehearse else 6,
    )  # fmt: skip


def tiny_runs(rehearse: bool) -> dict[str, str]:
    """Runs of the embedded model: every ZeRO stage with NF4, two without, other precisions and kernels."""
    stages = {
        "nf4": ("stage2", "stage3") if rehearse else STAGES,
        "none": ("stage2",) if rehearse else ("stage2", "stage3"),
    }
    runs = {f"tiny-{quant}-{zero}": f"quant={quant} zero={zero}" for quant in stages for zero in stages[quant]}
    if rehearse:
        return runs
    return runs | {
        "tiny-int8-stage2": "quant=int8",
        "tiny-nf4-fp16": "train.precision=fp16",
        "tiny-nf4-fp32": "train.precision=fp32",
        "tiny-full": "lora=none quant=none",
        "tiny-liger": "kernels=liger",
        "tiny-compile": "train.compile=true train.max_steps=36",
    }


def tests(machine: Machine) -> Part:
    """Functional checks without timing, run concurrently."""
    pytest = [
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "bench.gpu.failures",
        "-o",
        "addopts=-q",
        "--continue-on-collection-errors",
    ]
    if "xdist" in machine.packages and not machine.rehearse:
        pytest += ["-n", "5", "--dist", "load"]
    if "pytest_timeout" in machine.packages:
        pytest += ["--timeout=120"]
    none = None if machine.gpu_tests else "no test is marked gpu"
    short = "data.eval=null train.log_every=1 train.max_steps=12"
    runs = [
        train(machine, name, 150 if name == "tiny-compile" else 90, f"{short} {more}")
        for name, more in tiny_runs(machine.rehearse).items()
    ]
    resumed = [
        Step(
            f"resume-{quant}",
            60,
            (machine.python, "train.py", f"resume={machine.scratch / f'tiny-{quant}-stage2'}", "train.max_steps=16"),
            after=(f"tiny-{quant}-stage2",),
        )
        for quant in ("nf4", "none")
    ]
    folder = machine.scratch / "sweep"
    sweep = (machine.python, "train.py", "-m", "lora.r=4,8", *short.split(), f"hydra.sweep.dir={folder}")
    return Part(
        "tests",
        (
            Step("pytest", 200, machine.module(*pytest, *machine.gpu_tests), skip=none),
            *runs,
            *resumed,
            Step("sweep", 90, sweep, replaces=folder),
        ),
        at_once=2 if machine.rehearse else 7,
    )


def chatglm2(machine: Machine) -> Part:
    """The 6B shape, compared with the plan."""
    common = long_run(machine, "chatglm2", Shape(512, 4, 1, 8), recomputes=False) + " quant=nf4"
    names = ("chatglm2-stage2", "chatglm2-stage3")
    folders = [str(machine.scratch / name) for name in names]
    return Part(
        "chatglm2",
        (
            train(machine, names[0], 75, f"{common} zero=stage2"),
            train(machine, names[1], 80, f"{common} zero=stage3"),
            Step("chatglm2-table", 15, (machine.python, "bench/memory.py", *folders)),
        ),
    )


def llama_run(machine: Machine) -> str:
    """Overrides shared by all runs of the 8B shape."""
    small = machine.card is not None and machine.card < SMALL_CARD
    return long_run(machine, "llama3", Shape(2048, 2, 2, 14), recomputes=small) + " zero=stage2"


def trainer(machine: Machine, name: str, limit: int, kind: str, more: str, **rest: object) -> Step:
    """The same run without hydraft."""
    arguments = ("--kind", kind, str(machine.scratch / f"{name}.json"), *llama_run(machine).split(), *more.split())
    return Step(name, limit, machine.module("bench.gpu.trainer", *arguments), **rest)  # type: ignore[arg-type]


def llama(machine: Machine) -> Part:
    """The 8B shape, with hydraft, with transformers' Trainer, and with Liger."""
    liger = _skip_reason(machine, "liger_kernel")
    common = llama_run(machine)
    return Part(
        "llama",
        (
            train(machine, "llama-qlora", 90, f"{common} quant=nf4"),
            trainer(machine, "trainer-qlora", 90, "plain", "quant=nf4"),
            train(machine, "llama-lora", 90, f"{common} quant=none"),
            train(machine, "llama-qlora-liger", 90, f"{common} quant=nf4 kernels=liger", skip=liger),
            trainer(machine, "trainer-qlora-liger", 90, "liger", "quant=nf4", skip=liger, reserve=110),
            trainer(machine, "trainer-lora", 75, "plain", "quant=none", reserve=110),
        ),
        at_once=2 if machine.rehearse else 1,
    )


def serve(machine: Machine) -> Part:
    """Serves the adapter of an earlier part."""
    runs = [str(machine.scratch / name) for name in ("llama-qlora", "smoke")]
    tokens = "8" if machine.rehearse else "48"
    arguments = ("bench.gpu.serve", str(machine.scratch / "serve.json"), *runs, "--tokens", tokens)
    return Part("serve", (Step("serve", 90, machine.module(*arguments)),))


def unsloth(machine: Machine) -> Part:
    """Unsloth's kernels in hydraft, and Unsloth without hydraft."""
    skip = _skip_reason(machine, "unsloth")
    path = {"PYTHONPATH": machine.unsloth_path} if machine.unsloth_path else {}
    return Part(
        "unsloth",
        (
            *(step for step in first(machine).steps if step.name in ("records", "random-llama3")),
            Step("unsloth-import", 60, (machine.python, "-c", "import unsloth; print('imported')"), skip=skip, environment=path),
            train(machine, "llama-qlora-unsloth", 150, f"{llama_run(machine)} quant=nf4 kernels=unsloth", skip=skip, environment=path),
            trainer(machine, "unsloth-qlora", 150, "unsloth", "quant=nf4", skip=skip, environment=path),
        ),
    )  # fmt: skip


def sharded(machine: Machine) -> Part:
    """The 8B shape under ZeRO-3: with its weights in main memory, on less of the GPU than they have in 4 bits, and on all of it."""
    common = long_run(machine, "llama3", Shape(512, 1, 1, 6), recomputes=True) + " quant=nf4"
    share = (
        f"per_process_memory_fraction:{SHARDED_LIMIT / machine.card:.4f}"
        if machine.card
        else "expandable_segments:True"
    )
    return Part(
        "sharded",
        (
            *(step for step in first(machine).steps if step.name in ("records", "random-llama3")),
            train(machine, "sharded-offload", 120, f"{common} zero=stage3_offload", environment={"PYTORCH_CUDA_ALLOC_CONF": share}),
            train(machine, "sharded-stage3", 90, f"{common} zero=stage3"),
            Step("sharded-table", 15, (machine.python, "bench/memory.py", *(str(machine.scratch / f"sharded-{name}") for name in ("offload", "stage3")))),
        ),
    )  # fmt: skip


def benches(machine: Machine) -> Part:
    """Commands in bench/ that are worth running on a GPU; each writes its own file in bench/results/."""
    rounds = "1" if machine.rehearse else "3"
    vocabularies = "2000" if machine.rehearse else "128000"
    memory = "runs are measured on a card only" if machine.card is None else None
    steps = ("8", "1") if machine.rehearse else ("25", "2")
    return Part(
        "benches",
        (
            Step("bench-optimizer", 60, (machine.python, "bench/optimizer.py", "--rounds", rounds)),
            Step("bench-loss", 120, (machine.python, "bench/loss.py", "--rounds", rounds, "--vocabularies", vocabularies)),
            Step("bench-memory", 200, (machine.python, "bench/memory.py"), skip=memory),
            Step("bench-throughput", 200, (machine.python, "bench/throughput.py", "--steps", steps[0], "--rounds", steps[1])),
        ),
    )  # fmt: skip


def _skip_reason(machine: Machine, package: str) -> str | None:
    """Why a step that runs ``package``'s kernels cannot run."""
    if machine.card is None:
        return NEEDS_CARD
    return None if package in machine.packages else f"{package} is not installed"


ALL = {part.__name__: part for part in (first, llama, serve, tests, chatglm2, unsloth, sharded, packs, benches)}


def part(name: str, machine: Machine) -> Part:
    """The part of this name; in a rehearsal, with longer limits."""
    made = ALL[name](machine)
    if not machine.rehearse:
        return made
    return replace(made, steps=tuple(replace(step, limit=REHEARSAL_FACTOR * step.limit) for step in made.steps))
