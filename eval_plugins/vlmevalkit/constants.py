"""Words by which modules and files know each other; importing them costs nothing."""

from __future__ import annotations

UNANSWERED = "Unanswered."
"""Prediction of an episode that ended without a word: VLMEvalKit takes an empty one for a failed
request and asks again. It names no option and says neither yes nor no."""
NO_VERDICT = "No verdict of the judge: "
"""How the log of a sample begins that the judge could not score."""
RULES_ONLY = "exact_matching"
"""VLMEvalKit's name, as a judge, for scoring without one."""
SEARCH_COLUMNS = ("index", "image_file", "question", "answer", "candidates", "category")
"""Columns of a search benchmark's table. ``image_file``: JSON list of paths relative to the table's
folder, empty for a question without image. ``candidates``: JSON list of further answers that are
right, texts or ``{"range": [low, high]}``."""
