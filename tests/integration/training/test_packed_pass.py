"""A pass over the micro-batches of several members, in fp64, against each member's own model."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from conftest import ROOT, config_of
from hydraft.data.batch import PaddingFree
from hydraft.data.load import load
from hydraft.data.tokenize import encode
from hydraft.models.load import has_chunked_loss, load_base, load_tokenizer, trainable
from hydraft.training.pack import choice
from hydraft.training.pack.base import Pack
from hydraft.training.pack.choice import Case, Way
from hydraft.training.pack.passes import Answer, Request

MEMBERS = (
    "lora.r=4",
    "lora=rslora lora.r=7 lora.target_modules=[q_proj,v_proj] lora.rank_pattern={v_proj:3} lora.layers=[1,3]",
    "lora=dora lora.r=2",
    "lora.r=3 lora.dropout=0.2",
    "lora=dora lora.r=3 lora.dropout=0.1",
    "lora.r=1 lora.target_modules=[all-linear,lm_head]",
)
SIZES = (4, 1, 3, 2, 1, 5)
"""Records of each member's micro-batch."""

POOL = (
    "lora.r=4",
    "lora.r=4 lora.alpha=3",
    "lora.r=4 lora.target_modules=[q_proj,v_proj]",
    "lora.r=4 lora.dropout=0.2",
    "lora.r=4 lora.dropout=0.1 lora.alpha=5",
    "lora=rslora lora.r=8 lora.target_modules=[all-linear]",
    "lora=dora lora.r=4",
)
"""Of which random passes have members, some of them twice."""


class _Members:
    """Members over one base, with adapters that are not zero."""

    def __init__(
        self,
        common: str,
        kinds: Sequence[str] = MEMBERS,
        sizes: Sequence[int] = SIZES,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.configs = configs = [config_of(*common.split(), *kind.split()) for kind in kinds]
        first = configs[0]
        base = load_base(first.model, first.quant, first.train.precision).to(dtype)
        self.pack = Pack()
        self.pack.adopt(base, first.train.recomputes)
        self.models: list[Any] = [self.pack.model(config) for config in configs]
        chance = torch.Generator().manual_seed(1)
        for model in self.models:
            model.train()
            if first.train.recomputes:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for name, parameter in trainable(model).items():
                assert parameter.dtype == dtype
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.05, generator=chance)
        tokenizer = load_tokenizer(first.model)
        examples, _ = encode(load(str(ROOT / "data/zh_tasks.train.json"), "records")[:40], tokenizer, first.data)
        self.batches, start = [], 0
        for size in sizes[: len(kinds)]:
            batch = PaddingFree()([[example] for example in examples[start : start + size]])
            batch["num_items_in_batch"] = torch.tensor(7 + size)
            self.batches.append(batch)
            start += size

    def requests(self) -> list[Request]:
        """The request of each member; each draws from its own random numbers."""
        found = []
        for number, (model, batch) in enumerate(zip(self.models, self.batches, strict=True)):
            named = model.get_base_model().named_modules()
            layers = {name: layer for name, layer in named if isinstance(layer, LoraLayer)}
            state = torch.Generator().manual_seed(number).get_state()
            chunked = has_chunked_loss(self.configs[number], model)
            found.append(Request(layers, batch, list(trainable(model).values()), state, chunked))
        return found

    def alone(self, number: int) -> Answer:
        """What a member's own model computes."""
        model, batch = self.models[number], self.batches[number]
        torch.set_rng_state(torch.Generator().manual_seed(number).get_state())
        loss = model(**batch)["loss"]
        gradients = torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=True)
        return Answer(loss.detach(), list(gradients), torch.get_rng_state())


def _apart(found: Answer, expected: Answer) -> float:
    differences = [float((found.loss - expected.loss).abs())]
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            differences.append(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9)))
    return max(differences)


@pytest.mark.parametrize("common", ["", "kernels.loss=chunked", "train.gradient_checkpointing=true"])
def test_every_member_has_the_loss_and_gradients_of_its_own_model(common: str) -> None:
    chunked = "chunked" in common  # which needs a head without an adapter, and sums in fp32
    members = _Members(f"quant=none {common}", MEMBERS[:-1] if chunked else MEMBERS)
    assert members.pack.apart is None
    for number, answer in enumerate(members.pack.answers(members.requests())):
        expected = members.alone(number)
        assert _apart(answer, expected) < (1e-6 if chunked else 1e-12), MEMBERS[number]
        if "dropout" in MEMBERS[number]:
            assert answer.random is not None and expected.random is not None
            assert torch.equal(answer.random, expected.random)  # its stream continues as it would alone


@pytest.mark.parametrize(
    ("seed", "ways", "common"),
    [
        (1, (Way.batched,), "train.gradient_checkpointing=true"),
        (2, (Way.each, Way.views, Way.batched), ""),
        (3, (Way.grouped,), "train.gradient_checkpointing=true"),
    ],
)
def test_members_of_a_random_pass_in_random_ways(
    seed: int, ways: tuple[Way, ...], common: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, used = random.Random(seed), set()

    def drawn(case: Case) -> Way:
        used.add(way := random.Random(f"{seed} {case}").choice(ways))  # the same when a layer is recomputed
        return way

    monkeypatch.setattr(choice, "choose", drawn)
    kinds, sizes = chance.choices(POOL, k=6), chance.choices((1, 2), k=6)
    exact = Way.grouped not in ways  # torch has no grouped products in fp64
    members = _Members(f"quant=none {common}", kinds, sizes, torch.float64 if exact else torch.float32)
    for number, answer in enumerate(members.pack.answers(members.requests())):
        assert _apart(answer, members.alone(number)) < (1e-12 if exact else 1e-4), kinds[number]
    assert used == {*ways}


def test_weights_that_are_not_finite_change_no_other_member() -> None:
    members = _Members("quant=none")
    expected = members.pack.answers(members.requests())
    for parameter in trainable(members.models[2]).values():
        parameter.data.fill_(float("nan"))
    found = members.pack.answers(members.requests())
    assert not torch.isfinite(found[2].loss)
    for number in {*range(len(MEMBERS))} - {2}:
        assert torch.equal(found[number].loss, expected[number].loss)
        for ours, theirs in zip(found[number].gradients, expected[number].gradients, strict=True):
            assert ours is None if theirs is None else torch.equal(ours, theirs)
