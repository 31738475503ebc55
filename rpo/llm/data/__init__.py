"""Preference data: any of TRL's formats to tokenised pairs, with every exception refused or counted."""

from rpo.llm.data.check import DataCheck, LengthBias, check_pairs
from rpo.llm.data.conditions import best_by_direction, controlled, reward_augmented, with_condition
from rpo.llm.data.formats import Preference, read_preference
from rpo.llm.data.loading import load_preferences
from rpo.llm.data.mixture import Mixture, mix
from rpo.llm.data.pairs import PreparedPairs, TokenizedGroup, TokenizedPair
from rpo.llm.data.report import DataReport, RefusedRow
from rpo.llm.data.scored import Binarized, BinarizeReport, binarize
from rpo.llm.data.streaming import PairStream, stream_pairs
from rpo.llm.data.tokenize import PairEncoder, prepare_pairs
from rpo.llm.data.transforms import Derived, TransformReport, agreed, agreement, singles, ultrafeedback
from rpo.llm.data.truncation import Limits

__all__ = [
    "BinarizeReport",
    "Binarized",
    "DataCheck",
    "DataReport",
    "Derived",
    "LengthBias",
    "Limits",
    "Mixture",
    "PairEncoder",
    "PairStream",
    "Preference",
    "PreparedPairs",
    "RefusedRow",
    "TokenizedGroup",
    "TokenizedPair",
    "TransformReport",
    "agreed",
    "agreement",
    "best_by_direction",
    "binarize",
    "check_pairs",
    "controlled",
    "load_preferences",
    "mix",
    "prepare_pairs",
    "read_preference",
    "reward_augmented",
    "singles",
    "stream_pairs",
    "ultrafeedback",
    "with_condition",
]
