"""Named presets of what a trajectory acts on: dialect, tools and limits."""
