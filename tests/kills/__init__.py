"""Runs that are killed at random moments and resumed, until they equal a run that was not. See `__main__`."""

import agents  # noqa: F401 - before torch, whose threads then sleep while they wait
