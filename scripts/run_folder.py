"""The folder of a run: its name, the lock of the process that uses it, and the command that it stores.

    RUN/.lock           held by the running process
    RUN/command.json    the command and its overrides, with which `resume=RUN` starts
    RUN/.hydra/         the same in Hydra's format, and the composed configuration

Hydra would rewrite `.hydra` at every start, file by file, even if the command then fails. So Hydra writes nothing
(`hydra.output_subdir: null`), and the command writes both completely when it begins.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from algorithms.launch import Launch
from envs.core import cache_root
from envs.files import tidy, whole_folder, write_whole

COMMAND = "command.json"
TRACES = {COMMAND, ".hydra", ".lock", "run.json"}  # the files of a run before its first episode
MAY_CHANGE = {  # command -> settings and groups of settings that the command which resumes a run may override
    "train": ("trainer", "eval", "pool", "rollout", "parallel"),
    "evaluate": ("seeds", "limit", "pool"),
    "lab": ("algos", "seeds", "lab", "trainer", "eval", "pool", "rollout"),
}
PARENT = "POLYTURN_PARENT"  # environment variable: the process without which a command ends
FOLDER = "folder"  # of the run, in the store that connects the ranks
_made: list[Path] = []  # the folders that were created for this run or sweep


class RunInUseError(ValueError):
    """Another process is working in the folder of a run."""


# -- one folder for each run, one process for each folder --------------------------------------------------------------
class NewFolder(Callback):
    """Makes the folders of runs and sweeps. If Hydra's default name exists, it appends -2, -3, ….

    Hydra's default names contain the time in seconds, so runs that start together would share one folder.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder of a run, unless `hydra.run.dir` or the folder of an evaluation sweep was set.

        Under torchrun all ranks use one folder, which the first rank makes. After a restart by torchrun, they use the
        same folder again.
        """
        HydraConfig.instance().set_config(config)  # the name is computed from it
        launch = Launch.of_environment()
        if launch is None or config.hydra.runtime.choices.get("parallel", "none") == "none":
            self._make_folder(config)
            return
        from algorithms.parallel import ranks_store  # torch takes seconds to import

        store, note = ranks_store(), _restart_file()
        if launch.rank == 0:
            if launch.restarts and note.is_file():
                with read_write(config.hydra):
                    config.hydra.run.dir = note.read_text(encoding="utf-8")
            else:
                self._make_folder(config)
            folder = str(Path(config.hydra.run.dir).absolute())
            write_whole(note, folder)
            store.set(FOLDER, folder)
        else:
            _made[:] = []
            with read_write(config.hydra):
                config.hydra.run.dir = store.get(FOLDER).decode()

    def _make_folder(self, config: DictConfig) -> None:
        configured = Path(config.hydra.run.dir)
        if _is_set_by_user("hydra.run.dir", config) or _is_set_by_user("sweep.dir", config):
            _made[:] = _absent(configured)
            return
        _made[:] = _absent(configured.parent)
        folder = new_folder(configured)
        _made.append(folder.absolute())
        with read_write(config.hydra):
            config.hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder of a sweep, unless `hydra.sweep.dir` was set."""
        HydraConfig.instance().set_config(config)
        configured = Path(config.hydra.sweep.dir)
        _made[:] = _absent(configured)
        if not _is_set_by_user("hydra.sweep.dir", config):
            folder = new_folder(configured)
            with read_write(config.hydra):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")  # of each job


def is_restarted() -> bool:
    """Whether torchrun has started this process again, after a failure of the run."""
    launch = Launch.of_environment()
    return launch is not None and launch.restarts > 0


def remove_restart_file() -> None:
    """Remove the file with the folder's name, because the run has ended and torchrun will not restart it."""
    if Launch.of_environment() is not None:
        _restart_file().unlink(missing_ok=True)


def _restart_file() -> Path:
    """The file that contains the run's folder, for restarts by torchrun, the parent of this process."""
    name = f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')}-{os.getppid()}"
    return cache_root() / "torchrun" / name


