"""TextWorldExpress: eight kinds of small text games, played by the real engine."""
