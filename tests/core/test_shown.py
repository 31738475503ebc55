"""Names and prompts that would act where they are shown: escape sequences, scripts, links, formulas."""

import re

import pytest

from rpo.core import shown


@pytest.mark.parametrize(
    ("given", "text", "line"),
    [
        ("plain \u00e9\u4e2d\U0001f469\u200d\U0001f4bb", None, None),  # a joiner holds an emoji together and stays
        ("two\nlines\tapart", None, "two\\nlines\\tapart"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07", None),
        ("over\rwritten\x9b2J", "over\\rwritten\\x9b2J", None),
        ("\u202eturned\u2066\u2028", "\\u202eturned\\u2066\\u2028", None),
        ("half \ud800", "half \\ud800", None),
    ],
)
def test_a_terminal_gets_no_control_characters(given: str, text: str | None, line: str | None) -> None:
    text = given if text is None else text
    assert shown.text(given) == text and shown.line(given) == (text if line is None else line)
    shown.text(given).encode()


@pytest.mark.parametrize(
    ("given", "escaped"),
    [
        ("org/model_7b-v0.1", "org/model_7b-v0.1"),
        ("a|b", "a\\|b"),
        ("eta * beta **x**", "eta * beta \\*\\*x\\*\\*"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](javascript:alert(1))", "\\[x\\](javascript:alert(1))"),
        ("![x](http://a/b.png)", "!\\[x\\](http://a/b.png)"),
        ("<javascript:alert(1)> & \\|`*", "&lt;javascript:alert(1)&gt; &amp; \\\\\\|\\`\\*"),
        ("a\n# b", "a\\\\n# b"),
    ],
)
def test_markdown_shows_words_as_they_are(given: str, escaped: str) -> None:
    assert shown.markdown(given) == escaped


@pytest.mark.parametrize(
    ("given", "span"), [("a<b", "`a<b`"), ("a`b", "``a`b``"), ("``", "``` `` ```"), ("x\ny", "`x\\ny`")]
)
def test_a_code_span_cannot_be_left(given: str, span: str) -> None:
    assert shown.markdown_code(given) == span


def test_a_spreadsheet_computes_nothing() -> None:
    for words in ("=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\uff1d1", "-1-2"):
        assert shown.cell(words) == f"'{words}"
    for words in ("-0.5", "+1e-3", ".5", "model", "a=b", "", "'=x"):
        assert shown.cell(words) == words
    assert shown.cell("\t=1") == "'\t=1" and shown.cell(-0.25) == "-0.25" and shown.cell("two\n=1") == "two\n=1"
    assert not re.match(r"[=+\-@\t\r]", shown.cell("\r=1"))
