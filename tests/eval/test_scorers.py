"""Scorers by hand."""

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument
from rpo.eval.scorers import Function, Length, Repetition, Sentiment, Weighted, load_scorer


def test_length_and_repetition_by_hand() -> None:
    """ "a b a b a b": bigrams ab ba ab ba ab, two different of five: 1 - 2/5. One word has no bigram."""
    texts = ["a b a b a b", "The film, the FILM!", "word", ""]
    assert Length()([""] * 4, texts).tolist() == [6, 4, 1, 0]
    # the film | film the | the film: two different of three.
    assert Repetition()([""] * 4, texts) == pytest.approx([0.6, 1 / 3, 0, 0])
    assert Repetition(n=1)([""] * 4, texts)[0] == pytest.approx(1 - 2 / 6)


def test_sentiment_orders_what_anyone_would() -> None:
    happy, flat, sad = Sentiment()([""] * 3, ["A wonderful, moving film!", "It lasts two hours.", "Awful and boring."])
    assert -1 <= sad < flat == 0 < happy <= 1


def test_a_weighted_sum_has_the_price_of_a_hack() -> None:
    """Sentiment rises with every repetition of a happy word; minus repetition it no longer does."""
    texts = ["good film", "good good good good good film"]
    plain, priced = Sentiment(), Weighted({Sentiment(): 1.0, Repetition(): -1.0})
    assert np.diff(plain(["", ""], texts)) > 0 > np.diff(priced(["", ""], texts))
    assert priced.name == "+1 sentiment -1 repetition"


def count_letters(prompts: list[str], responses: list[str]) -> list[int]:
    """A scorer of one's own."""
    return [len(response) for response in responses]


def test_scorers_by_name() -> None:
    assert load_scorer("length").name == "length"
    function = load_scorer("math:fsum")
    assert function.name == "math:fsum"
    assert Function(count_letters)([""], ["abc"]).tolist() == [3]
    for name in ("cheerfulness", "math:nothing", "no_such_module:f"):
        with pytest.raises(InvalidArgument, match="scorer"):
            load_scorer(name)
    with pytest.raises(InvalidArgument, match="shape"):
        Function(lambda prompts, responses: [1.0, 2.0], name="mine")(["x"], ["y"])
    with pytest.raises(InvalidArgument, match="mine"):
        Function(lambda prompts, responses: [float("nan")], name="mine")(["x"], ["y"])
