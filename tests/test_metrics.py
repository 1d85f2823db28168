"""Scores held to values counted by hand."""

from hydraft.metrics import score, spread


def test_scores_of_four_answers() -> None:
    records = [
        {"instruction": "", "output": "正面", "task": "sentiment"},
        {"instruction": "", "output": "负面", "task": "sentiment"},
        {"instruction": "", "output": "负面", "task": "sentiment"},
        {"instruction": "", "output": "北京", "task": "qa"},
    ]
    scores = score(records, ["正面\n", "这是负面评价", "正面或负面", ""])
    assert scores == {
        "exact_match": 1 / 4,  # the first alone; an empty answer counts as wrong
        "sentiment_exact_match": 1 / 3,
        "sentiment_accuracy": 2 / 3,  # a sentence that names its class and no other is right
        "qa_exact_match": 0.0,
    }


def test_a_limit_takes_records_evenly_over_the_file() -> None:
    records = [{"n": n} for n in range(10)]
    assert [record["n"] for record in spread(records, 4)] == [0, 2, 5, 7]
    assert spread(records, None) == spread(records, 99) == records
