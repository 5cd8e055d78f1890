"""Skip conditions for tests that start an engine of another package."""

import shutil
from importlib.util import find_spec

import pytest


def needs_java(package: str) -> pytest.MarkDecorator:
    """Skips a test without Java or the package, whose extra has its name."""
    there = shutil.which("java") and find_spec(package)
    return pytest.mark.skipif(not there, reason=f"needs Java 17, and: pip install 'polyturn[{package}]'")


def needs_package(package: str, extra: str) -> pytest.MarkDecorator:
    """Skips a test without a package, which an extra brings."""
    return pytest.mark.skipif(not find_spec(package), reason=f"needs {package}: pip install 'polyturn[{extra}]'")
