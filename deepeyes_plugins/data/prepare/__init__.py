"""Preparation of published data for the recipes, with a report of every change."""

from deepeyes_plugins.data.prepare.parts import REPORT_NAME, Prepared, Summary
from deepeyes_plugins.data.prepare.rl import prepare_rl
from deepeyes_plugins.data.prepare.sft import prepare_sft

__all__ = ["REPORT_NAME", "Prepared", "Summary", "prepare_rl", "prepare_sft"]
