"""Conformance suites: does a kernel or a search provider keep its contract?"""
