"""A hash of this package's source, which keeps results of different prompts apart."""

from pathlib import Path

from envs.facts import hash_files


def agents_hash() -> str:
    """Hex sha256 over the modules and the prompt templates."""
    folder = Path(__file__).parent
    return hash_files([*folder.rglob("*.py"), *folder.rglob("*.jinja")])
