"""Rewards of finished trajectories: accuracy, format, tool use, and the DeepEyes scores."""
