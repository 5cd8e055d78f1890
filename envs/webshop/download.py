"""Download the official catalogues of WebShop once, or copy them from a local mirror.

    install(data_root(), "small")          # fills data_root()/webshop with the 1,000 products; "full" has 1.18 million

The files come from Google Drive, as in the official `setup.sh` (https://github.com/princeton-nlp/WebShop). Their sizes
and hashes are not published. So they are verified against a `SHA256SUMS` file (in the format of `sha256sum`) if the
mirror or the data folder has one. The hash of every new file is added to the data folder's own, and later copies are
verified against it. Every file is read completely, as part of a catalogue, before it is accepted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from envs.fetch import DownloadError, NamedRemote, Remote, fetch
from envs.files import whole_file
from envs.sums import SUMS, read_sums, verify_sum, write_sums
from envs.webshop.catalogue import SIZES, Catalogue, JSONFileError, load_catalogue
from envs.webshop.nouns import load_tagger, tag_names

_HUMAN = "items_human_ins.json"


def _on_drive(file_id: str, name: str) -> NamedRemote:
    """A file on Google Drive, whose address does not contain its name."""
    address = f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"
    return NamedRemote(address, None, None, name)


_HUMAN_FILE = _on_drive("14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O", _HUMAN)
FILES = {
    "small": (
        _on_drive("1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib", "items_shuffle_1000.json"),
        _on_drive("1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu", "items_ins_v2_1000.json"),
        _HUMAN_FILE,
    ),
    "full": (
        _on_drive("1A2whVgOO0euk5O13n2iYDM0bQRkkRduB", "items_shuffle.json"),
        _on_drive("1s2j6NgHljiZzQNL3veZaAiyW_qDEgBNi", "items_ins_v2.json"),
        _HUMAN_FILE,
    ),
}


def install(
    data: Path,
    size: str = "small",
    mirror: Path | None = None,
    nouns: bool = False,
    files: tuple[Remote, ...] | None = None,
    console: Console | None = None,
) -> Catalogue:
    """Put a catalogue into `data/webshop` and read it. Existing files stay, so it can be run again.

    `mirror` is a folder with the files, or one whose `webshop` or `data` subfolder has them. With `nouns`, the nouns of
    the names are found if they are not known. `files` defaults to the files of the size. Raises `DownloadError`,
    `JSONFileError` for files that are not a catalogue, and `ImportError` if the tagger is missing.
    """
    console = console or Console(markup=False)
    say = partial(console.print, highlight=False, soft_wrap=True)
    folder = data / "webshop"
    folder.mkdir(parents=True, exist_ok=True)
    source = _find(mirror, size) if mirror else None
    sums = read_sums(folder / SUMS) | (read_sums(source / SUMS) if source else {})
    new: list[Path] = []
    for remote in files or FILES[size]:
        name = _present(folder, remote.name, size)
        if name:
            say(f"{name}: already there")
        elif source:
            new += _copy(source, folder, remote.name, size, sums, say)
        else:
            new.append(fetch(remote, folder, console))
            verify_sum(new[-1], sums, say, remove=True)
    try:
        catalogue = load_catalogue(folder, size)
    except JSONFileError:
        for path in new:
            path.unlink()
        raise
    write_sums(folder, sums)
    say(f"{size}: {len(catalogue):,} products, catalogue {catalogue.content_hash[:12]}, in {folder}")
    if nouns and not catalogue.has_nouns:
        names = (catalogue.product(number).name for number in range(len(catalogue)))
        tag_names(catalogue.content_hash, names, len(catalogue), load_tagger(), console)
        catalogue = load_catalogue(folder, size)
    if catalogue.has_nouns:
        say("the nouns of its names are known")
    else:
        say("the nouns of its names are not known, but rewards need them: add --nouns")
    return catalogue


def _find(mirror: Path, size: str) -> Path:
    wanted = FILES[size][0].name
    for folder in (mirror, mirror / "webshop", mirror / "data"):
        if (folder / wanted).is_file():
            return folder
    raise DownloadError(f"no {wanted} in {mirror}, nor in its subfolders webshop and data")


def _present(folder: Path, name: str, size: str) -> str | None:
    """The existing file for `name`; human instructions may have the catalogue's size in their name."""
    names = (f"items_human_ins{SIZES[size]}.json", name) if name == _HUMAN else (name,)
    return next((found for found in names if (folder / found).is_file()), None)


def _copy(
    source: Path, folder: Path, name: str, size: str, sums: dict[str, str], say: Callable[[str], None]
) -> list[Path]:
    """Copy a file into `folder`. Returns it, or None if there are no human instructions."""
    found = _present(source, name, size)
    if not found:
        if name != _HUMAN:
            raise DownloadError(f"no {name} in {source}")
        say(f"no {name} in {source}: the catalogue will have no human instructions")
        return []
    with whole_file(folder / found) as part:
        shutil.copyfile(source / found, part)
        verify_sum(part, sums, say, name=found)
    return [folder / found]
