"""Build the pre-training corpus from the same vocabulary as the instruction records, in other forms.

No document has the form of an instruction record: reviews have stars instead of label words, passages are followed by a
dialogue, news has a headline, and sentence pairs are listed as in a phrase book.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence

from lexicon import PAIRS, WORDS
from review_words import BLAME, KINDS, PRAISE
from small_talk import CHATS, EVERYDAY
from tasks import clause, fill, news, passage_questions, review, sentence_pair

# Short samples: a small model learns to copy sooner if there are few unrelated documents in its context.
SAMPLE_TOKENS = 64
STARS = {
    True: ("五星", "好评", "5分", "赞", "四星", "4分", "推荐"),
    False: ("一星", "差评", "1分", "踩", "二星", "2分", "不推荐"),
}
RATING_FORMS = ("推荐指数：{}", "评分：{}", "打分：{}", "我的评价：{}", "总体：{}", "（{}）", "——{}")
SPEAKERS = (
    ("甲：", "乙："),
    ("问：", "答："),
    ("老师：", "学生："),
    ("妈妈问：", "孩子说："),
    ("-", "-"),
    ("记者：", "路人："),
)


# The 3,755 most common characters, in the order of the GB 2312 standard.
CHARACTERS = "".join(
    bytes((row, cell)).decode("gb2312", "ignore") for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)
)
# Characters of the word lists; each is one token of the tokenizer.
FREQUENT = sorted({char for words in WORDS.values() for word in words for char in word})
TOKEN = re.compile(r"<\|\w+\|>|[A-Za-z']+|[^\sA-Za-z]|\n")


def tokens(text: str) -> int:
    """Estimate the tokens of a text: one for each Chinese character or English word."""
    return len(TOKEN.findall(text))


def _rated(rng: random.Random, text: str, good: bool) -> str:
    """Attach a rating to a review, mostly after it."""
    # With the index doubled, the first marks, which are the plainest, are the most frequent.
    mark = STARS[good][min(rng.randrange(7), rng.randrange(7))]
    if rng.random() < 0.15:
        return rng.choice(("{}：{}", "【{}】{}", "评分：{}\n{}")).format(mark, text)
    return text + rng.choice(("\n", "", " ")) + rng.choice(RATING_FORMS).format(mark)


def rated_reviews(rng: random.Random) -> str:
    """Write several reviews, each with its stars."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        good = rng.random() < 0.5
        lines.append(_rated(rng, review(rng, good), good))
    return "\n".join(lines)


