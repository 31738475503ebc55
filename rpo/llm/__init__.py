"""The practice: the same objective on language models (torch and transformers; never cvxpy)."""

from rpo.llm.logprobs import response_logps, token_logps

__all__ = ["response_logps", "token_logps"]
