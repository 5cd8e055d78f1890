"""The domains: their tools, their files, and the policies that agents follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.core import NoDataError, data_root
from envs.tau_bench import airline, retail
from envs.tau_bench.database import GET_DATA, Data
from envs.tau_bench.generate import make_shop
from envs.tau_bench.tools import Function

FOLDER = Path("tau_bench", "tau_bench", "envs")  # in the data folder
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Domain:
    """What a conversation takes place in."""

    tools: str  # whose schemas
    functions: Sequence[Function]
    official: Mapping[str, int]  # number of published tasks by split
    writes: frozenset[str]  # names of tools that change the database


_RETAIL_WRITES = frozenset(
    {
        "cancel_pending_order", "exchange_delivered_order_items", "modify_pending_order_address",
        "modify_pending_order_items", "modify_pending_order_payment", "modify_user_address",
        "return_delivered_order_items",
    }
)  # fmt: skip
DOMAINS = {
    "retail": Domain("retail", retail.FUNCTIONS, {"train": 500, "dev": 20, "test": 115}, _RETAIL_WRITES),
    "airline": Domain(
        "airline", airline.FUNCTIONS, {"test": 50},
        frozenset(
            {
                "book_reservation", "cancel_reservation", "send_certificate", "update_reservation_baggages",
                "update_reservation_flights", "update_reservation_passengers",
            }
        ),
    ),
    EMBEDDED: Domain("retail", retail.FUNCTIONS, {}, _RETAIL_WRITES),
}  # fmt: skip


def folder_of(domain: str, data: str | None) -> Path:
    """The folder of a domain's files; `data` None is `envs.core.data_root`."""
    return (Path(data).expanduser() if data else data_root()).absolute() / FOLDER / domain


@lru_cache(maxsize=8)
def open_domain(domain: str, folder: str) -> Data:
    """The database of a domain, each table a file in the subfolder `data` of its folder; "" for the embedded one.

    It is read once in a process. Raises `NoDataError`.
    """
    if domain == EMBEDDED:
        return make_shop().data
    files = sorted((Path(folder) / "data").glob("*.json"))
    if not files:
        raise NoDataError(f"there is no database in {folder}/data; {GET_DATA}")
    return Data({file.stem: file for file in files})


def read_tasks(folder: Path, split: str) -> list[dict[str, Any]]:
    """The published tasks of a split, in order. Raises `NoDataError`, and `ValueError` for another file."""
    tasks = json.loads(read_text(folder / f"tasks_{split}.json"))
    if not isinstance(tasks, list) or not all({"instruction", "actions", "outputs"} <= set(task) for task in tasks):
        raise ValueError(f"{folder}/tasks_{split}.json is no list of tasks; {GET_DATA}")
    return tasks


def read_text(path: Path) -> str:
    """Raises `NoDataError` for a file that does not exist."""
    if not path.is_file():
        raise NoDataError(f"{path} does not exist; {GET_DATA}")
    return path.read_text(encoding="utf-8")
