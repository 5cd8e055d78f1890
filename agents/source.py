"""A hash of this package's source, which keeps results of different prompts apart."""

from pathlib import Path

from envs.facts import hash_files

AFTER_EPISODES = ("statistics.py", "leaderboard.py")  # modules that no episode depends on


def agents_hash() -> str:
    """Hex sha256 over the modules that episodes depend on, and the prompt templates."""
    folder = Path(__file__).parent
    modules = (path for path in folder.rglob("*.py") if path.name not in AFTER_EPISODES)
    return hash_files([*modules, *folder.rglob("*.jinja")])
