"""What scoring the held-out records takes at once, and how many answers are generated together. No torch.

Nothing is kept for a backward pass here: one layer's values are there, and beside them either the logits of ``loss.ROWS`` trained
tokens, or the keys and values of every token of the answers' prompts and of the answers so far.

As many records are answered at once as take no more than a micro-batch's activations in training, between one and ``MOST``:
what training fits, scoring fits. How many that are depends on the config alone, and not on the number of ranks.

Shapes: N tokens of a batch, L of them trained, T tokens of the longest prompt.
"""

from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.models.loss import ROWS
from hydraft.plan.activations import activations
from hydraft.plan.memory_parts import Parts
from hydraft.plan.parameters import Layout, Trained

MOST = 32
"""Answers generated at once where there is room."""


@dataclass(frozen=True)
class Room:
    """What generating answers may take, and what it takes."""

    layout: Layout
    learns: Trained
    width: int
    """Bytes an element in the compute type."""
    new: int
    """The most tokens of an answer."""
    bytes: int
    """Of a micro-batch's activations in training."""

    def records(self, prompt: int) -> int:
        """How many are answered at once whose longest prompt has so many tokens."""
        return max(1, min(MOST, self.bytes // self.answer(prompt).total))

    def answer(self, prompt: int) -> Parts:
        """Bytes that one record with a prompt of so many tokens takes."""
        known, width = self.layout, self.width
        layer = 2 * known.key * width  # keys and values of a token
        last = known.vocabulary * (width + 4)  # the logits of the last token, and in fp32
        read = Parts(
            cache=prompt * known.layers * layer,
            activations=prompt * (passing(known, self.learns, width, prompt) + layer),  # what is cached is a copy
            logits=last,
        )
        # A layer's keys and values are copied to append the next token's, and repeated for every query head.
        copied = layer + (2 * known.query * width if known.key < known.query else 0)
        tokens = prompt + self.new
        written = Parts(cache=tokens * known.layers * layer, activations=tokens * copied, logits=last)
        return max(read, written, key=lambda parts: parts.total)

    def most(self, prompt: int) -> Parts:
        """The most that a batch takes, of prompts of any length up to ``prompt``."""
        one = self.answer(prompt)
        count = max(1.0, min(float(MOST), self.bytes / one.total))  # shorter ones may fill what a whole number leaves
        return Parts(**{name: round(count * value) for name, value in one.to_dict().items()})


def room(config: Config, layout: Layout, learns: Trained, width: int) -> Room:
    """The room for answers of a run whose compute type has ``width`` bytes."""
    tokens = config.train.micro_batch_size * config.objective.requirements.sequences * config.data.max_length
    held = activations(config, layout, learns, width, tokens, 0)
    most = max(held.at_loss, held.at_layer + held.working)
    return Room(layout, learns, width, config.data.eval_max_new_tokens, most)


def losses(config: Config, layout: Layout, learns: Trained, width: int) -> list[Parts]:
    """Bytes of a batch whose loss is taken: in a layer, and at the head."""
    longest = config.data.max_length
    tokens = config.train.micro_batch_size * config.objective.requirements.sequences * longest
    layer = tokens * passing(layout, learns, width, longest)
    states = tokens * layout.hidden * width
    # Logits in fp32 and their log-softmax, and the hidden states of trained tokens: all of them may be.
    head = min(tokens, ROWS) * layout.vocabulary * 8 + states
    return [Parts(activations=layer), Parts(activations=states, logits=head)]


def passing(layout: Layout, learns: Trained, width: int, length: int) -> int:
    """Bytes a token that one decoder layer has at once in a forward pass that keeps nothing, of records of ``length`` tokens."""
    hidden, query, key, inner = layout.hidden, layout.query, layout.key, layout.inner
    # What comes in and what the norm makes of it; queries, keys, values, what is attended, and a copy of that; and the mask, as
    # booleans and as what is added. With a mask, keys and values are repeated for every query head.
    repeated = 2 * query if key < query else 0
    attention = width * (2 * hidden + 3 * query + 2 * key + repeated) + length * (1 + width)
    # silu(gate), up, and their product; with an adapter the layer's output, the adapter's and their sum are there together.
    joined = "gate_up_proj" in layout.linears
    adapted = any(target.endswith(("up_proj", "gate_up_proj")) for target in learns.targets)
    block = width * (2 * hidden + (3 + adapted + (1 + 2 * adapted) * joined) * inner) + length
    return max(attention, block)
