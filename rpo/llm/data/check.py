"""What is in the pairs: the numbers of `rpo data check`, and samples as the model sees them."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.pairs import PreparedPairs, TokenizedPair

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
SHOWN_CHARACTERS = 600
LABELS = {True: b"desirable", False: b"undesirable"}
Z95 = 1.959963984540054


@dataclass(frozen=True)
class LengthBias:
    """How far length alone tells the chosen response: pairs of equal length are left out of the share.

    share: of pairs whose chosen response is longer, with the 95% Wilson interval [low, high].
    mean_difference: tokens, chosen less rejected. rank_correlation: matched-pairs rank-biserial, in
    [-1, 1]; 0 without an imbalance. Source: Wilson 1927; Kerby 2014.
    """

    chosen_longer: int
    rejected_longer: int
    equal: int
    share: float
    low: float
    high: float
    mean_difference: float
    rank_correlation: float


@dataclass(frozen=True)
class DataCheck:
    """The state of a prepared dataset. lengths: quantiles in tokens, by part.

    Counts of pairs, or of responses alone, unless named otherwise; unpaired: how many are alone, desirable: how many of
    those. duplicates: repeat an earlier one. contradictions: pairs of a prompt that occur both ways round, responses
    alone that occur with both labels. length_bias: None for responses alone. empty_responses, missing_ends,
    several_ends: responses without a token but the end, without an end token, with an end token before their last.
    unknown_tokens: tokens the tokenizer has no word for. samples: as text, end and boundary marked.
    """

    pairs: int
    report: dict[str, Any]
    lengths: dict[str, dict[str, int]]
    truncated: int
    distinct_prompts: int
    most_repeated_prompt: int
    duplicates: int
    identical: int
    contradictions: int
    empty_responses: int
    missing_ends: int
    several_ends: int
    unknown_tokens: int
    unpaired: int
    desirable: int
    length_bias: LengthBias | None
    samples: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    def render(self) -> str:
        """Return the report as plain text, at most about 100 columns wide but for the samples."""
        bias, report = self.length_bias, self.report
        each = 1 if self.unpaired else 2
        alone = f"{self.pairs} responses alone, {self.desirable} of them desirable"
        rows = [f"{report['rows']} rows, " + (alone if self.unpaired else f"{self.pairs} pairs")]
        rows += [f"  refused: {count} ({reason})" for reason, count in report["refused"].items()]
        if report["dropped_too_long"]:
            rows.append(f"  dropped as too long: {report['dropped_too_long']}")
        rows += ["", "tokens     " + "".join(f"{name:>8}" for name in QUANTILES)]
        rows += [
            f"  {part:<9}" + "".join(f"{value:>8}" for value in values.values())
            for part, values in self.lengths.items()
        ]
        counts = {
            "truncated": self.truncated,
            "  in the prompt": report["prompts_truncated"],
            "  in the chosen response": report["chosen_truncated"],
            "  in the rejected response": report["rejected_truncated"],
            "repeat an earlier pair": self.duplicates,
            "chosen and rejected identical": self.identical,
            "occur both ways round": self.contradictions,
            "boundary moved by a merge": report["boundary_merges"],
        }
        if self.unpaired:
            counts = {name.replace("chosen ", ""): n for name, n in counts.items() if "rejected" not in name}
            counts["occur with both labels"] = counts.pop("occur both ways round")
        rows += ["", "rows" if self.unpaired else "pairs"] + [
            f"  {name:<30}{n:>8}  {_percent(n, self.pairs)}" for name, n in counts.items()
        ]
        counts = {
            "empty": self.empty_responses,
            "without an end token": self.missing_ends,
            "  cut when they were made": report["cut_when_made"],
            "with an end token before the last": self.several_ends,
            "rewritten by the template": report["rewritten"],
            "of several messages": report["several_messages"],
        }
        rows += ["", "responses" + ("" if self.unpaired else " (two a pair)")]
        rows += [f"  {name:<30}{n:>8}  {_percent(n, each * self.pairs)}" for name, n in counts.items()]
        often = f"the most frequent in {self.most_repeated_prompt} {'rows' if self.unpaired else 'pairs'}"
        rows += ["", f"prompts: {self.distinct_prompts} distinct, {often}"]
        rows += (
            []
            if bias is None
            else [
                f"length: chosen longer in {bias.chosen_longer}, rejected longer in {bias.rejected_longer}, "
                f"equal in {bias.equal}",
                f"  share of longer chosen {bias.share:.3f}, 95% interval [{bias.low:.3f}, {bias.high:.3f}]; "
                f"mean difference {bias.mean_difference:+.1f} tokens; rank correlation {bias.rank_correlation:+.3f}",
            ]
        )
        others = {
            "columns that nothing reads": report["unused_columns"],
            "left out by the template": report["unwritten"],
            "nulls left out of tool calls and tools": {"in all": report["nulls"]} if report["nulls"] else {},
        }
        for name, found in others.items():
            if found:
                rows.append(f"{name}: " + ", ".join(f"{key} ({count})" for key, count in found.items()))
        rows += [""] * bool(self.warnings) + [f"warning: {warning}" for warning in self.warnings]
        rows += [f"refusal: {message}" for message in report["messages"]]
        return "\n".join([*rows, *(f"\n{sample}" for sample in self.samples)])


def check_pairs(
    prepared: PreparedPairs, tokenizer: PreTrainedTokenizerBase | None = None, *, samples: int = 3
) -> DataCheck:
    """Return what is in the prepared pairs; without a tokenizer, samples show token ids. Raises InvalidArgument.

    samples: how many, evenly spaced. End tokens are those that preparation wrote, and the tokenizer's EOS.
    """
    if tokenizer is not None:
        checks.instance("tokenizer", tokenizer, PreTrainedTokenizerBase)
    if not len(checks.instance("prepared", prepared, PreparedPairs)):
        raise InvalidArgument("prepared", expected="at least one pair", got="none", remedy="Check the source.")
    shown = min(checks.integer("samples", samples, minimum=0), len(prepared))
    ends = set(prepared.report.ends)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    unknown = None if tokenizer is None else tokenizer.unk_token_id
    unpaired = sum(pair.label is not None for pair in prepared)
    each = 1 if unpaired else 2
    lengths = np.empty((len(prepared), 1 + each), dtype=np.int64)
    prompts: Counter[bytes] = Counter()
    seen: Counter[tuple[bytes, bytes, bytes]] = Counter()
    empty = missing = several = unknowns = 0
    for k, pair in enumerate(prepared):
        parts = (pair.prompt_ids, *pair.own)
        lengths[k] = [len(ids) for ids in parts]
        digests = tuple(map(_digest, parts)) + (() if pair.label is None else (LABELS[pair.label],))
        prompts[digests[0]] += 1
        seen[digests] += 1  # type: ignore[index]
        for ids in parts[1:]:
            marks = sum(token in ends for token in ids)
            empty += len(ids) == marks
            missing += bool(ends) and ids[-1] not in ends
            several += marks > (ids[-1] in ends) and not pair.scored
        unknowns += 0 if unknown is None else sum(ids.count(unknown) for ids in parts)
    report = prepared.report.to_dict()
    found: dict[str, Any] = {
        "pairs": len(prepared),
        "report": report,
        "lengths": _quantiles(lengths),
        "truncated": report["truncated"],
        "distinct_prompts": len(prompts),
        "most_repeated_prompt": max(prompts.values()),
        "duplicates": sum(count - 1 for count in seen.values()),
        "identical": sum(count for (_, a, b), count in seen.items() if a == b),
        "contradictions": sum(
            count for key, count in seen.items() if (other := _contrary(key)) != key and other in seen
        ),
        "empty_responses": empty,
        "missing_ends": missing,
        "several_ends": several,
        "unknown_tokens": unknowns,
        "unpaired": unpaired,
        "desirable": sum(bool(pair.label) for pair in prepared),
        "length_bias": None if unpaired else length_bias(lengths[:, 1], lengths[:, 2]),
    }
    places = np.linspace(0, len(prepared) - 1, shown).round().astype(int)
    rendered = tuple(_sample(prepared[int(k)], tokenizer, ends) for k in dict.fromkeys(places.tolist()))
    unused = prepared.report.unused_prompts()
    sentences = [*_warnings(found, tokenizer), *([unused] if unused else [])]
    return DataCheck(**found, samples=rendered, warnings=tuple(sentences))


def length_bias(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> LengthBias:
    """Return the imbalance of lengths, (N,) tokens each."""
    difference = chosen - rejected
    longer, shorter = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = wilson(longer, longer + shorter)
    sizes, index, counts = np.unique(np.abs(difference[difference != 0]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[index] if sizes.size else np.zeros(0)  # ties share their mean rank
    signed = float(ranks @ np.sign(difference[difference != 0]))
    return LengthBias(
        chosen_longer=longer,
        rejected_longer=shorter,
        equal=len(difference) - longer - shorter,
        share=longer / (longer + shorter) if longer + shorter else 0.5,
        low=low,
        high=high,
        mean_difference=float(difference.mean()),
        rank_correlation=signed / float(ranks.sum()) if ranks.size else 0.0,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion, (0, 1) without trials. Source: Wilson 1927."""
    if not trials:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95**2
    centre, spread = p + z2 / (2 * trials), Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, (centre - spread) / (1 + z2 / trials)), min(1.0, (centre + spread) / (1 + z2 / trials))


