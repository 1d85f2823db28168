"""Runs benchmarks on a model: prompts, requests and scores are those of ``lm_eval.evaluator``."""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api import task as lm_task
from lm_eval.utils import hash_string

from hydraft.evaluation.benchmarks.harness import Harness
from hydraft.evaluation.benchmarks.scores import Score
from hydraft.evaluation.benchmarks.tasks import Tasks

SEEDS = (0, 1234, 1234, 1234)
"""Of Python, numpy, torch and the choice of examples, as ``lm_eval.simple_evaluate`` sets them."""


def evaluate(tasks: Tasks, model: Harness) -> list[Score]:
    """The scores of the requested benchmarks. Every rank must call it; all get the same."""
    requested = tasks.requested
    with _seeded():
        for task in tasks.loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if requested.shots is not None and own != 0:
                task.set_config(key="num_fewshot", value=requested.shots)
            elif own is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEEDS[3])
        found = evaluator.evaluate(
            lm=model,
            task_dict=tasks.loaded,
            limit=requested.limit,
            bootstrap_iters=1000,
            apply_chat_template=requested.chat,
            fewshot_as_multiturn=requested.chat,
        )
    values = {**found["results"], **found.get("groups", {})}
    return [_score(name, values[name], found, tasks) for name in tasks.reported if name in values]


def _score(name: str, values: dict[str, object], found: dict[str, dict[str, object]], tasks: Tasks) -> Score:
    """The score of a task or group."""
    measured = {key: float(value) for key, value in values.items() if isinstance(value, (int, float)) and "," in key}
    metrics = {key: value for key, value in measured.items() if "_stderr," not in key}
    errors = {key.replace("_stderr,", ","): value for key, value in measured.items() if "_stderr," in key}
    members = [name] if name in tasks.loaded["tasks"] else _members(name, tasks)
    samples = [one for task in members for one in found["samples"].get(task, [])]  # type: ignore[attr-defined]
    digest = "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)
    counts = [found["n-samples"][task]["effective"] for task in members if task in found["n-samples"]]  # type: ignore[index]
    version = found["versions"].get(name)
    return Score(
        name,
        metrics,
        errors,
        int(sum(counts)),
        None if version is None else str(version),
        str(hash_string(digest)),
        len(members),
    )


def _members(name: str, tasks: Tasks) -> list[str]:
    group = tasks.loaded["groups"][name]
    return [task.task_name for task in group.get_all_tasks()]


@contextmanager
def _seeded() -> Iterator[None]:
    """Set the seeds of the harness, and restore afterwards what training draws from. No bar is drawn while prompts are made."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states, bar = (random.getstate(), np.random.get_state()), lm_task.tqdm
    lm_task.tqdm = functools.partial(bar, disable=True)
    try:
        with torch.random.fork_rng(devices):
            random.seed(SEEDS[0])
            np.random.seed(SEEDS[1])
            torch.manual_seed(SEEDS[2])
            yield
    finally:
        lm_task.tqdm = bar
        random.setstate(states[0])
        np.random.set_state(states[1])
