"""LLM judge: decides whether an answer is equivalent to the reference answer."""
