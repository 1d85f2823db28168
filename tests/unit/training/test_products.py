"""The products of LoRA's updates in every way, against peft's own layers and their gradients by autograd, member by member."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear

from hydraft.system import files
from hydraft.training.pack import choice, products
from hydraft.training.pack.adapter import Adapter
from hydraft.training.pack.choice import Case, Way
from hydraft.training.pack.parts import Part, Parts
from hydraft.training.pack.update import Update

INPUTS, OUTPUTS = 16, 24
RAGGED, EQUAL, EMPTY = (5, 1, 9, 9, 4), (6, 6, 6), (3, 0, 0, 5, 3)
CPU = torch.device("cpu")


class _Layer:
    """Members' adapters over a layer whose own weight is zero, and the rows of a pass."""

    def __init__(self, sizes: tuple[int, ...], rank: int = 4, mixed: bool = False) -> None:
        torch.manual_seed(sum(sizes))
        self.sizes = list(sizes)
        self.adapters = []
        for number in range(len(sizes)):
            if mixed and number == 2:
                continue  # this member adapts other layers
            config = LoraConfig(r=rank + mixed * (number == 4), lora_alpha=3 + number, init_lora_weights=False)
            plain = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
            torch.nn.init.zeros_(plain.weight)
            layer = Linear(plain, "default", config, r=config.r, lora_alpha=config.lora_alpha, init_lora_weights=False)
            self.adapters.append(Adapter.of(number, layer))
        self.x, self.base, self.above = (torch.randn(1, sum(sizes), n) for n in (INPUTS, OUTPUTS, OUTPUTS))

    def to(self, where: torch.dtype | str) -> "_Layer":
        for adapter in self.adapters:
            adapter.layer.to(where)
        self.x, self.base, self.above = self.x.to(where), self.base.to(where), self.above.to(where)
        return self

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        return [adapter.down for adapter in self.adapters] + [adapter.up for adapter in self.adapters]

    def parts(self) -> list[Part]:
        return Parts().of(self.adapters, self.sizes, self.x)

    def together(self) -> list[torch.Tensor]:
        """The result, and the gradients of the rows and the weights."""
        x, drawn = self.x.clone().requires_grad_(), [(adapter, None) for adapter in self.adapters]
        result = Update.apply(self.base.clone(), x, self.parts(), drawn, *self.weights)  # type: ignore[no-untyped-call]
        return [result.detach(), *torch.autograd.grad(result, [x, *self.weights], self.above)]

    def by_peft(self) -> list[torch.Tensor]:
        """The same by peft's layers."""
        x = self.x.clone().requires_grad_()
        pieces, rows = list(self.base.split(self.sizes, dim=1)), x.split(self.sizes, dim=1)
        for adapter in self.adapters:
            pieces[adapter.number] = pieces[adapter.number] + adapter.layer(rows[adapter.number])
        result = torch.cat(pieces, dim=1)
        return [result.detach(), *torch.autograd.grad(result, [x, *self.weights], self.above)]


def _force(monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    monkeypatch.setattr(choice, "choose", lambda case: way)


def _furthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Relative to the largest number of each tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-9)) for one, other in pairs)


