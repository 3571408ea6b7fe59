"""The LLM judge: is an answer equivalent to the reference?"""
