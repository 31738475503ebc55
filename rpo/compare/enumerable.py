"""A language model over an enumerable response set: the same policy as a table.

The vocabulary holds V tokens, prompts and responses use the same ones, and every response has
exactly L tokens, so the A = V^L responses exhaust the model's distribution: no mask, no end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.fields import hold
from rpo.llm.logps.logprobs import token_logps

MAX_RESPONSES = 4096
HEADS = 4


@dataclass(frozen=True, eq=False)
class EnumerableLM:
    """A causal language model with X prompts, (X, P) token ids, and all responses of `length` tokens.

    model: a transformers causal language model whose vocabulary is exactly the V tokens. Response a
    is a's digits in base V, most significant first. Raises InvalidArgument.
    """

    model: Any
    prompts: torch.Tensor
    length: int

    def __post_init__(self) -> None:
        checks.instance("model", self.model, torch.nn.Module, remedy="Pass a transformers causal language model.")
        checks.instance("prompts", self.prompts, torch.Tensor)
        hold(self, checks.integer, "length", minimum=1)
        checks.instance("model", self.model, torch.nn.Module)
        checks.instance("prompts", self.prompts, torch.Tensor)
        if self.prompts.ndim != 2 or self.prompts.shape[1] < 1:
            raise InvalidArgument(
                "prompts", expected="shape (X, P)", got=tuple(self.prompts.shape), remedy="Pass equally long prompts."
            )
        if int(self.prompts.max()) >= self.vocab_size or int(self.prompts.min()) < 0:
            raise InvalidArgument(
                "prompts",
                expected=f"token ids in [0, {self.vocab_size - 1}]",
                got=f"[{int(self.prompts.min())}, {int(self.prompts.max())}]",
                remedy="Use the model's own tokens.",
            )
        if self.num_responses > MAX_RESPONSES:
            raise InvalidArgument(
                "length",
                expected=f"at most {MAX_RESPONSES} responses V^L",
                got=f"{self.vocab_size}^{self.length} = {self.num_responses}",
                remedy="Use fewer tokens or shorter responses.",
            )

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.config.vocab_size)

    @property
    def num_responses(self) -> int:
        """A = V^L."""
        return self.vocab_size**self.length

    @property
    def responses(self) -> torch.Tensor:
        """(A, L), the token ids of every response."""
        return _all_sequences(self.vocab_size, self.length)

    def logps(self) -> torch.Tensor:
        """Return log pi(a|x) of every response, (X, A), in nats, differentiable; rows sum to one.

        The V^(L-1) prefixes are scored once; the last position gives all V continuations.
        """
        v, length, (x, p) = self.vocab_size, self.length, self.prompts.shape
        prefixes = _all_sequences(v, length - 1)
        rows = torch.cat([self.prompts.repeat_interleave(len(prefixes), dim=0), prefixes.repeat(x, 1)], dim=1)
        logits = self.model(input_ids=rows, use_cache=False).logits[:, p - 1 :]
        logps = token_logps(logits)
        spent = logps[:, :-1].gather(-1, prefixes.repeat(x, 1)[:, :, None]).squeeze(-1).sum(-1)
        return (spent[:, None] + logps[:, -1]).reshape(x, self.num_responses)

    def policy(self) -> Array:
        """Return pi, (X, A), float64."""
        with torch.no_grad():
            return np.asarray(self.logps().double().exp().numpy())

    def bandit(
        self, reward: Any = None, *, reward_bound: float | None = None, behavior: Any = None
    ) -> ContextualBandit:
        """Return the contextual bandit whose reference is this model's present policy, d0 uniform."""
        x = len(self.prompts)
        policy = self.policy()
        return ContextualBandit(
            d0=np.full(x, 1.0 / x),
            reference=policy / policy.sum(axis=1, keepdims=True),
            reward=reward,
            reward_bound=reward_bound,
            behavior=behavior,
            name=f"enumerable(prompts={x}, vocab={self.vocab_size}, length={self.length})",
            response_labels=tuple("".join(map(str, row)) for row in self.responses.tolist()),
        )


def _all_sequences(v: int, length: int) -> torch.Tensor:
    """Return every sequence of `length` tokens, (v^length, length), in lexicographic order."""
    index = torch.arange(v**length)[:, None]
    return index // v ** torch.arange(length - 1, -1, -1) % v


def tiny_gpt2(
    *,
    prompts: int = 3,
    vocab_size: int = 4,
    length: int = 3,
    hidden_size: int = 48,
    layers: int = 2,
    spread: float = 0.5,
    rng: Any,
) -> EnumerableLM:
    """Return a randomly initialised GPT-2 in float64 over V^L responses, without dropout.

    Learned positions matter here: under rotary ones a prompt and a response of one repeated token
    look the same at every position, so some tables are out of reach. spread: standard deviation of
    the first logits, so that pi_ref is not uniform. The global torch random state is left as it was.
    """
    x = checks.integer("prompts", prompts, minimum=1)
    v = checks.integer("vocab_size", vocab_size, minimum=2)
    length = checks.integer("length", length, minimum=1)
    width = checks.integer("hidden_size", hidden_size, minimum=8)
    if width % HEADS:
        raise InvalidArgument(
            "hidden_size", expected=f"a multiple of {HEADS}", got=width, remedy="It is shared among as many heads."
        )
    generator = checks.generator("rng", rng)
    digits = max(1, int(np.ceil(np.log(x) / np.log(v) - 1e-12)))
    config = GPT2Config(
        vocab_size=v,
        n_positions=digits + length,
        n_embd=width,
        n_layer=checks.integer("layers", layers, minimum=1),
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        model = GPT2LMHeadModel(config).double()
        with torch.no_grad():
            for embedding in (model.transformer.wte, model.transformer.wpe):
                embedding.weight.normal_(std=1.0)
            # The final layer norm feeds the head vectors of length sqrt(hidden_size).
            model.lm_head.weight.normal_(std=checks.positive("spread", spread) / width**0.5)
    model.eval()
    return EnumerableLM(model=model, prompts=_all_sequences(v, digits)[:x], length=length)
