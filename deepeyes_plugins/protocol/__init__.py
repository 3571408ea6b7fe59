"""The protocol: actions of the model, observations, and their limits.

Text in, text out. This package imports no other package of this project and no framework.
"""
