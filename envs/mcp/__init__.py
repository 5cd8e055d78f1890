"""Environments over the Model Context Protocol: offered to other programs, and played in their servers."""
