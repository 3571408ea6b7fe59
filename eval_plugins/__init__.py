"""Plugins for evaluation harnesses."""
