"""Small real data sets that ship with the package, each with its source."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rpo.bandit.tables import PreferenceTable, read_preferences


def citations_path() -> Path:
    """Return the path of the citation counts, a CSV with columns chosen, rejected, count (12 rows)."""
    return Path(str(resources.files(__name__).joinpath("citations.csv")))


def load_citations() -> PreferenceTable:
    """Return citations between four statistics journals: one prompt, A = 4 responses, N = 3727.

    A citation of journal i by journal j is a win of i over j; citations of a journal by itself are
    left out. Source: Stigler (1994), "Citation patterns in the journals of statistics and
    probability", Statistical Science 9, 94-108, as tabulated in Agresti (2002), Categorical Data
    Analysis, 2nd ed., p. 448, and in the R package BradleyTerry2 (`citations`).
    """
    return read_preferences(citations_path())
