"""A plain prompt template: two fields are replaced, and all else in braces is text."""

import pytest

from hydraft.config.template import fill, is_template, lacks_input, notes


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{instruction}\n{input}\n", "问\n题\n"),
        ('Answer as {"answer": …}: {instruction}', 'Answer as {"answer": …}: 问'),
        (r"\frac{1}{2} {instruction} {0} {} {{input}} {instruction!r}", r"\frac{1}{2} 问 {0} {} {题} {instruction!r}"),
        ("{instruction} {system} } {", "问 {system} } {"),
        ("{input}{instruction}{input}", "题问题"),
    ],
)
def test_only_known_fields_are_replaced(template: str, prompt: str) -> None:
    assert is_template(template)
    assert fill(template, "问", "题") == prompt


def test_what_a_record_has_in_braces_is_never_replaced() -> None:
    assert fill("{instruction}|{input}", "{input}", "{instruction}") == "{input}|{instruction}"


def test_a_place_for_the_input_and_likely_mistakes() -> None:
    assert not lacks_input("chat") and not lacks_input("{instruction}{input}") and lacks_input("{instruction}")
    assert notes("chat") == notes("{instruction} {input} {1} {}") == []
    assert notes("{system} {instruction}") == [
        "data.template: {system} is text; only {instruction} and {input} are replaced"
    ]
    assert not is_template("{question}")
