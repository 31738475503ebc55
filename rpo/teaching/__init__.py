"""What the notebooks need beside the laboratory: exercises that check themselves, and sliders that become figures."""

from rpo.teaching.controls import show_figures, sliders
from rpo.teaching.exercise import Exercise, answer, check, exercises, hint
from rpo.teaching.scores import gather, save, summary

__all__ = ["Exercise", "answer", "check", "exercises", "gather", "hint", "save", "sliders", "summary"]

show_figures()