def rated_words(rng: random.Random) -> str:
    """Rate single words and clauses, so that the model learns the polarity of each."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        good = rng.random() < 0.5
        word = rng.choice((PRAISE if good else BLAME).split())
        shapes = ("{}", "{}！", "太{}了", "真的{}", "觉得{}", "用完之后很{}", "一句话：{}")
        text = rng.choice(shapes).format(word) if rng.random() < 0.6 else clause(rng, good, rng.choice(KINDS))
        lines.append(_rated(rng, text + "。", good))
    return "\n".join(lines)


def rare_word(rng: random.Random) -> str:
    """Make up a word, which can only be copied."""
    return "".join(rng.choices(CHARACTERS if rng.random() < 0.2 else FREQUENT, k=rng.randint(2, 4)))


def marked_clauses(rng: random.Random) -> str:
    """Write clauses of mixed polarity about one kind of thing, each with a mark."""
    kind = rng.choice(KINDS)
    good, bad = rng.choice((("（赞）", "（踩）"), ("（五星）", "（一星）"), ("：好评", "：差评"), (" 赞", " 踩")))
    parts = []
    for _ in range(rng.randint(3, 5)):
        praised = rng.random() < 0.5
        parts.append(clause(rng, praised, kind) + (good if praised else bad))
    return rng.choice(("，", "\n", "；")).join(parts)


def dialogue(rng: random.Random) -> str:
    """Write a passage and a dialogue that asks about it."""
    passage, questions = passage_questions(rng)
    asks, answers = rng.choice(SPEAKERS)
    text = "\n".join([passage, *(f"{asks}{question}\n{answers}{answer}" for question, answer in questions[:3])])
    if rng.random() < 0.2:
        text = text.replace(rng.choice(questions)[1], rare_word(rng))
    return text


def headline(rng: random.Random) -> str:
    """Write a news item or a diary entry with its headline."""
    body, summary = news(rng)
    shapes = (
        "{b}\n标题：{s}",
        "正文：{b}\n标题：{s}",
        "{b}\n（一句话新闻：{s}）",
        "{b}\n要点：{s}",
        "【{s}】{b}",
        "{b}\n简讯：{s}",
    )
    return rng.choice(shapes).format(b=body, s=summary)


def phrase_book(rng: random.Random) -> str:
    """Write Chinese sentences with their English translations."""
    shape = rng.choice(("{a}\n{b}", "{a} {b}", "{a} = {b}", "{a}（{b}）", "{a} | {b}", "{a} → {b}"))
    swap = rng.random() < 0.5
    lines = []
    for _ in range(rng.randint(1, 4)):
        pair = sentence_pair(rng)
        if rng.random() < 0.12:
            zh, en = rng.choice(EVERYDAY).split("|")
            pair = zh, en
        lines.append(shape.format(a=pair[swap], b=pair[not swap]))
    return "\n".join(lines)


def word_list(rng: random.Random) -> str:
    """Write a list of words with their translation."""
    entries = rng.sample(rng.choice(list(PAIRS.values())), 4)
    shape = rng.choice(("{0} {1}", "{1} {0}", "{0}：{1}", "{1} = {0}"))
    return "；".join(shape.format(*forms[:2]) for forms in entries)


def look_up(rng: random.Random) -> str:
    """Write a table and queries for some of its entries, as practice in copying."""
    keys = rng.sample(WORDS[rng.choice(("p", "fd", "it", "org", "pl"))], 3)
    if rng.random() < 0.3:
        keys = [rare_word(rng) for _ in keys]
    values = rng.sample(WORDS[rng.choice(("pr", "t", "at", "ct", "p", "clk"))], 3)
    table = dict(zip(keys, values, strict=True))
    lines = ["；".join(f"{key}：{value}" for key, value in table.items())]
    lines += [f"{key}？{table[key]}" for key in rng.sample(keys, 2)]
    return "\n".join(lines)


def repeated(rng: random.Random) -> str:
    """Write a line several times."""
    if rng.random() < 0.6:
        text = "".join(rare_word(rng) for _ in range(rng.randint(2, 4)))
    else:
        text = rng.choice((news(rng)[1], sentence_pair(rng)[0], sentence_pair(rng)[1]))
    return "\n".join([text] * rng.randint(2, 4))


def chat(rng: random.Random) -> str:
    """Write a short chat with the role tokens of the chat template."""
    turns = []
    for _ in range(rng.randint(1, 2)):
        line = rng.choice(CHATS).replace("{x}", "{p}").replace("{y}", "{hb}").replace("{z}", "{ct}")
        ask, reply = fill(rng, line)[0].split("|")
        turns.append(f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n")
    return "".join(turns).rstrip("\n")


# The forms of documents and how often each is used.
FORMS: dict[Callable[[random.Random], str], int] = {
    rated_reviews: 34,
    rated_words: 20,
    marked_clauses: 26,
    dialogue: 36,
    headline: 34,
    phrase_book: 40,
    word_list: 10,
    look_up: 12,
    repeated: 20,
    chat: 14,
}


def samples(rng: random.Random, count: int, held_out: Sequence[str]) -> Iterator[str]:
    """Yield ``count`` samples of several documents, free of held-out text."""
    forms, weights = list(FORMS), list(FORMS.values())
    pending = ""
    while count:
        document = rng.choices(forms, weights)[0](rng)
        if any(text in document for text in held_out):
            continue
        if pending and tokens(pending) + tokens(document) > SAMPLE_TOKENS:
            yield pending
            pending, count = "", count - 1
        pending += ("\n\n" if pending else "") + document
