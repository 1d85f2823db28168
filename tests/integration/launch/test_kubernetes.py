"""The TrainJob of docs/distributed.md: its command is run by torchrun, which has only the variables that Kubeflow's runtime sets."""

import json
import subprocess
from pathlib import Path

import yaml

from conftest import SCALE
from external import BIN, environment, free_port
from pages import blocks
from warm_python import WarmPython

PAGES = ("docs/distributed.md", "docs/zh/distributed.md")


def test_two_pods_train_one_run(python: WarmPython, records: Path, tmp_path: Path) -> None:
    (english,), (chinese,) = (blocks(page, "yaml") for page in PAGES)
    assert english == chinese
    job = yaml.safe_load(english.text)
    trainer = job["spec"]["trainer"]
    nodes, ranks = trainer["numNodes"], trainer["numProcPerNode"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == ranks
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert "persistentVolumeClaim" in mounts["/work"] and "emptyDir" in mounts["/dev/shm"]

    (given,) = [one for one in trainer["args"] if one.startswith("hydra.run.dir=/work/")]
    folder = tmp_path / given.partition("=/work/")[2]
    smaller = {
        "model=chatglm2": "model=tiny",
        f"cluster={nodes}x{ranks}": f"cluster={nodes}x1",
        given: f"hydra.run.dir={folder}",
    }
    assert smaller.keys() <= set(trainer["args"])
    arguments = [smaller.get(argument, argument) for argument in trainer["args"]]
    arguments += [f"data.train={records}", "data.eval=null", "train.max_steps=2", "train.log_every=1"]
    launcher, *rest = trainer["command"]
    shared = {"PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}  # fmt: skip
    pods = [
        subprocess.Popen(
            [str(python.path), str(BIN / launcher), *rest, *arguments], cwd=tmp_path, text=True,
            env=environment(**shared, PET_NODE_RANK=str(rank)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(nodes)
    ]  # fmt: skip
    said = [pod.communicate(timeout=240 * SCALE)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert "2 ranks, started by torchrun: cluster is 2x1 in this run" in said[0]
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2 and (folder / "rank-1.log").is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
