"""A sweep whose jobs are Slurm jobs that write to its ledger."""

import subprocess
from pathlib import Path

from conftest import ROOT, SCALE
from hydraft.sweep.results.ledger import Ledger, State
from slurm_cluster import Slurm
from warm_python import WarmPython


def test_each_job_of_a_sweep_is_a_slurm_job(python: WarmPython, records: Path, tmp_path: Path, slurm: Slurm) -> None:
    folder = tmp_path / "sweep"
    settings = ["lora.r=2,4", "train.max_steps=2", f"data.train={records}", "data.eval=null", "quant=none"]
    command = [
        str(python.path), str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=2", *settings,
        f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, timeout=300 * SCALE, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs = {job.name: job for job in Ledger(folder).jobs().values()}
    assert {name: job.state for name, job in jobs.items()} == {"r=2": State.done, "r=4": State.done}
    assert len({job.pid for job in jobs.values()}) == 2
    assert all((folder / name / "adapter" / "adapter_model.safetensors").exists() for name in jobs)