@pytest.mark.parametrize("sizes", [RAGGED, EQUAL, EMPTY])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("way", [Way.each, Way.views, Way.batched])
def test_every_way_is_that_of_peft(
    way: Way, mixed: bool, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _force(monkeypatch, way)
    layer = _Layer(sizes, mixed=mixed)
    assert _furthest(layer.together(), layer.by_peft()) < 1e-5
    layer.to(torch.float64)
    assert _furthest(layer.together(), layer.by_peft()) < 1e-12


@pytest.mark.parametrize("sizes", [RAGGED, EQUAL, EMPTY])
def test_grouped_products_are_those_of_peft(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, Way.grouped)
    assert _furthest(_Layer(sizes).together(), _Layer(sizes).by_peft()) < 1e-5


def _rounds_as_little_as_peft(layer: _Layer) -> None:
    """Against fp32 with the same weights and rows."""
    found, theirs = [[one.float() for one in way()] for way in (layer.together, layer.by_peft)]
    exact = layer.to(torch.float32).by_peft()
    assert 0 < _furthest(found, exact) < 2 * max(_furthest(theirs, exact), torch.finfo(torch.bfloat16).eps)


def _stays_with_its_member(layer: _Layer, what: str, bad: int = 1) -> None:
    """Numbers that are not finite."""
    expected, count = layer.together(), len(layer.sizes)
    start = sum(layer.sizes[:bad])
    own = slice(start, start + layer.sizes[bad])
    with torch.no_grad():
        if what == "weights":
            layer.adapters[bad].down.fill_(float("inf"))
            layer.adapters[bad].up.fill_(float("nan"))
        else:
            (layer.x if what == "rows" else layer.above)[0, own] = float("nan")
    found = layer.together()
    others = [row for row in range(sum(layer.sizes)) if not own.start <= row < own.stop]
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(one[0, others], other[0, others])
    for number in range(count):
        for place in (2 + number, 2 + count + number):
            assert number == bad or torch.equal(found[place], expected[place])
    assert found[2 + bad].isnan().any() and found[2 + count + bad].isnan().any()


@pytest.mark.parametrize("way", [*Way])
def test_in_bf16_every_way_rounds_as_little_as_peft(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, way)
    _rounds_as_little_as_peft(_Layer(RAGGED, rank=8).to(torch.bfloat16))


@pytest.mark.parametrize("way", [*Way])
@pytest.mark.parametrize("sizes", [RAGGED, EQUAL])
@pytest.mark.parametrize("what", ["weights", "rows", "gradient"])
def test_what_is_not_finite_stays_with_its_member(
    way: Way, sizes: tuple[int, ...], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _force(monkeypatch, way)
    _stays_with_its_member(_Layer(sizes), what)


@pytest.mark.gpu
@pytest.mark.parametrize("way", [*Way])
def test_every_way_on_a_gpu(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, way)
    for sizes in (RAGGED, EQUAL, EMPTY):
        _rounds_as_little_as_peft(_Layer(sizes, rank=8).to(torch.bfloat16).to("cuda"))
    for what in ("weights", "rows", "gradient"):
        _stays_with_its_member(_Layer(RAGGED, rank=8).to(torch.bfloat16).to("cuda"), what)


@pytest.mark.gpu
def test_the_fastest_way_on_a_gpu_is_one_of_those_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda name: tmp_path / name)
    case = Case(torch.device("cuda", 0), torch.bfloat16, 64, 128, 8, (30, 50, 70))
    assert choice.choose(case) in choice.seconds(case.rounded())
    assert len([*tmp_path.rglob("*.json")]) == 1


def test_neighbours_of_equal_rank_and_length_are_one_product_on_a_cpu() -> None:
    kinds = [(type(part.products), part.rows) for part in _Layer(RAGGED).parts()]
    assert kinds == [
        (products.Single, slice(0, 5)),
        (products.Single, slice(5, 6)),
        (products.Batched, slice(6, 24)),
        (products.Single, slice(24, 28)),
    ]
    assert [len(part.products.sizes) for part in _Layer(EQUAL).parts()] == [3]


def test_a_way_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda name: tmp_path / name)
    case = Case(CPU, torch.float32, INPUTS, OUTPUTS, 4, RAGGED).rounded()
    assert {*choice.seconds(case)} == {Way.each, Way.batched, Way.grouped}
    measured = []

    def seconds(case: Case) -> dict[Way, float]:
        measured.append(case)
        return {Way.each: 2.0, Way.batched: 1.0, Way.grouped: 3.0}

    monkeypatch.setattr(choice, "seconds", seconds)
    for _ in range(2):
        choice.fastest_of.cache_clear()  # as in another process
        assert choice.fastest_of(case) is Way.batched
    assert measured == [case]


def test_cases_of_about_the_same_size_are_one() -> None:
    def rounded(*sizes: int) -> Case:
        return Case(CPU, torch.float32, INPUTS, OUTPUTS, 4, sizes).rounded()

    assert rounded(60, 60) == rounded(70, 70) == rounded(64, 64)
    assert rounded(20, 100) == rounded(30, 110) != rounded(60, 60)
    assert sum(rounded(9000, 9000).sizes) == choice.LARGEST
    assert min(rounded(1, 1, 1, 9000).sizes) == 1


@pytest.mark.parametrize(
    ("dtype", "rank", "expected"),
    [
        (torch.float32, 4, True),
        (torch.float32, 2, False),
        (torch.bfloat16, 8, True),
        (torch.bfloat16, 4, False),
        (torch.float64, 4, False),
    ],
)
def test_grouped_products_where_torch_computes_them(dtype: torch.dtype, rank: int, expected: bool) -> None:
    assert products.can_group(CPU, dtype, (INPUTS, OUTPUTS, rank)) is expected
    way = products.Grouped((2, 3), (1.0, 2.0), torch.empty(0, dtype=dtype))
    rows, result = torch.ones(5, INPUTS, dtype=dtype), torch.zeros(5, OUTPUTS, dtype=dtype)
    downs, ups = [torch.ones(rank, INPUTS, dtype=dtype)] * 2, [torch.ones(OUTPUTS, rank, dtype=dtype)] * 2
    if expected:
        way.gradients(result, rows, way.add(result, rows, downs, ups), None)
    else:
        with pytest.raises(RuntimeError):
            way.add(result, rows, downs, ups)
