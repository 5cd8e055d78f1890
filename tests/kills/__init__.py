"""Runs that are killed at random moments and resumed, until they equal a run that was not. See `__main__`."""
