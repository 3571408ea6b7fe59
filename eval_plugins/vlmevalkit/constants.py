"""Constants shared by the modules of the plugin; importing them loads nothing else."""

from __future__ import annotations

UNANSWERED = "Unanswered."
"""Prediction of a trajectory without any answer text. VLMEvalKit would treat an empty prediction as
a failed request and repeat it. The text names no option and contains neither yes nor no."""
NO_VERDICT = "No verdict of the judge: "
"""Prefix of the log of a sample that the judge could not score."""
RULES_ONLY = "exact_matching"
"""VLMEvalKit's judge name for scoring without a judge."""
SEARCH_COLUMNS = ("index", "image_file", "question", "answer", "candidates", "category")
"""Columns of a search benchmark's table. ``image_file``: JSON list of paths relative to the table's
folder, empty for a question without image. ``candidates``: JSON list of further accepted answers,
texts or ``{"range": [low, high]}``."""
