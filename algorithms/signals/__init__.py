"""Signals: measurements of the turns of a batch, made before an estimator assigns credit."""
