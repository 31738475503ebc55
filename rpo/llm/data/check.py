"""What is in the pairs: the numbers of `rpo data check`, and samples as the model sees them."""

from __future__ import annotations

import hashlib
import math
import textwrap
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.pairs import PreparedPairs, TokenizedGroup

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
SHOWN_CHARACTERS = 600
LABELS = {True: b"desirable", False: b"undesirable"}
CONTRARY = {
    "rows": "occur with both labels", "pairs": "occur both ways round", "lists": "occur in several orders"
}  # fmt: skip
# Reasons of refusals whose key, its underscores aside, does not say it.
REASONS = {
    "none": "an empty cell", "label": "no label that can be read", "media": "images, audio or video",
    "wrong_type": "a value of another type", "roles": "roles out of order", "scores": "scores that do not compare",
    "mixed": "of another kind than the first", "printed": "a list printed as text", "no_prompt": "without a prompt",
    "prompt_merged": "a prompt whose every token merges with a response", "weight": "no weight above 0",
    "boundary": "prompt and response do not split", "template": "what the chat template does not take",
    "base_count": "another number of base responses", "vocabulary": "ids outside the vocabulary",
}  # fmt: skip
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

    Counts of groups (pairs, lists, or responses alone) unless named otherwise; sizes: groups by their number of
    responses. unpaired: how many are alone, labelled: how many of those have a label, desirable: how many a good one.
    duplicates: repeat an earlier one. identical: hold a response twice. contradictions: the same responses in several
    orders, or one alone with both labels. length_bias: of the best response against the worst; None for responses
    alone. empty_responses, missing_ends, several_ends: responses without a token but the end, without an end token,
    with an end token before their last. unknown_tokens: tokens the tokenizer has no word for. samples: as text, end and
    boundary marked.
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
    sizes: dict[int, int]
    unpaired: int
    labelled: int
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
        responses = sum(size * count for size, count in self.sizes.items())
        kind = _kind(self.sizes)
        lists = kind == "lists"
        best, worst = ("best", "worst") if lists else ("chosen", "rejected")
        found = f"{self.pairs} " + ("responses alone" if kind == "rows" else kind)
        if self.labelled:
            found += f", {self.desirable} of them desirable"
        if lists:
            sized = ", ".join(f"{count} of {size}" for size, count in self.sizes.items())
            found += f" of {responses} responses ({sized})"
        rows = [f"{report['rows']} rows, {found}"]
        rows += [f"  refused: {n} ({REASONS.get(key, key.replace('_', ' '))})" for key, n in report["refused"].items()]
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
            f"  in the {best} response": report["chosen_truncated"],
            f"  in {'another' if lists else 'the rejected'} response": report["rejected_truncated"],
            f"repeat an earlier {kind.removesuffix('s')}": self.duplicates,
            "a response twice" if lists else "chosen and rejected identical": self.identical,
            CONTRARY[kind]: self.contradictions,
            "boundary moved by a merge": report["boundary_merges"],
        }
        if report["ties"] or lists:
            counts["tied, in the order of the row"] = report["ties"]
        if kind == "rows":
            counts = {name.replace("chosen ", ""): n for name, n in counts.items() if "rejected" not in name}
        rows += ["", kind, *_counted(counts, self.pairs)]
        counts = {
            "empty": self.empty_responses,
            "without an end token": self.missing_ends,
            "  cut when they were made": report["cut_when_made"],
            "with an end token before the last": self.several_ends,
            "rewritten by the template": report["rewritten"],
            "of several messages": report["several_messages"],
        }
        if report["unscored"]:
            counts["left out without a score"] = report["unscored"]
        rows += ["", "responses" + (" (two a pair)" if kind == "pairs" else "")]
        rows += _counted(counts, responses)
        often = f"the most frequent in {self.most_repeated_prompt} {kind}"
        rows += ["", f"prompts: {self.distinct_prompts} distinct, {often}"]
        rows += (
            []
            if bias is None
            else [
                f"length: {best} longer in {bias.chosen_longer}, {worst} longer in {bias.rejected_longer}, "
                f"equal in {bias.equal}",
                f"  share of longer {best} {bias.share:.3f}, 95% interval [{bias.low:.3f}, {bias.high:.3f}]; "
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
    prompts: Counter[bytes] = Counter()
    seen: Counter[tuple[bytes, ...]] = Counter()
    sizes: Counter[int] = Counter()
    lengths: dict[str, array[int]] = {part: array("q") for part in ("prompt", "best", "worst", "others", "longest")}
    identical = empty = missing = several = unknowns = 0
    for pair in prepared:
        parts = (pair.prompt_ids, *pair.own)
        digests = tuple(map(_digest, parts)) + (() if pair.label is None else (LABELS[pair.label],))
        prompts[digests[0]] += 1
        seen[digests] += 1
        sizes[len(pair.own)] += 1
        identical += len(set(pair.own)) < len(pair.own)
        counted = [len(ids) for ids in parts]
        for part, count in (("prompt", counted[0]), ("best", counted[1]), ("worst", counted[-1])):
            lengths[part].append(count)
        lengths["others"].extend(counted[2:])
        lengths["longest"].append(counted[0] + max(counted[1:]))
        for ids in parts[1:]:
            marks = sum(token in ends for token in ids)
            empty += len(ids) == marks
            missing += bool(ends) and ids[-1] not in ends
            several += marks > (ids[-1] in ends) and not pair.scored
        unknowns += 0 if unknown is None else sum(ids.count(unknown) for ids in parts)
    unpaired = sizes[1]
    compared = [np.asarray(lengths[part]) for part in ("best", "worst")]
    report = prepared.report.to_dict()
    found: dict[str, Any] = {
        "pairs": len(prepared),
        "report": report,
        "lengths": _quantiles(lengths, max(sizes)),
        "truncated": report["truncated"],
        "distinct_prompts": len(prompts),
        "most_repeated_prompt": max(prompts.values()),
        "duplicates": sum(count - 1 for count in seen.values()),
        "identical": identical,
        "contradictions": _contradictions(seen),
        "empty_responses": empty,
        "missing_ends": missing,
        "several_ends": several,
        "unknown_tokens": unknowns,
        "sizes": dict(sorted(sizes.items())),
        "unpaired": unpaired,
        "labelled": sum(pair.label is not None for pair in prepared),
        "desirable": sum(bool(pair.label) for pair in prepared),
        "length_bias": None if unpaired else length_bias(compared[0], compared[1]),
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


def _counted(counts: Mapping[str, int], total: int) -> list[str]:
    """Return a line for each count that is not zero, and one that names what was counted and not found."""
    rows = [f"  {name:<30}{n:>8}  {_percent(n, total)}" for name, n in counts.items() if n]
    none = ", ".join(name for name, n in counts.items() if not n and not name.startswith(" "))
    return rows + (textwrap.wrap(f"none: {none}", 98, initial_indent="  ", subsequent_indent="    ") if none else [])


def _warnings(found: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return a plain sentence for each thing that deserves a look before training."""
    pairs, report, bias = found["pairs"], found["report"], found["length_bias"]
    truncated = report["chosen_truncated"] + report["rejected_truncated"]
    responses = sum(size * count for size, count in found["sizes"].items())
    kind = _kind(found["sizes"])
    unexplained = found["missing_ends"] - truncated - report["cut_when_made"]
    several = {name: count for name, count in report["formats"].items() if count}
    conditions = {
        f"{_percent(truncated, responses)} of the responses lost their end to max_length": truncated > 0.1 * pairs,
        f"{unexplained} responses lack an end token though nothing cut them": unexplained > 0,
        f"{found['several_ends']} responses have an end token before their last": found["several_ends"] > 0,
        f"{found['identical']} {kind} prefer a response to itself": found["identical"] > 0,
        f"{found['contradictions']} {kind} {CONTRARY[kind]}": found["contradictions"] > 0,
        "all rows have one label": found["labelled"] > 0 and found["desirable"] in (0, pairs),
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


def _quantiles(lengths: dict[str, array[int]], most: int) -> dict[str, dict[str, int]]:
    """Return quantiles by part; most: how many responses a group has, which decides what the parts are called."""
    names = {"prompt": "prompt", "best": {1: "response", 2: "chosen"}.get(most, "best"), "longest": "longest"}
    if most > 1:
        names |= {"others": "rejected" if most == 2 else "others"}
    order = sorted(names, key=("prompt", "best", "others", "longest").index)
    return {
        names[part]: {name: int(np.quantile(lengths[part], q, method="nearest")) for name, q in QUANTILES.items()}
        for part in order
    }


def _contradictions(seen: Counter[tuple[bytes, ...]]) -> int:
    """Return how many groups occur in another order too, or responses alone with the other label."""
    ways: dict[tuple[bytes, ...], list[int]] = {}
    for (prompt, *rest), count in seen.items():
        key = (prompt, *sorted(part for part in rest if part not in LABELS.values()))
        ways.setdefault(key, []).append(count)
    return sum(sum(counts) for counts in ways.values() if len(counts) > 1)


def _digest(ids: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()


def _kind(sizes: Collection[int]) -> str:
    return "rows" if set(sizes) == {1} else "lists" if max(sizes) > 2 else "pairs"


def _percent(count: int, total: int) -> str:
    return f"{100.0 * count / total:.1f}%"


def _sample(pair: TokenizedGroup, tokenizer: PreTrainedTokenizerBase | None, ends: Collection[int]) -> str:
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
    names = ["chosen", "rejected"] if len(pair.own) == 2 else [f"{k + 1}." for k in range(len(pair.own))]
    names = names if pair.label is None else ["good" if pair.label else "bad"]
    names = [f"{name} {score:g}" for name, score in zip(names, pair.scores, strict=True)] if pair.scores else names
    for name, ids in zip(names, pair.own, strict=True):
        complete = ids[-1] in ends
        words = text(ids[:-1] if complete else ids)
        if len(words) > SHOWN_CHARACTERS:
            words = f"{words[: SHOWN_CHARACTERS // 2]} ... {words[-SHOWN_CHARACTERS // 2 :]}"
        rows.append(f"  {name:<8} {words}" + (f" [end {text(ids[-1:])}]" if complete else " [no end]"))
        rows.append(f"           boundary {tokens(pair.prompt_ids[-3:])} | {tokens(ids[:3])}")
    return "\n".join(rows)
