"""What the notebooks need beside the laboratory: exercises that check themselves, and sliders that become figures."""

from rpo.teaching.controls import show_figures, sliders
from rpo.teaching.exercise import Exercise, answer, check, exercises, hint

__all__ = ["Exercise", "answer", "check", "exercises", "hint", "sliders"]

show_figures()
