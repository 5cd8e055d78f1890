"""One-player games of TextArena."""
