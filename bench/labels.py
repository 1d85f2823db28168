"""Compare answers that are chosen among labels (data.labels) with generated ones: the same verdicts, and the time of both.

    python train.py experiment=zh_sentiment hydra.run.dir=outputs/sentiment
    python bench/labels.py outputs/sentiment [--labels 正面,负面] [--rounds 5]

Loads the adapter or model of a run and scores its held-out records whose answer is one of the labels, all records at once
as in evaluation. The two ways alternate (A B A B …) in one process, the first round is not timed, and medians are
compared: on a CPU the CPU time of one thread, since other processes may use the machine, on a GPU wall time. A model that
is not trained often generates until data.eval_max_new_tokens, so both are also timed without the adapter. The
log-likelihoods are compared with those from all logits of each label by itself.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config, load_config
from hydraft.data import mixture
from hydraft.data.labels import IGNORE
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.evaluator import Evaluator
from hydraft.evaluation.label_scores import Choices, LabelScorer
from hydraft.infer.load import LoadedModel, load
from hydraft.infer.resolve import find
from hydraft.plan.plan import generation_memory
from hydraft.training.objectives.registry import make_objective


@dataclass(frozen=True)
class Compared:
    """What both ways found on the same records."""

    choices: Choices
    generated: list[str]
    equal: float
    """The share of records with the same answer."""
    difference: float
    """The largest difference of a log-likelihood from the formula."""


def evaluator(config: Config, loaded: LoadedModel, labels: list[str]) -> Evaluator:
    """An evaluator for the records whose answer is one of ``labels``, as in the run."""
    source = loaded.select()
    data = replace(config.data, labels=labels, thinking=source.data.thinking)
    sizes = BatchSizes.of(data, config.train.micro_batch_size, generation_memory(replace(config, data=data)))
    objective = make_objective(config.objective)
    records = [
        record
        for record in mixture.held_out(config.data, config.seed, objective.read)
        if record.conversations[0].plain is None and record.conversations[0].reference.strip() in labels
    ]
    return Evaluator(records, source.tokenizer, data, loaded.device, sizes, objective)


@torch.no_grad()
def by_the_formula(model: Any, scorer: LabelScorer) -> list[float]:
    """The log-likelihood of each row from its logits alone: the sum of log-softmax at the tokens of the label."""
    found = []
    for row in scorer.rows:
        ids = torch.tensor([row["input_ids"]], device=scorer.device)
        log_p = model(input_ids=ids).logits[0].float().log_softmax(-1)  # (T, V)
        label = [(at - 1, token) for at, token in enumerate(row["labels"]) if token != IGNORE]
        found.append(sum(float(log_p[at, token]) for at, token in label))
    return found


def compared(model: Any, chooses: Evaluator, generates: Evaluator) -> Compared:
    """Score the records in both ways."""
    scorer = chooses.labels
    likelihoods = [value for row in scorer.log_likelihoods(model, lambda _: None) for value in row]
    choices, generated = scorer.choices(model, lambda _: None), generates.answers(model, lambda _: None)
    same = [chosen == text.strip() for chosen, text in zip(choices.answers, generated, strict=True)]
    exact = by_the_formula(model, scorer)
    apart = max(abs(one - other) for one, other in zip(likelihoods, exact, strict=True))
    return Compared(choices, generated, sum(same) / len(same), apart)


def timed(model: Any, chooses: Evaluator, generates: Evaluator, rounds: int) -> tuple[float, float]:
    """Median seconds of choosing all answers, and of generating them."""
    clock = time.perf_counter if chooses.device.type == "cuda" else time.process_time
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for which, action in enumerate((chooses.labels.choices, generates.answers)):
            started = clock()
            action(model, lambda _: None)
            if number:
                taken[which].append(clock() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", default="正面,负面")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    options = InferConfig(run=str(arguments.run))
    loaded = load(find(options), options)
    config = load_config(arguments.run / "config.yaml")
    chooses = evaluator(config, loaded, arguments.labels.split(","))
    if not chooses.chosen:
        parser.error(f"{arguments.run}: no held-out record has one of {arguments.labels} as its answer")
    generates = Evaluator(
        chooses.records,
        chooses.tokenizer,
        replace(chooses.data, labels=[]),
        chooses.device,
        chooses.sizes,
        chooses.objective,
    )
    found = compared(loaded.model, chooses, generates)
    times = {"trained": timed(loaded.model, chooses, generates, arguments.rounds)}
    if isinstance(loaded.model, peft.PeftModel):
        with loaded.model.disable_adapter():
            times["before training"] = timed(loaded.model, chooses, generates, arguments.rounds)
    right = [record.conversations[0].reference.strip() for record in chooses.records]
    exact = sum(text.strip() == answer for text, answer in zip(found.generated, right, strict=True)) / len(right)
    print(f"{len(right)} records, {len(chooses.labels.labels)} labels")
    print(
        f"accuracy: chosen {found.choices.scores['accuracy']:.1%}, generated {exact:.1%}; equal answers {found.equal:.1%}"
    )
    print(f"largest difference of a log-likelihood from the formula: {found.difference:.1e}")
    for when, (choosing, generating) in times.items():
        print(f"seconds, {when}: chosen {choosing:.2f}, generated {generating:.2f}; ratio {generating / choosing:.1f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
