"""Exercises of notebook 08."""

from functools import cache

from rpo.teaching.exercise import Exercise

PULLS = ("free", "emptied", "set", "flooded")
METHODS = ("DPO", "RPO", "CPL", "NCA")


@cache
def _falls() -> str:
    from rpo.teaching.lessons import atlas

    frame = atlas.measured(atlas.small(METHODS))
    noisy = frame[frame["instance"] == "noisy"].set_index("method")
    return str(noisy["drop"].idxmax())


EXERCISES: dict[str, Exercise] = {
    "08.1": Exercise(
        question="Derivative of RPO's loss in the logit of an unseen response of probability 0.2; beta = eta = 0.1.",
        solve=lambda: 0.1 * 0.1 * 0.2,
        hint="The pair's part is zero. The SFT term is -eta beta E[log pi(chosen)], and d log pi(c) / d t_a = -pi_a.",
        because="eta beta pi_a = 0.01 * 0.2: positive, so descent takes mass from what is neither chosen nor compared.",
        mistakes={
            "Descent lowers the logit, so the derivative is positive.": lambda: -0.1 * 0.1 * 0.2,
            "The response's probability is a factor: the softmax's.": lambda: 0.1 * 0.1,
            "eta and beta are multiplied.": lambda: 0.1 * 0.2,
        },
    ),
    "08.2": Exercise(
        question="What RPO with base = reference does to an unseen response's mass.",
        solve=lambda: "set",
        hint="Where is the derivative zero, if pi_base gives the response mass b? It is eta beta (pi_a - b).",
        because="eta beta (pi_a - b) vanishes at pi_a = b alone: exactly pi_base, whatever the data say of others.",
        choices=PULLS,
    ),
    "08.3": Exercise(
        question="The overestimate of pi = (0.7, 0.3) over (0.5, 0.5), proxy rewards (2, 0), true ones (1, 0.5).",
        solve=lambda: 0.2 * 2.0 - (0.2 * 1.0 - 0.2 * 0.5),
        hint="Proxy gain less gold gain, each <pi - pi_ref, r>; pi - pi_ref = (0.2, -0.2).",
        because="0.2 (2 - 0) - 0.2 (1 - 0.5) = 0.4 - 0.1: only differences of rewards count.",
        mistakes={
            "That is the proxy's gain; take gold's off.": lambda: 0.4,
            "Count both from the reference: <pi - pi_ref, r>, not <pi, r>.": lambda: 0.7 * 2.0 - 0.7 - 0.15,
        },
    ),
    "08.4": Exercise(
        question="The method of four whose gold falls furthest from its peak where labels are noisy.",
        solve=_falls,
        hint="The column drop of the table, instance noisy.",
        because="It reads differences alone: a lucky win of a rarely compared response is believed as it stands.",
        choices=METHODS,
    ),
    "08.5": Exercise(
        question="The beta at which chi-PO moves, to first order, as DPO does at beta = 0.1.",
        solve=lambda: 0.1 / 2.0,
        hint="Near pi_ref the link is f'(u) = f''(1) h. For chi-squared plus KL f''(1) = 2.",
        because="beta f''(1) is what rewards cost near pi_ref: 0.05 * 2 = 0.1 * 1.",
        mistakes={
            "The other way round: its link is twice as steep, so beta is smaller.": lambda: 0.2,
            "That is DPO's; the link of chi-squared plus KL is u - 1 + log u.": lambda: 0.1,
        },
    ),
}
