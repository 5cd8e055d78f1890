"""Fixtures of the tests of environments."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.envs.webshop_shop import write_catalogue


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a small catalogue, whose index goes to a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_catalogue(tmp_path_factory.mktemp("shop"))
