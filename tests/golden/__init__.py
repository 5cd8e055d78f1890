"""Recorded answers of reference implementations, and the one replay of them.

    python -m tests.golden DIR      # every *.json directly in DIR

A file holds `algorithm`, `source`, `tolerance` {atol, rtol} and `cases` {name, inputs, params, expected}. Whatever a
case expects must come out of the project's own functions, given its inputs and parameters.
"""
