"""Where methods are compared: eight fixed instances, seven each hard in one way, and one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rpo.bandit.instances import linear_outside_span, zhu_four_arms


@dataclass(frozen=True, kw_only=True)
class AtlasInstance:
    """One column of the atlas.

    source: what `simulate` takes as an instance; parameters of it, n preferences a draw. bound: R, rewards of a table
    lie in [0, R]. lists: K, of n rankings by scores with noise of this deviation in place of pairs; 0 for pairs.
    ball: the radius where rewards are linear in the features, and policies linear softmaxes; else None.
    """

    name: str
    sentence: str
    source: Any
    n: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    bound: float = 3.0
    lists: int = 0
    score_noise: float = 0.0
    ball: float | None = None

    @property
    def unit(self) -> dict[str, Any]:
        """The parameters and n, as a cell of a simulation takes them."""
        return {**self.parameters, "n": self.n}


INSTANCES = (
    AtlasInstance(
        name="even",
        sentence="even coverage and much data, 10 responses: the control, where nothing should be overoptimised",
        source="coverage_skew",
        parameters={"skew": 0.0, "arms": 10},
        n=2000,
    ),
    AtlasInstance(
        name="skewed",
        sentence="few responses are compared often and most seldom (skew 2), 50 preferences over 10 responses",
        source="coverage_skew",
        parameters={"skew": 2.0, "arms": 10},
        n=50,
    ),
    AtlasInstance(
        name="noisy",
        sentence="a quarter of the labels is flipped, skew 1, 50 preferences over 10 responses",
        source="coverage_skew",
        parameters={"skew": 1.0, "arms": 10, "label_noise": 0.25},
        n=50,
    ),
    AtlasInstance(
        name="disconnected",
        sentence="responses are compared within two halves and never across, 60 preferences over 8 responses",
        source="disconnected",
        parameters={"arms": 8, "bridge": 0.0},
        n=60,
    ),
    AtlasInstance(
        name="few",
        sentence="12 preferences over 10 responses: some responses are in none",
        source="coverage_skew",
        parameters={"skew": 1.0, "arms": 10},
        n=12,
    ),
    AtlasInstance(
        name="lists",
        sentence="20 lists of 4 out of 10 responses, by scores with noise of deviation 2; pairs are all of a list's",
        source="coverage_skew",
        parameters={"skew": 1.0, "arms": 10},
        n=20,
        lists=4,
        score_noise=2.0,
    ),
    AtlasInstance(
        name="zhu",
        sentence="Zhu's four arms, rewards linear in a ball: 29 comparisons of the bad two, one with a better one",
        source=zhu_four_arms(n=30),
        n=30,
        ball=2.0,
    ),
    AtlasInstance(
        name="outside",
        sentence="rewards linear in features, and the best response has one that no comparison sees; 100 preferences",
        source=linear_outside_span(rng=0),
        n=100,
        ball=1.0,
    ),
)
