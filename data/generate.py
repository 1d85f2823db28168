"""Write the instruction set, or the corpus that the embedded model is pre-trained on.

Without options, the hand-written records and generated ones are mixed into a training split and a held-out split in
this folder. With ``--corpus PATH``, the corpus is written instead. The same seed always gives the same bytes.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from corpus import samples
from tasks import news, passage_questions, review, sentence_pair

Record = dict[str, str]

HERE = Path(__file__).resolve().parent
TASKS = ("sentiment", "qa", "summary", "translation")
# Shares of the training split, in percent. The sentiment task gets more records, since a label is only
# one token, compared with the many tokens of other answers.
SHARES = {"sentiment": 34, "qa": 22, "summary": 22, "translation": 22}
# Hand-written records kept for the test split, per task.
HELD_OUT = {"sentiment": 16, "qa": 12, "summary": 12, "translation": 12}
LABELS = {True: "正面", False: "负面"}
TO_ENGLISH: tuple[str, ...] = (
    "把下面的句子翻译成英文：",
    "请将这句话译成英语。",
    "用英语怎么说？",
    "翻译成英文。",
    "中译英：",
)
TO_CHINESE: tuple[str, ...] = (
    "把下面的句子翻译成中文：",
    "请将这句话译成汉语。",
    "用中文怎么说？",
    "翻译成中文。",
    "英译中：",
)
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "sentiment": (
        "判断这条评论的情感：",
        "判断下面评论的情感倾向，回答正面或负面。",
        "这条评价是正面还是负面？",
        "请给下面的评论做情感分类（正面/负面）：",
        "下面这句话表达的态度是正面的还是负面的？",
        "读一读这条点评，判断它是正面还是负面。",
    ),
    "qa": (
        "根据短文回答问题。",
        "请阅读短文，用文中的词语回答问题。",
        "读短文，回答后面的问题：",
        "从下面的短文里找出答案。",
        "请根据下面的内容简短作答。",
    ),
    "summary": (
        "用一句话概括下面的内容。",
        "请为这段文字写一句话摘要：",
        "总结下面这段话的主要内容。",
        "把下面的短文缩写成一句话。",
        "这段话主要讲了什么？请用一句话回答。",
    ),
}


def record(rng: random.Random, task: str, text: str, output: str) -> Record:
    """Make a record, with a random variant of the task's instruction."""
    wordings = INSTRUCTIONS.get(task, TO_CHINESE if text.isascii() else TO_ENGLISH)
    return {"instruction": rng.choice(wordings), "input": text, "output": output, "task": task}


def sentiment_record(rng: random.Random) -> Record:
    """Make a review with its label."""
    good = rng.random() < 0.5
    return record(rng, "sentiment", review(rng, good), LABELS[good])


def qa_record(rng: random.Random) -> Record:
    """Make a passage with one question about it."""
    passage, questions = passage_questions(rng)
    question, answer = questions[0]
    return record(rng, "qa", f"短文：{passage}\n问题：{question}", answer)


def summary_record(rng: random.Random) -> Record:
    """Make a news item or a diary entry with its summary."""
    return record(rng, "summary", *news(rng))


def translation_record(rng: random.Random) -> Record:
    """Make a sentence with its translation, into English or into Chinese."""
    pair = sentence_pair(rng)
    source = rng.randrange(2)
    return record(rng, "translation", pair[source], pair[1 - source])


MAKERS: dict[str, Callable[[random.Random], Record]] = {
    "sentiment": sentiment_record,
    "qa": qa_record,
    "summary": summary_record,
    "translation": translation_record,
}


def texts(item: Record) -> list[str]:
    """The texts of a record that must not occur in another split."""
    if item["task"] == "translation":
        return [item["input"], item["output"]]
    return [item["input"].removeprefix("短文：").split("\n")[0]]


def split_handwritten(rng: random.Random) -> tuple[list[Record], list[Record]]:
    """Split the hand-written records into training and held-out ones."""
    records = json.loads((HERE / "handwritten.json").read_text(encoding="utf-8"))
    train: list[Record] = []
    test: list[Record] = []
    for task in TASKS:
        own = [item for item in records if item["task"] == task]
        rng.shuffle(own)
        test += own[: HELD_OUT[task]]
        train += own[HELD_OUT[task] :]
    return train, test


def extend(rng: random.Random, records: list[Record], sizes: dict[str, int], seen: set[str]) -> None:
    """Add generated records with unseen texts until each task has its size."""
    for task, size in sizes.items():
        missing = size - sum(item["task"] == task for item in records)
        while missing > 0:
            item = MAKERS[task](rng)
            if seen.isdisjoint(texts(item)):
                seen.update(texts(item))
                records.append(item)
                missing -= 1
    rng.shuffle(records)


def splits(seed: int, train_size: int, test_size: int) -> tuple[list[Record], list[Record]]:
    """Build both splits; the held-out one has the same number of records of every task."""
    rng = random.Random(seed)
    train, test = split_handwritten(rng)
    seen = {text for item in train + test for text in texts(item)}
    extend(rng, test, dict.fromkeys(TASKS, test_size // len(TASKS)), seen)
    extend(rng, train, {task: train_size * share // 100 for task, share in SHARES.items()}, seen)
    return train, test


def held_out_texts(test: list[Record]) -> list[str]:
    """The texts that the corpus must not contain: those of the test split and their longer clauses.

    Only hand-written clauses count, since the generated ones share their words with the corpus by design.
    """
    found = [text for item in test for text in texts(item)]
    written = {item["input"] for item in json.loads((HERE / "handwritten.json").read_text(encoding="utf-8"))}
    for item in test:
        if item["input"] in written and item["task"] != "translation":
            found += [part for part in re.split("[，。；！？、\n]", texts(item)[0]) if len(part) > 5]
    return found


def write_records(path: Path, records: list[Record]) -> None:
    """Write records as a JSON list, one record per line."""
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def write_corpus(path: Path, seed: int, count: int, test: list[Record]) -> None:
    """Write the corpus as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in samples(random.Random(seed + 1), count, held_out_texts(test)):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=20, help="seed of every random choice")
    parser.add_argument("--train-size", type=int, default=1800, help="records of the training split")
    parser.add_argument("--test-size", type=int, default=200, help="records of the held-out split")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the two splits")
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="write the pre-training corpus to PATH instead")
    parser.add_argument("--corpus-size", type=int, default=50000, help="samples of the corpus")
    return parser.parse_args()


def main() -> None:
    """Write the splits, or the corpus."""
    options = parse_arguments()
    train, test = splits(options.seed, options.train_size, options.test_size)
    if options.corpus:
        write_corpus(options.corpus, options.seed, options.corpus_size, test)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_records(options.out / "zh_tasks.train.json", train)
    write_records(options.out / "zh_tasks.test.json", test)


if __name__ == "__main__":
    main()
