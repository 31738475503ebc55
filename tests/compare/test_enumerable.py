"""The enumerated table against scoring every response one by one."""

import numpy as np
import pytest
import torch

from rpo.bandit import tree
from rpo.compare import EnumerableLM, tiny_gpt2
from rpo.core.errors import InvalidArgument
from rpo.llm import response_logps


def test_the_table_equals_scoring_each_response_on_its_own() -> None:
    lm = tiny_gpt2(prompts=5, vocab_size=3, length=3, rng=0)
    table = lm.logps().detach()
    prompt_length = lm.prompts.shape[1]
    assert prompt_length == 2  # 5 prompts need two digits in base 3
    for x in range(5):
        rows = torch.cat([lm.prompts[x].expand(27, -1), lm.responses], dim=1)
        mask = torch.arange(rows.shape[1]).expand_as(rows) >= prompt_length
        with torch.no_grad():
            alone = response_logps(lm.model(input_ids=rows).logits, rows, mask)
        torch.testing.assert_close(table[x], alone, rtol=0, atol=1e-13)


def test_the_table_s_tokens_are_the_model_s() -> None:
    """What the model's logits say of each token is a ratio of its table's masses: `lm.responses` are the sequences."""
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=3, rng=0)
    found = tree.token_logps(lm.policy(), lm.responses.numpy())
    rows = torch.cat([lm.prompts[1].expand(27, -1), lm.responses], dim=1)
    with torch.no_grad():
        logps = lm.model(input_ids=rows).logits[:, lm.prompts.shape[1] - 1 : -1].log_softmax(-1)
    np.testing.assert_allclose(found[1], logps.gather(-1, lm.responses[:, :, None])[:, :, 0].numpy(), atol=1e-12)


def test_every_prompt_has_a_distribution_of_its_own_that_sums_to_one() -> None:
    policy = tiny_gpt2(rng=0).policy()
    assert policy.shape == (3, 64)
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, atol=1e-14)
    assert np.abs(policy[0] - policy[1]).sum() > 0.05
    assert policy.max() > 2 / 64  # not uniform


def test_a_response_of_one_repeated_token_is_not_tied_to_its_prefix() -> None:
    """Under rotary positions the prompt 0 and the response 0 0 would give the same next token; here not."""
    lm = tiny_gpt2(prompts=1, vocab_size=2, length=3, rng=0)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits[0].softmax(-1)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[1] - logits[2]).abs().max() > 1e-3


def test_drawing_a_model_depends_on_rng_alone_and_spares_the_global_state() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = tiny_gpt2(rng=3).policy()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(8)
    np.testing.assert_array_equal(first, tiny_gpt2(rng=3).policy())
    assert np.abs(first - tiny_gpt2(rng=4).policy()).max() > 1e-3


def test_the_bandit_carries_the_policy_and_readable_labels() -> None:
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=2, rng=0)
    problem = lm.bandit(np.ones((2, 9)))
    np.testing.assert_allclose(problem.reference, lm.policy(), atol=1e-15)
    assert problem.response_labels == ("00", "01", "02", "10", "11", "12", "20", "21", "22")


def test_too_many_responses_and_foreign_tokens_are_refused() -> None:
    lm = tiny_gpt2(rng=0)
    with pytest.raises(InvalidArgument, match="length: expected at most 4096 responses"):
        EnumerableLM(model=lm.model, prompts=lm.prompts, length=7)
    with pytest.raises(InvalidArgument, match=r"prompts: expected token ids in \[0, 3\]"):
        EnumerableLM(model=lm.model, prompts=torch.tensor([[4]]), length=2)
    with pytest.raises(InvalidArgument, match=r"prompts: expected shape \(X, P\)"):
        EnumerableLM(model=lm.model, prompts=torch.tensor([1]), length=2)
