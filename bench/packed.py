"""Train each architecture's documents in one batch and alone, and print how much the results differ.

    python bench/packed.py                      # all architectures
    python bench/packed.py llama gemma2         # some of them, by model_type

For each architecture a small random model is made. Documents of different lengths, some longer than its sliding window, are
computed one by one with the model's own eager attention, and in the batch that a run would make of them: in one row if
hydraft admits the architecture, otherwise padded. The columns are the largest difference of a logit, over the largest
logit, and the norm of the difference of the gradients of all weights, over their norm; in fp32. The last column is that
difference of the logits if the documents are put in one row all the same. The command fails if a difference of a batch
that a run would make is above 1e-5.
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AttentionInterface

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.architectures import ARCHITECTURES, small_model  # noqa: E402
from hydraft.data.batch import Padded, PaddingFree  # noqa: E402
from hydraft.data.examples import Item  # noqa: E402
from hydraft.data.labels import IGNORE  # noqa: E402
from hydraft.errors import ConfigError  # noqa: E402
from hydraft.models import attention, row_documents  # noqa: E402
from hydraft.models.attention_features import Features  # noqa: E402

LENGTHS = (5, 1, 17, 9)
"""Tokens of the documents."""
TOLERANCE = 1e-5
EXTRA = ("labels", "shift_labels", "logits_to_keep")
"""What a collator adds for the loss; all logits are compared here."""


@dataclasses.dataclass(frozen=True)
class Result:
    """An architecture's batch compared with its documents alone."""

    model_type: str
    models: str
    features: tuple[str, ...]
    """What its attention has."""
    reason: str | None
    """Why its batches are padded; None if they are not."""
    logits: float
    gradients: float
    in_one_row: float | None
    """Of the logits, for a model whose batches are padded; None if that is refused or fails."""

    @property
    def equal(self) -> bool:
        """Whether no document sees another."""
        return max(self.logits, self.gradients) <= TOLERANCE


def documents() -> Item:
    """Random documents."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 90, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [IGNORE, *row[1:]]} for row in rows]


def compare(model_type: str) -> Result:
    """Compare one architecture."""
    model = small_model(model_type)
    reason = row_documents.reason(model)
    chosen = model.config._attn_implementation  # of a model whose batches are padded
    items = documents()
    padded = Padded(0)([items])
    weights = torch.randn(sum(LENGTHS), model.config.get_text_config().vocab_size)
    model.set_attn_implementation("eager")
    alone = [Padded(0)([[item]]) for item in items]
    expected, slopes = _results(model, alone, weights)
    in_one_row, seen = None, set()
    if reason is None:
        with _recorded() as seen:
            attention.use(model)
            found, found_slopes = _results(model, [PaddingFree()([items])], weights)
    else:
        model.set_attn_implementation(chosen)
        found, found_slopes = _results(model, [padded], weights)
        in_one_row = _in_one_row(model, items, weights, expected)
    return Result(
        model_type, ARCHITECTURES[model_type][0], tuple(sorted(seen)), reason, _largest(found, expected),
        float((found_slopes - slopes).norm() / slopes.norm()), in_one_row,
    )  # fmt: skip


def _results(model: Any, batches: list[dict[str, Any]], weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of all documents, (N, vocabulary), and the gradient of their sum with ``weights``."""
    model.zero_grad()
    found, first = [], 0
    for batch in batches:
        mask = batch.get("attention_mask")
        given = {name: value for name, value in batch.items() if name not in EXTRA}
        logits = model(**given, use_cache=False).logits
        logits = logits[0] if mask is None else logits[mask.bool()]  # (N, vocabulary), row by row
        (logits * weights[first : first + len(logits)]).sum().backward()
        first += len(logits)
        found.append(logits.detach())
    slopes = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(found), torch.cat(slopes)


def _largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _in_one_row(model: Any, items: Item, weights: torch.Tensor, expected: torch.Tensor) -> float | None:
    try:
        attention.use(model)
        found, _ = _results(model, [PaddingFree()([items])], weights)
    except (ConfigError, RuntimeError, ValueError, TypeError):
        return None
    return _largest(found, expected)


class _recorded:
    """Collects what the attention of a model has, while it is computed."""

    def __enter__(self) -> set[str]:
        self.seen: set[str] = set()
        real = attention.documents_attention

        def recording(
            module: Any, query: Any, key: Any, value: Any, attention_mask: torch.Tensor | None = None, **options: Any
        ) -> Any:
            features = Features.of(options)
            marked = attention_mask is not None and attention_mask.shape[-2] == 0
            window = attention_mask.shape[-1] if attention_mask is not None and marked else features.window
            present = {"window": window, "softcap": features.softcap, "sinks": features.sinks}
            self.seen |= {name for name, given in present.items() if given is not None}
            return real(module, query, key, value, attention_mask, **options)

        self.real, self.register = real, attention.register
        attention.register = lambda: (self.register(), AttentionInterface.register(attention.NAME, recording))[0]
        return self.seen

    def __exit__(self, *_: object) -> None:
        attention.register = self.register
        attention.register()


def row(result: Result) -> str:
    """A line of the table, in Markdown."""
    batches = "padding-free" if result.reason is None else "padded"
    one_row = "" if result.reason is None else "refused" if result.in_one_row is None else f"{result.in_one_row:.0e}"
    cells = [
        f"`{result.model_type}`", result.models, ", ".join(result.features), batches, f"{result.logits:.0e}",
        f"{result.gradients:.0e}", "yes" if result.equal else "NO", one_row,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table; 1 if a document sees another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="model_type", help="by default all")
    parser.add_argument("--reasons", action="store_true", help="print why batches are padded, after the table")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.architectures) - set(ARCHITECTURES)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ARCHITECTURES)}")
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"| `model_type` | models | attention | batches | logits | gradients | within {TOLERANCE:.0e} | in one row |")
    print("|---" * 8 + "|")
    results = []
    for model_type in arguments.architectures or ARCHITECTURES:
        results.append(compare(model_type))
        print(row(results[-1]), flush=True)
    if arguments.reasons:
        print("\n" + "\n".join(f"{result.model_type}: {result.reason}" for result in results if result.reason))
    return 0 if all(result.equal for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
