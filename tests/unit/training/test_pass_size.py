"""How many tokens a pass should have."""

import pytest

from hydraft.training.pack.pass_size import choose


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({64: 1000.0, 128: 1900.0, 256: 3000.0, 512: 3200.0}, 256),  # 94 % of the highest
        ({64: 1000.0, 128: 1010.0}, 64),  # large weights: more tokens save nothing
        ({64: 1000.0, 128: 2000.0, 256: 4000.0}, 256),
        ({64: 500.0}, 64),
    ],
)
def test_the_smallest_pass_that_is_nearly_as_fast_as_larger_ones(rates: dict[int, float], expected: int) -> None:
    assert choose(rates) == expected
