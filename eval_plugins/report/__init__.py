"""Evaluation reports: VLMEvalKit's results, trajectories and published results."""
