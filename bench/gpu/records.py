"""Write records of a given length, made from the text of the shipped ones.

    python -m bench.gpu.records FILE [--count 128] [--characters 4000] [--vary]

The shipped records have about 70 tokens each; on those, a GPU mostly waits for kernel launches. The embedded model's
tokenizer has one token per character, so ``--characters`` above data.max_length fills it.
"""

import argparse
import json
import random
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORTEST = 0.1
"""With ``--vary``, length of the shortest answer relative to the longest."""


def write(file: Path, count: int = 128, characters: int = 4000, vary: bool = False) -> Path:
    """Write ``count`` records whose answers have ``characters`` characters each (with ``vary``, at most that many)."""
    generator = random.Random(0)
    shipped = json.loads((ROOT / "data/zh_tasks.train.json").read_text(encoding="utf-8"))
    text = "".join(str(value) for record in shipped for value in record.values())
    assert characters < len(text)
    rows = []
    for number in range(count):
        long = round(characters * generator.uniform(SHORTEST, 1)) if vary else characters
        start = generator.randrange(len(text) - long)
        rows.append({"instruction": f"第{number}段：续写。", "input": "", "output": text[start : start + long]})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--characters", type=int, default=4000)
    parser.add_argument(
        "--vary", action="store_true", help="uniformly distributed lengths, from a tenth of --characters"
    )
    options = parser.parse_args()
    print(write(options.file, options.count, options.characters, options.vary), options.count, "records")


if __name__ == "__main__":
    main()
