"""KL(pi || pi_ref) estimated on responses sampled from the policy, with its standard error.

Shapes: X prompts, S samples each; B responses, K response tokens of all of them, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.logps.logprobs import token_logps
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.reference import Reference
from rpo.llm.sampling import evaluation_mode, sample_ids

ESTIMATORS = ("prefix", "plain")


class SampledKL(NamedTuple):
    """An estimate of E_{d0}[KL(pi || pi_ref)], nats per response.

    standard_error: over prompts, NaN of a single one. num_prompts: X. unfinished: share of samples cut at
    the length limit, whose tails are not in the mean (the KL of whole responses is then larger).
    """

    mean: float
    standard_error: float
    num_prompts: int
    unfinished: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return what is logged: kl/reference, kl/reference_se, kl/unfinished."""
        return {
            "kl/reference": self.mean,
            "kl/reference_se": self.standard_error,
            "kl/unfinished": self.unfinished,
        }


def sampled_kl(policy_logps: torch.Tensor, reference_logps: torch.Tensor) -> SampledKL:
    r"""Return the plain estimate, the mean of $\log\pi(y|x) - \log\pi_{ref}(y|x)$ over samples y of the policy.

    *_logps: (X, S), summed, or (X,) for one sample per prompt. Unbiased, can be negative. The samples of a
    prompt are averaged first: the standard error counts prompts. The never negative $r - 1 - \log r$ of
    $r = \pi_{ref}/\pi$ is unbiased too where pi covers pi_ref, but heavy-tailed for whole responses: rare
    samples carry the mean of r. Use `prefix_kl` for a lower variance. Raises InvalidArgument.
    """
    checks.has_shape("reference_logps", reference_logps, tuple(policy_logps.shape))
    return _over_prompts(policy_logps - reference_logps)


def prefix_kl(policy_logps: torch.Tensor, reference_logps: torch.Tensor) -> torch.Tensor:
    r"""Return $KL(\pi(.|prefix) \Vert \pi_{ref}(.|prefix))$ of next-token log-probabilities, (..., V) -> (...).

    Summed over the prefixes of a response sampled from the policy it is unbiased for the KL of responses,
    by the chain rule: only the prefix is sampled, the mean over the next token is exact. Never negative,
    and usually of far lower variance than the plain estimate (not always: what was sampled may have
    cancelled elsewhere).
    """
    probabilities = policy_logps.exp()
    # A token the policy never says adds 0, not 0 * inf.
    terms = torch.where(probabilities > 0, probabilities * (policy_logps - reference_logps), 0.0)
    return terms.sum(-1)


def measure_kl(
    model: Any,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    num_samples: int = 1,
    max_new_tokens: int = 64,
    seed: int = 0,
    estimator: str = "prefix",
    batch_size: int = 4,
) -> SampledKL:
    """Sample responses of `model` to `prompts` (token ids) and estimate its KL to `reference`.

    num_samples: S a prompt. estimator: "prefix" (`prefix_kl`) or "plain" (`sampled_kl`). batch_size:
    prompts scored at a time; "prefix" holds the logits of their responses for both models. seed: of the
    samples. The model's mode comes back as it was; random states are untouched. Raises InvalidArgument.
    """
    if not prompts:
        raise InvalidArgument("prompts", expected="at least one prompt", got="none", remedy="Pass token ids.")
    samples = sample_ids(
        model,
        prompts,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        progress=False,
    )
    return kl_of_samples(
        model,
        reference,
        prompts,
        samples,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        estimator=estimator,
        batch_size=batch_size,
    )


def kl_of_samples(
    model: Any,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sequence[Sequence[int]]],
    *,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    estimator: str = "prefix",
    batch_size: int = 4,
) -> SampledKL:
    """Estimate the KL of `model` to `reference` from samples of `model` that are at hand, S to each prompt (token ids).

    The samples must be exact ones (`sample_ids` at temperature 1, no top_p or top_k). Otherwise as `measure_kl`.
    """
    checks.one_of("estimator", estimator, ESTIMATORS)
    step = checks.integer("batch_size", batch_size, minimum=1)
    if not prompts or len(prompts) != len(samples):
        raise InvalidArgument(
            "samples", expected=f"{len(prompts)}, one list a prompt", got=len(samples), remedy="Pass both alike."
        )
    path = _NextTokens(pad_token_id) if estimator == "prefix" else PaddedPath(pad_token_id)
    device = next(model.parameters()).device
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    values = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(prompts), step):
            part = slice(start, start + step)
            groups = [PromptGroup(x, ys) for x, ys in zip(prompts[part], samples[part], strict=True)]
            inputs = {name: value.to(device) for name, value in path.collate(groups).items()}
            policy, anchor = path.logps(model, inputs), reference.logps(path, inputs)
            if estimator == "prefix":
                mask = inputs["response_mask"]
                policy = policy.new_zeros(mask.shape).masked_scatter(mask, prefix_kl(policy, anchor))
                values.append(policy.sum(-1).view(inputs["lengths"].shape))
            else:
                values.append(policy - anchor)
    cut = [y[-1] not in ends for ys in samples for y in ys]
    return _over_prompts(torch.cat(values))._replace(unfinished=sum(cut) / len(cut))


class _NextTokens(PaddedPath):
    """Next-token log-probabilities where response tokens are predicted, (K, V), in the place of their sums.

    As a path, so that the reference runs it on its own model in its own way (adapter off, autocast ...).
    """

    name = "next_tokens"

    def logps(
        self, model: Any, inputs: Mapping[str, torch.Tensor], collisions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        names = ("input_ids", "attention_mask", "position_ids")
        passed = {name: inputs[name] for name in names if name in inputs}
        mask = inputs["response_mask"]
        # Counted from the end: prompt tuning prepends positions of its own to the model's output.
        logits = model(**passed, use_cache=False).logits[:, -mask.shape[1] : -1]
        return token_logps(logits[mask[:, 1:]])


def _over_prompts(values: torch.Tensor) -> SampledKL:
    """Return mean and standard error of (X,) or (X, S) values, prompts being the independent draws."""
    if values.ndim not in (1, 2) or values.numel() == 0:
        raise InvalidArgument(
            "policy_logps",
            expected="shape (X,) or (X, S), not empty",
            got=f"shape {tuple(values.shape)}",
            remedy="Pass one summed log-probability per response.",
        )
    means = values.detach().cpu().double().view(values.shape[0], -1).mean(-1)
    count = means.shape[0]
    error = means.std().item() / math.sqrt(count) if count > 1 else math.nan
    return SampledKL(means.mean().item(), error, count)
