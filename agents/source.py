"""A hash of this package's source, so that results of other prompts are not mixed with these."""

from pathlib import Path

from envs.facts import hash_files


def agents_hash() -> str:
    """Hex sha256 over the modules and the prompt templates."""
    folder = Path(__file__).parent
    return hash_files([*folder.rglob("*.py"), *folder.rglob("*.jinja")])
