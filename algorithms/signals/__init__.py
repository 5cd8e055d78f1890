"""Signals: what is measured for the turns of a batch before an estimator assigns credit."""
