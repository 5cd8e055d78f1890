"""Signals: measurements of the turns and tokens of a batch, made before an estimator assigns credit."""
