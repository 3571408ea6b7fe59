"""The quickstart: a synthetic task that a tiny model learns on a laptop, and writers for its data.

Nothing here imports a training framework; the tiny model itself lives in
`deepeyes_plugins.hosts.transformers`.
"""
