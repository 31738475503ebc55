"""Best-of-n by enumeration; labels by their stated probabilities."""

from itertools import combinations

import models_for_tests
import numpy as np
import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.eval.gold.measure import Sampled, best_of_ensemble, best_of_n, mean_and_error
from rpo.eval.gold.preferences import label_pairs, tokenized
from rpo.eval.gold.prompts import review_openings, split_prompts
from rpo.eval.gold.settings import GoldStudy
from rpo.eval.scorers import Function


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    """Brute force over the C(5, n) subsets of five samples a prompt; KL = log n - (n - 1)/n."""
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=(2, 3, 5))
    samples = Sampled([[""] * 5] * 3, [], gold, proxy)
    found = best_of_n(samples, n)
    subsets = [list(s) for s in combinations(range(5), n)]
    expected = np.mean([[gold[x, s][proxy[x, s].argmax()] for s in subsets] for x in range(3)], axis=1)
    assert found["reward/gold"] == pytest.approx(expected.mean(), abs=1e-12)
    assert found["reward/gold_se"] == pytest.approx(expected.std(ddof=1) / np.sqrt(3))
    assert found["kl/reference"] == pytest.approx(np.log(n) - (n - 1) / n)
    if n > 1:  # selecting by the proxy raises the proxy
        assert found["reward/proxy"] > proxy.mean()


def test_ensembles_choose_by_centred_members_under_each_aggregator() -> None:
    """Two members of one prompt by hand, the second's constant 100 above. Centred: (-1, 1, 0) and (1, 0, -1).

    Their mean is (0, .5, -.5), the worst (-1, 0, -1), the mean less the variance (1, .25, .25) is (-1, .25, -.75): of
    all three each takes the second, at .5, 0 and .25.
    """
    members = np.array([[[-1.0, 1.0, 0.0]], [[101.0, 100.0, 99.0]]])
    samples = Sampled([[""] * 3], [], np.array([[5.0, 7.0, 9.0]]), members[0])
    found = best_of_ensemble(samples, members, [1, 3], 1.0)
    assert {how: rows[1]["reward/gold"] for how, rows in found.items()} == {"mean": 7.0, "worst": 7.0, "variance": 7.0}
    assert [found[how][1]["reward/proxy"] for how in ("mean", "worst", "variance")] == pytest.approx([0.5, 0.0, 0.25])
    assert all(rows[0]["reward/gold"] == pytest.approx(7.0) for rows in found.values())  # n = 1: the mean of all
    moved = best_of_ensemble(samples, members + np.array([0.0, -300.0])[:, None, None], [3], 1.0)
    assert moved["worst"][0]["reward/proxy"] == pytest.approx(0.0)  # no constant of a member changes anything
    with pytest.raises(InvalidArgument, match="^members: expected shape"):
        best_of_ensemble(samples, members[:, :, :2], [1], 1.0)


def test_n_larger_than_the_sample_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"n: expected .*5"):
        best_of_n(Sampled([], [], np.zeros((2, 5)), np.zeros((2, 5))), 6)


def test_the_error_counts_prompts_not_samples() -> None:
    """Two prompts with means 0 and 2: se = sqrt(2) / sqrt(2) = 1, however many samples each has."""
    values = np.array([[-1.0, 1.0], [1.0, 3.0]])
    assert mean_and_error(values) == pytest.approx((1.0, 1.0))
    assert mean_and_error(np.repeat(values, 50, axis=1)) == pytest.approx((1.0, 1.0))


EVEN = Function(lambda prompts, texts: [sum(w[1:].isdigit() and int(w[1:]) % 2 == 0 for w in t.split()) for t in texts])


def pairs_of(**options: object) -> tuple[list[dict], object]:
    model, tokenizer = models_for_tests.tiny_model("llama"), models_for_tests.tiny_tokenizer()
    prompts = [f"w{k % 20} w{k % 7} w3" for k in range(300)]
    defaults = {"max_new_tokens": 6, "label_temperature": 1.0, "noise": 0.0, "seed": 0, "batch_size": 150}
    made = label_pairs(model, tokenizer, prompts, EVEN, **{**defaults, **options})
    return made.rows, made


