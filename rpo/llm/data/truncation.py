"""How a pair that is too long is shortened, both responses under the same prompt."""

from __future__ import annotations

from dataclasses import dataclass

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.fields import hold

TRUNCATION_MODES = ("keep_end", "drop")

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in tokens. max_length: of prompt and response together; None for no limit.

    A pair is too long if its prompt and longest response exceed max_length. "drop" leaves it out.
    "keep_end" cuts the prompt from the left, never below max_prompt_length (half of max_length by
    default) nor further than needed, and then the responses from the right. Raises InvalidArgument.
    Source: the recipe of Zephyr, which the paper follows, except that there a prompt is cut to
    max_prompt_length even where more would fit.
    """

    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation_mode: str = "keep_end"

    def __post_init__(self) -> None:
        checks.one_of("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        if self.max_length is None:
            if self.max_prompt_length is not None:
                remedy = "Set max_length too; alone it would do nothing."
                raise InvalidArgument(
                    "max_prompt_length", expected="None where max_length is None", got=self.max_prompt_length,
                    remedy=remedy,
                )  # fmt: skip
            return
        hold(self, checks.integer, "max_length", minimum=2)
        if self.max_prompt_length is not None:  # at least one token is left for a response
            hold(self, checks.integer, "max_prompt_length", minimum=1, maximum=self.max_length - 1)

    def fit(self, prompt: Ids, responses: list[Ids], *, first: int | None = None) -> tuple[Ids, list[Ids]] | None:
        """Return prompt and responses within the limits, neither ever empty, or None to drop the pair.

        first: a token, BOS, that stays first if the prompt begins with it.
        """
        longest = max(map(len, responses))
        if self.max_length is None or len(prompt) + longest <= self.max_length:
            return prompt, responses
        if self.truncation_mode == "drop":
            return None
        kept = max(self.max_prompt_length or self.max_length // 2, self.max_length - longest)
        if len(prompt) > kept:
            # Some tokenizers call the opening of every turn their BOS; only a token that occurs once is one.
            head = prompt[:1] if prompt[0] == first and prompt.count(prompt[0]) == 1 else ()
            prompt = head + prompt[len(prompt) - kept + len(head) :]
        room = self.max_length - len(prompt)
        return prompt, [response[:room] for response in responses]
