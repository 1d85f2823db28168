"""Milliseconds of the ways to add the updates of a pack's members to a layer: python -m bench.gpu.products OUT.json [--tiny]

The six products of LoRA for eight members, forward and backward, in bf16, with members of equal and of different lengths. For each
layer, a line names the way that training would take on this device.
"""

import argparse
import json
from pathlib import Path
from typing import Any

MEMBERS = 8
RANKS = (8, 64)


def lengths(tokens: int) -> dict[str, tuple[int, ...]]:
    """Tokens of each member, by name; those of different lengths have from half to three halves of ``tokens``."""
    ragged = tuple(tokens // 2 + number * tokens // (MEMBERS - 1) for number in range(MEMBERS))
    return {"equal": (tokens,) * MEMBERS, "different": ragged}


def measure(tokens: int, inputs: int, outputs: tuple[int, ...]) -> list[dict[str, Any]]:
    """The milliseconds of each way, for layers with these numbers of features."""
    import torch

    from hydraft.training.pack import choice

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for rank in RANKS:
        for features in outputs:
            for name, sizes in lengths(tokens).items():
                case = choice.Case(device, torch.bfloat16, inputs, features, rank, sizes)
                seconds = choice.seconds(case)
                found.append(
                    {
                        "rank": rank,
                        "features": [inputs, features],
                        "lengths": name,
                        "chosen": str(choice.choose(case)),
                        "milliseconds": {str(way): round(1e3 * value, 4) for way, value in seconds.items()},
                    }
                )
    return found


def main() -> None:
    """Measure, print a line for each layer, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    found = measure(16, 64, (64, 128)) if given.tiny else measure(256, 896, (896, 4864))
    for one in found:
        print(json.dumps(one))
    given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