def test_labels_are_drawn_from_bradley_terry() -> None:
    """Gold counts even words. Of pairs that differ by d, a share sigmoid(d) must prefer the larger: within 4 SE."""
    rows, _ = pairs_of()
    gaps = np.array([row["chosen_gold"] - row["rejected_gold"] for row in rows])
    for d in (1, 2):
        won, lost = (gaps == d).sum(), (gaps == -d).sum()
        expected = 1 / (1 + np.exp(-d))
        assert won + lost > 20
        assert abs(won / (won + lost) - expected) < 4 * np.sqrt(expected * (1 - expected) / (won + lost))


def test_noise_is_a_share_of_coins_and_cold_labels_never_err() -> None:
    """At temperature 1e-6 a share noise/2 of the decided labels is against gold; without noise none is."""
    _, exact = pairs_of(label_temperature=1e-6)
    _, noisy = pairs_of(label_temperature=1e-6, noise=0.6)
    assert exact.flipped == 0.0
    assert abs(noisy.flipped - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 250)


def test_coverage_bounds_what_is_drawn() -> None:
    """A nucleus of almost no mass leaves one token: both responses are alike, and the error says so."""
    with pytest.raises(InvalidArgument, match="identical responses"):
        pairs_of(coverage=1e-6)
    wide = {token for row in pairs_of()[0] for token in row["chosen_ids"]}
    narrow = {token for row in pairs_of(coverage=0.5)[0] for token in row["chosen_ids"]}
    assert len(narrow) < len(wide)


def test_the_same_seed_gives_the_same_pairs_and_the_global_rng_stays() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = pairs_of()[0], pairs_of()[0], pairs_of(seed=1)[0]
    assert first == second != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_response_that_was_cut_gets_no_end() -> None:
    rows, _ = pairs_of()
    pairs = tokenized(rows, models_for_tests.tiny_tokenizer())
    assert [list(pair.chosen_ids) for pair in pairs] == [row["chosen_ids"] for row in rows]
    cut = [pair for pair in pairs if pair.chosen_ids[-1] != models_for_tests.EOS]
    assert cut and all(len(pair.chosen_ids) == 6 for pair in cut)


def test_prompts_are_split_without_overlap() -> None:
    prompts = review_openings()
    assert len(set(prompts)) == len(prompts) == 384
    train, evaluation = split_prompts(prompts, train=100, evaluation=50, seed=0)
    assert len({*train, *evaluation}) == 150
    assert split_prompts(prompts, train=100, evaluation=50, seed=1)[0] != train
    with pytest.raises(InvalidArgument, match="at most 384"):
        split_prompts(prompts, train=384, evaluation=2, seed=0)


def test_the_schedule_is_even_in_log_and_ends_at_the_end() -> None:
    """20 pairs in batches of 8 are 3 updates an epoch; 4 epochs, 12 updates: 1, 12^(1/3), 12^(2/3), 12."""
    study = GoldStudy(model="m", batch_size=8, epochs=4, checkpoints=4)
    assert study.schedule(20) == [1, 2, 5, 12]
    assert GoldStudy(model="m", batch_size=8, epochs=4, checkpoints=1).schedule(20) == [12]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("coverage", 0.0), ("noise", 1.5), ("beta", 0.0), ("label_temperature", -1.0), ("gold", {})],
        *[("etas", (0.1, 0.1)), ("etas", (-1.0,)), ("seeds", ()), ("eval_prompts", 1), ("best_of", 0)],
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=field.rstrip("s")):
        GoldStudy(model="m", **{field: value})


def test_the_digest_lets_seeds_and_etas_join() -> None:
    study = GoldStudy(model="m")
    assert study.digest() == GoldStudy(model="m", seeds=(5,), etas=(2.0,)).digest()
    assert study.digest() != GoldStudy(model="m", noise=0.1).digest()
