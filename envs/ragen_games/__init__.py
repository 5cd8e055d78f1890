"""Small games of RAGEN: a frozen lake, bandits, and numbers that make a target."""
