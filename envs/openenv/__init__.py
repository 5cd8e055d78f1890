"""Servers of OpenEnv: play in them, and serve environments to their clients."""
