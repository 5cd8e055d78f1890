"""A corridor with a locked door at its end, and a key in one of its rooms."""
