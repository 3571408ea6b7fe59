"""Calls to other people's servers: time limits, retries, circuit breakers, limits, counters."""