def _warnings(found: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return a plain sentence for each thing that deserves a look before training."""
    pairs, report, bias = found["pairs"], found["report"], found["length_bias"]
    truncated = report["chosen_truncated"] + report["rejected_truncated"]
    each = 1 if found["unpaired"] else 2
    unexplained = found["missing_ends"] - truncated - report["cut_when_made"]
    several = {name: count for name, count in report["formats"].items() if count}
    conditions = {
        f"{_percent(truncated, each * pairs)} of the responses lost their end to max_length": truncated > 0.1 * pairs,
        f"{unexplained} responses lack an end token though nothing cut them": unexplained > 0,
        f"{found['several_ends']} responses have an end token before their last": found["several_ends"] > 0,
        f"{found['identical']} pairs prefer a response to itself": found["identical"] > 0,
        f"{found['contradictions']} "
        + ("rows occur with both labels" if found["unpaired"] else "pairs occur both ways round"): found[
            "contradictions"
        ]
        > 0,
        "all rows have one label": found["unpaired"] > 0 and found["desirable"] in (0, pairs),
        f"{found['unknown_tokens']} tokens are unknown to the tokenizer": found["unknown_tokens"] > 0,
        f"{report['rewritten']} responses were changed by the chat template": report["rewritten"] > 0,
        f"rows are of several formats: {several}": len(several) > 1,
        "rows are plain text although the tokenizer has a chat template; the model sees no turns": bool(
            several.get("text") and tokenizer is not None and tokenizer.chat_template
        ),
    }
    if bias is not None:
        sides = {"longer": (bias.share, bias.low > 0.6), "shorter": (1 - bias.share, bias.high < 0.4)}
        for side, (share, holds) in sides.items():
            conditions[f"the {side} response is chosen in {share:.0%} of the pairs; length may be what is learned"] = (
                holds
            )
    return [sentence for sentence, holds in conditions.items() if holds]


def _quantiles(lengths: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    names = ("prompt", "chosen", "rejected") if lengths.shape[1] == 3 else ("prompt", "response")
    parts = dict(zip(names, lengths.T, strict=True))
    parts["longest"] = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    return {
        part: {name: int(np.quantile(values, q, method="nearest")) for name, q in QUANTILES.items()}
        for part, values in parts.items()
    }


def _contrary(key: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return what contradicts a row: the pair the other way round, the response with the other label."""
    prompt, first, second = key
    if second in LABELS.values():
        return prompt, first, LABELS[second != LABELS[True]]
    return prompt, second, first


def _digest(ids: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()


def _percent(count: int, total: int) -> str:
    return f"{100.0 * count / total:.1f}%"


def _sample(pair: TokenizedPair, tokenizer: PreTrainedTokenizerBase | None, ends: Collection[int]) -> str:
    """Return a pair as text: line breaks escaped, tokens at the boundary apart, the end named or said to be missing."""

    def text(ids: Sequence[int]) -> str:
        if tokenizer is None:
            return " ".join(map(str, ids))
        decoded = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return decoded.replace("\\", "\\\\").replace("\n", "\\n")

    def tokens(ids: Sequence[int]) -> str:
        names = ids if tokenizer is None else tokenizer.convert_ids_to_tokens(list(ids))
        return " ".join(map(repr, names))

    prompt = text(pair.prompt_ids)
    rows = [f"row {pair.row}"]
    rows.append("  prompt   " + (prompt if len(prompt) <= SHOWN_CHARACTERS else "..." + prompt[-SHOWN_CHARACTERS:]))
    names = ("chosen", "rejected") if pair.label is None else ("good" if pair.label else "bad",)
    for name, ids in zip(names, pair.own, strict=True):
        complete = ids[-1] in ends
        words = text(ids[:-1] if complete else ids)
        if len(words) > SHOWN_CHARACTERS:
            words = f"{words[: SHOWN_CHARACTERS // 2]} ... {words[-SHOWN_CHARACTERS // 2 :]}"
        rows.append(f"  {name:<8} {words}" + (f" [end {text(ids[-1:])}]" if complete else " [no end]"))
        rows.append(f"           boundary {tokens(pair.prompt_ids[-3:])} | {tokens(ids[:3])}")
    return "\n".join(rows)
