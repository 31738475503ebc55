"""Scorers by hand."""

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument
from rpo.eval.scorers import Ensemble, Function, Length, Repetition, Sentiment, Weighted, load_scorer


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


def test_an_ensemble_by_hand_centred_within_each_prompt() -> None:
    """Words and minus a tenth of the letters, of two prompts whose responses are interleaved.

    To p: words 1 and 3, letters 1 and 9; centred (-1, 1) and (.4, -.4): worst (-1, -.4), mean (-.3, .3). To q: 2 and 2
    words, 3 and 5 letters; (0, 0) and (.1, -.1): worst (0, -.1). Uncentred, the worst is the second member throughout.
    """
    letters = Function(lambda prompts, texts: [-0.1 * len(text) for text in texts], name="letters")
    prompts, texts = ["p", "q", "p", "q"], ["a", "a b", "aaa bbb cc"[:9], "aa bb"]
    worst = Ensemble([Length(), letters])
    assert worst(prompts, texts) == pytest.approx([-1.0, 0.0, -0.4, -0.1])
    assert Ensemble([Length(), letters], how="mean")(prompts, texts)[[0, 2]] == pytest.approx([-0.3, 0.3])
    variance = Ensemble([Length(), letters], how="variance", penalty=2.0)
    assert variance(prompts, texts)[0] == pytest.approx(-0.3 - 2.0 * 0.49)
    assert Ensemble([Length(), letters], how="entropic", penalty=1e9)(prompts, texts) == pytest.approx(
        worst(prompts, texts), abs=1e-8
    )
    plain = Ensemble([Length(), letters], centred=False)
    assert plain(prompts, texts) == pytest.approx(letters(prompts, texts))
    assert plain(["p"], ["a b"]) == pytest.approx([-0.3])
    assert worst.name == "worst of (length, letters)" and variance.name == "variance 2 of (length, letters)"
    with pytest.raises(InvalidArgument, match="^responses: expected two or more to each prompt"):
        worst(["p", "q"], ["a", "b"])
    with pytest.raises(InvalidArgument, match="^prompts: expected 3, one a response, got 2"):
        worst(["p", "p"], ["a", "b", "c"])
    for match, options in {"members": {"members": []}, "how": {"how": "best"}, "penalty": {"penalty": -1.0}}.items():
        with pytest.raises(InvalidArgument, match=match):
            Ensemble(**{"members": [Length()], **options})


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
