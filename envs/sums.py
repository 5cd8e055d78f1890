"""Hashes of downloaded files, in a file next to them in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from envs.checksums import DamagedError
from envs.fetch import DownloadError, check
from envs.files import write_whole

SUMS = "SHA256SUMS"


def read_sums(path: Path) -> dict[str, str]:
    """The SHA-256 of files by name, in the format of `sha256sum`; empty if there is no file. Raises `DamagedError`."""
    if not path.is_file():
        return {}
    sums = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition(" ")
        if not re.fullmatch("[0-9a-fA-F]{64}", digest) or not name.strip(" *"):
            raise DamagedError(f"{path}: {line!r:.80} is not a line of sha256sum")
        sums[name.strip(" *")] = digest.lower()
    return sums


def verify_sum(
    path: Path, sums: dict[str, str], say: Callable[[str], None], name: str = "", remove: bool = False
) -> None:
    """Verify the file's hash if it is known, otherwise note it in `sums`.

    Raises `DownloadError`; with `remove`, a wrong file is removed.
    """
    name = name or path.name
    if name in sums:
        try:
            check(path, sums[name], f"the {name} of {SUMS}")
        except DownloadError:
            if remove:
                path.unlink()
            raise
        say(f"{name}: verified")
        return
    with path.open("rb") as file:
        sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    say(f"{name}: SHA-256 {sums[name]}; no published hash exists to compare it with")


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Write the hashes of the files that are in the folder."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if (folder / name).is_file()]
    write_whole(folder / SUMS, "".join(lines))
