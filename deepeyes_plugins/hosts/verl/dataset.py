"""The data set: verl's own, with every row checked before a GPU is taken."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from verl.utils.dataset.rl_dataset import RLHFDataset

from deepeyes_plugins.data.checks import check_rl_parquet, rl_findings

logger = logging.getLogger(__name__)

BAD_ROWS = ("stop", "drop")


class DeepEyesDataset(RLHFDataset):
    """RL rows with a good image, a ground truth and a known environment.

    Two keys of verl's ``data`` section are ours::

        data:
          bad_rows: stop                    # or drop: train without them, and say which
          default_environment: deepeyes_v2  # of files without an env_name column
    """

    def _read_files_and_tokenize(self) -> None:
        """Check the files, then read them as verl does.

        Raises:
            DataError: Rows cannot be used and ``data.bad_rows`` is ``stop``; they are named.
            ValueError: ``data.bad_rows`` is neither ``stop`` nor ``drop``.
        """
        policy = self.config.get("bad_rows", "stop")
        if policy not in BAD_ROWS:
            raise ValueError(f"data.bad_rows is {policy!r}; it must be one of {BAD_ROWS}")
        self._default_environment = self.config.get("default_environment", "deepeyes_v2")
        reports = [
            check_rl_parquet(Path(file), default_environment=self._default_environment)
            for file in self.data_files
            if str(file).endswith(".parquet")
        ]
        for report in reports:
            for problem in report.warnings:
                logger.warning("%s", problem)
            if policy == "stop":
                report.raise_if_bad()
            elif not report.ok:
                logger.warning("rows are dropped. %s", report.describe())
        self._drops_rows = any(not report.ok for report in reports)
        super()._read_files_and_tokenize()

    def maybe_filter_out_long_prompts(self, dataframe: datasets.Dataset = None) -> Any:
        """Drop the bad rows, then do what verl does."""
        if self._drops_rows:
            usable = partial(_usable, default_environment=self._default_environment)
            dataframe = dataframe.filter(usable, desc="Dropping rows that cannot be used")
        return super().maybe_filter_out_long_prompts(dataframe)


def _usable(row: dict[str, Any], *, default_environment: str) -> bool:
    findings = rl_findings(row, default_environment=default_environment)
    return all(finding.level != "error" for finding in findings)
