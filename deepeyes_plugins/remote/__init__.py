"""HTTP clients of remote services: timeouts, retries, circuit breakers, rate limits, counters."""
