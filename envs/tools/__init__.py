"""Tool use: `polyturn/Tools-v0`."""
