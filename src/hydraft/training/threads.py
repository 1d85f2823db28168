"""The threads of a rank: its share of the cores that its run may use."""

import os

import torch


def use_share() -> None:
    """Have torch use as many threads as this rank has cores.

    Call it again after ``TrainingArguments`` are created: accelerate then sets the number of all cores of the machine, for one rank.
    """
    cores = int(os.environ.get("HYDRAFT_CORES", 0)) or len(os.sched_getaffinity(0))  # a job of a sweep has fewer
    torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
