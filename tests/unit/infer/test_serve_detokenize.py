"""Incremental detokenization and stop sequences."""

import random

import pytest
from transformers import AutoTokenizer

from hydraft.infer.serve.detokenize import StopFilter, StreamDecoder
from hydraft.system.source_tree import TINY


def test_the_pieces_form_the_text_and_never_split_a_character() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [
        "你好，世界！👩‍👩‍👧 café ﷽ 🇨🇳",
        "a\n\n b  c\t",
        " 前面有空格",
        "龘靐齉爩",
    ]  # the last byte tokens, which no other token contains
    for text in texts:
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.add(token) for token in tokenizer(text)["input_ids"]] + [decoder.end()]
        assert "".join(pieces) == text
        assert not any("�" in piece for piece in pieces), pieces


def test_invalid_bytes_do_not_delay_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.randrange(len(tokenizer)) for _ in range(40)]
        decoder = StreamDecoder(tokenizer)
        pieces = "".join(map(decoder.add, ids)) + decoder.end()
        whole = tokenizer.decode([i for i in ids if i not in tokenizer.all_special_ids])
        assert pieces.replace("�", "") == whole.replace("�", "")  # the number of replacement characters may differ


@pytest.mark.parametrize("stop", ["。", "世界", "\n\nuser", "aab"])
def test_a_stop_sequence_is_found_however_it_is_split(stop: str) -> None:
    text = f"aaa你好世{stop[:-1]}x{stop}后面"
    for cut in range(len(text) + 1):
        for second in range(cut, len(text) + 1):
            stops = StopFilter([stop, "not there"])
            shown = ""
            for piece in (text[:cut], text[cut:second], text[second:]):
                shown += stops.add(piece) if not stops.found else ""
            assert stops.found and shown == text[: text.index(stop)], (cut, second)


def test_the_start_of_a_stop_sequence_is_returned_at_the_end() -> None:
    stops = StopFilter(["END"])
    assert stops.add("fin EN") + stops.add("") == "fin "
    assert stops.end() == "EN" and not stops.found
