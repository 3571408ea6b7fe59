"""Tests; a package, so that one may use another's servers."""
