"""Reports on evaluations: what VLMEvalKit wrote, beside our trajectories and published figures."""