def _absent(folder: Path) -> list[Path]:
    """`folder` and its parents, without those that exist."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_traces(run: Path) -> None:
    """Remove the command of a refused run, and the folders that were created for it.

    A run with other files, and folders that existed before, are kept.
    """
    run = run.absolute()
    if not run.is_dir() or not {run, *run.parents} & {*_made}:
        return
    if not {path.name for path in run.iterdir()} <= TRACES:
        return
    shutil.rmtree(run)
    for folder in sorted({*_made} & {*run.parents}, reverse=True):  # the deepest first
        with suppress(OSError):  # another run is in it
            folder.rmdir()


def override_key(override: str) -> str:
    """The key that an override sets, or the group that it chooses from: `+a.b=1` -> `a.b`."""
    return override.lstrip("+~").partition("=")[0]


def written(overrides: list[str]) -> list[str]:
    """Overrides of Hydra's configuration as the user wrote them, with `${key}` and `${oc.env:SECRET}` unresolved.

    Iteration over them would resolve these, and raise for an unknown key.
    """
    return cast(list[str], OmegaConf.to_container(cast(ListConfig, overrides)))


def _is_set_by_user(key: str, config: DictConfig) -> bool:
    given = (*written(config.hydra.overrides.hydra), *written(config.hydra.overrides.task))
    return any(override.startswith(f"{key}=") for override in given)


def quoted(path: Path | str) -> str:
    """A path as the value of an override, quoted so that Hydra and OmegaConf read it literally."""
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(path).replace("${", "\\${"))
    return f"'{text}'"


def in_shell(run: Path) -> str:
    """The folder of a run, quoted for a shell, relative to the command's start folder (environments may change it)."""
    return shlex.quote(os.path.relpath(run, HydraConfig.get().runtime.cwd))


def resume_command(name: str, run: Path) -> str:
    """A shell command that resumes a run of `scripts.<name>`."""
    return f"python -m scripts.{name} resume={in_shell(run)}"


def new_folder(name: Path) -> Path:
    """Make a new folder: `name`, or with -2, -3, … at its end if it exists."""
    folder, number = name, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = name.with_name(f"{name.name}-{number}")
        else:
            return folder


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock the folder of a run for this process, and remove incomplete files of killed processes.

    Raises `RunInUseError` if another process holds the lock.
    """
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunInUseError(
            f"another process is running in {run}: wait until it has ended, or choose another hydra.run.dir"
        ) from None
    try:
        for folder in (run, *(path for path in run.iterdir() if path.is_dir())):
            tidy(folder, everything=True)
        yield
    finally:
        lock.release()


def end_with_parent(parent: int) -> None:
    """End this process when its parent, the process `parent`, has ended: it would hold the lock of its folder."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# -- the command of a run ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Command:
    """The command of a run: `overrides` of `python -m scripts.<name>`, and the folders of its `--config-dir`."""

    name: str
    overrides: list[str]
    config_dirs: list[str]

    @classmethod
    def of_this_process(cls, name: str) -> Command:
        """The current command, including the overrides that `resume=RUN` added."""
        hydra = HydraConfig.get()
        overrides = [o for o in written(hydra.overrides.hydra) if o.startswith("hydra.searchpath=")]
        overrides += [o for o in written(hydra.overrides.task) if not o.startswith("resume=")]
        sources = hydra.runtime.config_sources
        return cls(name, overrides, [source.path for source in sources if source.provider == "command-line"])

    @classmethod
    def of_run(cls, run: Path, name: str) -> Command:
        """The command that started a run. Raises `FileNotFoundError` and `ValueError`, saying what was found."""
        path = run / COMMAND
        try:
            command = cls(**json.loads(path.read_bytes()))
            if not all(isinstance(text, str) for text in (*command.overrides, *command.config_dirs)):
                raise TypeError("overrides and config_dirs must be lists of texts")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"nothing to resume in {run}: expected the folder of a run, with {COMMAND} in it"
            ) from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}), so the command of this run is unknown") from error
        if command.name != name:
            raise ValueError(f"{run} is a run of scripts.{command.name}, but this command is scripts.{name}")
        return command

    def check_choices(self, run: Path, overrides: Sequence[str]) -> None:
        """Raise `ValueError` if `overrides` choose another option of a group, such as env, than the run has."""
        choices: dict[str, str] = {}
        with suppress(Exception):  # the file is missing or damaged; settings are also compared when the run starts
            choices = dict(OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra.runtime.choices)
        for override in overrides:
            group, _, option = override.lstrip("+~").partition("=")
            kept = choices.get(group, option)
            if kept != option and group not in MAY_CHANGE[self.name]:
                raise ValueError(
                    f"{run} has {group}={kept}, and a run keeps its settings: it cannot be resumed with {override}, "
                    f"which needs a new run. Only {', '.join(MAY_CHANGE[self.name])} may change"
                )

    def save(self, run: Path, config: DictConfig) -> None:
        """Write the command and the composed configuration into the run's folder, unless they are already there."""
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        overrides = OmegaConf.to_yaml(OmegaConf.create(self.overrides))
        if _has(run / COMMAND, content) and _has(run / ".hydra" / "overrides.yaml", overrides):
            return
        with whole_folder(run / ".hydra") as folder:
            folder.mkdir()
            (folder / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
            (folder / "hydra.yaml").write_text(OmegaConf.to_yaml(HydraConfig.instance().cfg), encoding="utf-8")
            (folder / "overrides.yaml").write_text(overrides, encoding="utf-8")
        write_whole(run / COMMAND, content)


def _has(path: Path, content: str) -> bool:
    return path.is_file() and path.read_bytes() == content.encode()
