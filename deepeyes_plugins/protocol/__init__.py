"""The language the model speaks: what it may emit, what comes back, and the limits of both.

Text in, text out. This package imports nothing else of ours and no framework.
"""
