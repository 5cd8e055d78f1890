"""Code that the commands share: configuration with Hydra, errors of one line, exit codes.

Exit codes: 0 done; 1 a bug, with its traceback; 2 an error that the user can correct, in one line (HYDRA_FULL_ERROR=1
prints its traceback too); 130 Ctrl-C; 128 + n ended by signal n, for example by a closed terminal or pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import io
import linecache
import os
import platform
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeAlias, cast

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

import conf
from agents.rollout import BrokenEnvironmentError
from algorithms.launch import Launch
from envs import plugin_configurations
from envs.core import TaskSet, UnknownNameError
from envs.facts import Facts, differences
from scripts.run_folder import PARENT, Command, end_with_parent, override_key, quoted, remove_traces, written
from scripts.settings import OUR_PACKAGES, check_added_keys, check_settings, shown
from scripts.targets import check_targets, settings_of

Job: TypeAlias = Callable[[DictConfig], None]
FOLDER_SETTINGS = ("env.data", "rollout.folder")
FOLDERS = ("POLYTURN_CACHE", "POLYTURN_DATA", "HF_HOME")  # environment variables that contain a folder
PACKAGES = ("polyturn", "torch", "transformers", "gymnasium", "hydra-core", "textworld", "alfworld")
_user_keys: list[str] = []  # the keys that the command line sets, without those that `resume` adds
OWN_RUNS = {  # commands that start runs themselves, and how
    "lab": "give it algos=[…] seeds=[…]",
    "sweep": "give it agents=[…] envs=[…] seeds=[…]",
}
LAUNCHERS = {  # beginning of the name of a launcher of Hydra -> the package that contains it
    "joblib": "'polyturn[parallel]'",
    "submitit": "'polyturn[slurm]'",
}
KEY_VALUE = "expected KEY=VALUE, as in env=alfworld; --help shows the keys"
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


# -- running a command ------------------------------------------------------------------------------------------------
def command(config_name: str) -> Callable[[Job], Callable[[], None]]:
    """Turn a function of a configuration into a command: `conf/<config_name>.yaml`, overrides, `--multirun`, `--help`.

    `resume=RUN_DIR` starts with the overrides of that run, adds the new ones, and continues in its folder
    (`scripts.run_folder`). In a multirun, a job that fails is reported, and the others continue.
    """

    def decorate(function: Job) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> None:
            try:
                prepare(cfg, config_name)
                function(cfg)
            except Exception as error:
                hydra_cfg = HydraConfig.get()
                if explain(error, config_name) is not None:
                    remove_traces(Path(hydra_cfg.runtime.output_dir))
                if hydra_cfg.mode == RunMode.RUN:
                    raise SystemExit(_report(error, config_name)) from error
                given = ",".join(written(hydra_cfg.overrides.task))
                print(f"job {hydra_cfg.job.num} ({given}) failed", file=sys.stderr)
                raise _ReportedError(_report(error, config_name)) from error

        launch = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(job)

        @functools.wraps(function)
        def main() -> None:
            run(lambda: _launch(launch, Path(function.__code__.co_filename).stem), config_name)

        return main

    return decorate


def prepare(cfg: DictConfig, config_name: str) -> None:
    """Check the configuration of a command, and make its folders absolute."""
    for mode in ("run", "sweep"):
        if not HydraConfig.get()[mode].dir:  # it would be the working directory
            raise ValueError(f"hydra.{mode}.dir must be a folder, got an empty text")
    check_settings(cfg, config_name)
    check_added_keys(cfg, config_name)
    check_targets(cfg)
    _make_absolute(cfg)


def _make_absolute(cfg: DictConfig) -> None:
    """Make the folders of a configuration absolute: an environment may change the working directory."""
    for key in FOLDER_SETTINGS:
        if isinstance(folder := OmegaConf.select(cfg, key), str):
            OmegaConf.update(cfg, key, os.path.abspath(os.path.expanduser(folder)))


def make_task_set(cfg: DictConfig) -> TaskSet:
    """The task set of a configuration. Raises `TypeError` if `env._target_` makes something else."""
    made = instantiate(cfg.env)
    if missing := [name for name in vars(TaskSet) if name[0] != "_" and not hasattr(made, name)]:
        raise TypeError(
            f"env._target_ is {cfg.env._target_}, which makes no task set: it has no {', no '.join(missing)}; "
            "docs/environments/your_own.md shows one"
        )
    return made


class Arguments(argparse.ArgumentParser):
    """A parser of command lines. It raises `ValueError` for an error, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def path_argument(text: str) -> Path:
    """The path in an argument. Raises `ArgumentTypeError` for an empty text, which would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


class _ReportedError(Exception):
    """A job of a multirun failed, and its error was printed. The argument is the exit code."""


def run(main: Callable[[], None], config_name: str = "") -> None:
    """Call `main`. Its exceptions become messages and exit codes (see the module)."""
    old = {number: signal.signal(number, _end) for number in _deadly_signals()}
    _open_streams()
    _prepare_process()
    try:
        main()
        sys.stdout.flush()
    except _ReportedError as error:
        raise SystemExit(error.args[0]) from error
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from error
    except Exception as error:
        raise SystemExit(_report(error, config_name)) from error
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # Python would flush again when it exits, and print an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number, handler in old.items():
            signal.signal(number, handler)


def _open_streams() -> None:
    """Open stdin, stdout and stderr on the null device if they are closed (`<&-`, `>&-`), as with `/dev/null`.

    A file of the command would get the descriptor of a closed stream, and what is printed would be in it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _prepare_process() -> None:
    """Print characters that the encoding lacks as escapes, end with the parent, and make folders in variables absolute.

    An environment may change the working directory.
    """
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if parent := os.environ.pop(PARENT, ""):  # not for the processes that this one starts
        end_with_parent(int(parent))
    for name in FOLDERS:
        if folder := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(folder))


def _deadly_signals() -> Iterator[signal.Signals]:
    """The signals that would end the process at once, unless they are ignored (`nohup`)."""
    return (s for s in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(s) is signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # an exception, so that files and processes are closed


def _stdout_is_closed() -> bool:
    """Whether the terminal or pipe at stdout is closed."""
    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def _launch(launch: Callable[[], None], name: str) -> None:
    """Call Hydra so that it raises its errors, instead of printing them and exiting."""
    before, arguments = os.environ.get("HYDRA_FULL_ERROR", "0"), sys.argv
    _user_keys[:] = [override_key(argument) for argument in arguments[1:] if "=" in argument]
    try:
        if name in OWN_RUNS and {"-m", "--multirun"} & {*arguments}:
            raise ValueError(f"scripts.{name} starts its own runs: {OWN_RUNS[name]} instead of --multirun")
        given = [*_resumed(arguments[1:], name), *_search_path(arguments)]
        # Hydra's parser does not accept options between overrides: move them to the front.
        sys.argv = [arguments[0], *sorted(given, key=lambda a: "=" in a and not a.startswith("-"))]
        os.environ["HYDRA_FULL_ERROR"] = "1"
        _check_options()
        launch()
    finally:
        sys.argv = arguments
        os.environ["HYDRA_FULL_ERROR"] = before


def _search_path(arguments: list[str]) -> list[str]:
    """The override that adds the configurations of other packages (`envs`), unless the user sets a search path."""
    folders = [quoted(folder) for folder in plugin_configurations().values()]
    asked = any(override_key(argument) == "hydra.searchpath" for argument in arguments)
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders and not asked else []


def _check_options() -> None:
    """Raise `ValueError` for options that Hydra does not have. Hydra would print its usage and exit."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    for override in parser.parse_args().overrides:
        if override.startswith("="):
            raise ValueError(f"cannot read {override!r}: {KEY_VALUE}")


def _resumed(arguments: list[str], name: str) -> list[str]:
    """The arguments; with `resume=RUN_DIR`, also the overrides of that run that are not set again.

    `name` is the name of the command. The run must have been started by the same command.
    """
    given = [_unquoted(a.removeprefix("resume=")) for a in arguments if a.startswith("resume=")]
    if not given or given[-1] in ("", "null"):
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            "resume=RUN_DIR resumes one run, so it cannot be used with --multirun; resume the jobs one by one"
        )
    folder = Path(given[-1]).expanduser()
    command = Command.of_run(folder, name)
    new = [a for a in arguments if not a.startswith("resume=")]
    command.check_choices(folder, new)  # before the overrides of the run are applied to other options
    keys = {"resume", *map(override_key, new)}
    old = [override for override in command.overrides if override_key(override) not in keys]
    folders = [f"--config-dir={path}" for path in command.config_dirs]
    return [*folders, *old, *new, f"resume={quoted(folder)}", f"hydra.run.dir={quoted(folder)}"]


def _unquoted(text: str) -> str:
    """A path without the quotes that it may have for Hydra."""
    inner = text[1:-1]
    return inner if text[:1] + text[-1:] in ("''", '""') and not Path(text).exists() else text


def is_set_by_user(key: str) -> bool:
    """Whether the command line sets a key or its group. Overrides that `resume` adds do not count."""
    return any(key == set_key or key.startswith(f"{set_key}.") for set_key in _user_keys)


def is_group_set_by_user(group: str) -> bool:
    """Whether the command line chooses from a group or sets a key in it. Overrides that `resume` adds do not count."""
    return any(set_key == group or set_key.startswith(f"{group}.") for set_key in _user_keys)


# -- errors -----------------------------------------------------------------------------------------------------------
def _report(error: Exception, config_name: str) -> int:
    """Print the error on stderr, unless stdout was closed. Returns the exit code."""
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and _stdout_is_closed():
        return 128 + (signal.SIGPIPE if error.errno == errno.EPIPE else signal.SIGHUP)
    message, launch = explain(error, config_name), Launch.of_environment()
    of_rank = f" (rank {launch.rank})" if launch is not None else ""
    if message is None or FULL_ERROR:
        traceback.print_exception(error)
        if launch is not None:
            print(f"the error is that of rank {launch.rank}", file=sys.stderr)
    else:
        print(f"error{of_rank}: {message}", file=sys.stderr)
    return 1 if message is None else 2


def explain(error: BaseException, config_name: str = "", overrides: Sequence[str] | None = None) -> str | None:
    """The message for an error that the user can correct; None where the error is a bug.

    `overrides` are those of the configuration; None means those of the command line.
    """
    text = str(error)
    match error:
        case InstantiationException():
            inner = _explain_target(error, text)
            where = re.search(r"full_key: (\S+)", text)
            return f"in {where[1]}: {inner}" if where and inner else inner
        case ImportError() if install := _to_install(error):
            return install
        case HydraException() | OmegaConfBaseException():
            return _explain_configuration(error, config_name, overrides)
        case ValueError() if text.startswith("Config group override must be"):
            return _no_option(text)
        case yaml.YAMLError():
            return f"a configuration file is damaged: {_one_line(text)}"
        case UnicodeDecodeError() if file := _configuration_file(error):
            return f"{file} is damaged: {text}"
        case FileExistsError(filename=str() as name) if not Path(name).is_dir():
            return f"{name} is not a folder, and this command needs one with this name"
        case OSError(errno=errno.ENOSPC):
            what = error.filename or "stdout"  # errors of files have a name, see `envs.files.naming`
            return f"the disk is full: {what} could not be written; free some space and try again"
        case OSError(strerror=str() as reason, filename=str() as name):
            return f"{reason}: {name}{_set_by(name)}"
        case OSError() | UnknownNameError() | BrokenEnvironmentError():
            return _one_line(text)
        case ValueError() | TypeError() | ImportError() if _raised_for_the_user(error):
            return _one_line(text)
    return None


def _explain_target(error: InstantiationException, text: str) -> str | None:
    """The message for an error in a call of a `_target_`, with its place if the target is another project's."""
    if (cause := error.__cause__) is None:
        return _one_line(text)
    target = re.search(r"'(\w+)(\.[\w.]*)'", text)
    if (message := explain(cause)) is not None or target is None or target[1] in OUR_PACKAGES:
        return message
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{target[1]}{target[2]} raised {type(cause).__name__}: {_one_line(str(cause))}{place}"


def _configuration_file(error: Exception) -> str | None:
    """The file of a configuration that Hydra was reading when it raised; its own error does not name it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return str(frame.f_locals["full_path"])
    return None


def _to_install(error: ImportError) -> str | None:
    """The missing package, and how to install it; None if it is not a dependency of polyturn."""
    causes: list[ImportError] = [error]
    while isinstance(cause := causes[-1].__cause__, ImportError):
        causes.append(cause)
    for cause in reversed(causes):
        if "pip install" in str(cause):
            return _one_line(str(cause))
    package = (causes[-1].name or "").partition(".")[0]
    try:
        requirements = metadata.requires("polyturn") or []
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name and name[0].lower().replace("-", "_") == package.lower() and find_spec(package) is None:
            extra = re.search(r"""extra == ['"]([\w-]+)""", requirement)
            what = f"'polyturn[{extra[1]}]'" if extra else f"'{requirement}'"
            return f"the package {package} is not installed: pip install {what}"
    return None


def _set_by(path: str) -> str:
    """The environment variable that contains the path, in brackets; empty if there is none."""
    for variable in FOLDERS:
        folder = os.environ.get(variable)
        if folder and Path(path).is_relative_to(folder):
            return f" (the environment variable {variable} is {folder})"
    return ""


def _explain_configuration(
    error: HydraException | OmegaConfBaseException, config_name: str, overrides: Sequence[str] | None
) -> str:
    """The message for an error of Hydra or OmegaConf."""
    text = str(error)
    match error:
        case MissingMandatoryValue():
            return f"{error.full_key} has no value; set it: {error.full_key}=…"
        case ConfigAttributeError() | ConfigKeyError():
            return f"{error.full_key} has no value in this configuration; set it: +{error.full_key}=…"
        case MissingConfigException():
            group, _, option = (error.missing_cfg_file or "").rpartition("/")
            brings = [what for name, what in LAUNCHERS.items() if option.startswith(name) and group == "hydra/launcher"]
            hint = f"to have it: pip install {brings[0]}" if brings else ""
            return str(UnknownNameError(group, option, error.options, hint)) if error.options else _one_line(text)
        case OverrideParseException(override=override) if "=" not in override and not override.startswith("~"):
            return f"cannot read {override!r}: {KEY_VALUE}"
        case OverrideParseException(override=override):
            quotes = "a text with special characters needs quotes, as in \"task='a, b'\""
            return f"cannot read the override {override!r}: {text.splitlines()[0]}; {quotes}"
        case ConfigCompositionException(__cause__=Exception() as cause) if text.startswith("Error merging override"):
            return f"{text}: {str(cause).splitlines()[0]}"
    if unknown := re.search(r"Could not override '(.+?)'", text):
        return str(_unknown_key(unknown[1], config_name, overrides))
    what = _one_line(text) or type(error).__name__
    return f"{file} is damaged: {what}" if (file := _configuration_file(error)) else what


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _raised_for_the_user(error: BaseException) -> bool:
    """Whether a `raise` statement of polyturn, or Hydra when it calls a target, raised this; anything else is a bug."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    package = str(frame.f_globals["__name__"]).partition(".")[0]
    statement = linecache.getline(frame.f_code.co_filename, line).strip()
    return package == "hydra" or (
        package in (*OUR_PACKAGES, "benchmarks", "__main__") and statement.startswith("raise ")
    )


def _unknown_key(key: str, config_name: str, overrides: Sequence[str] | None) -> ValueError:
    """The error for a key that the configuration does not have, with the keys that it has in that place."""
    config = _compose_without(key, config_name, overrides)
    *parents, leaf = key.split(".")
    place, at = config, ""
    for part in parents:
        if not isinstance(place.get(part), dict):
            leaf = part
            break
        place, at = place[part], f"{at}{part}."
    if isinstance(place.get(leaf), dict):  # the group exists; the keys in the given dict do not
        return ValueError(f"{key}={{…}} cannot add keys; add each by itself: '+{key}.NAME=VALUE'")
    leaves = {name: name.rpartition(".")[2] for name in _keys(config)}
    near = difflib.get_close_matches(leaf, leaves.values(), n=1, cutoff=0.8)
    elsewhere = [name for name, last in leaves.items() if last in near and name != f"{at}{last}"]
    hint = f"the same name exists in {', '.join(elsewhere[:5])}" if elsewhere else ""
    target = place.get("_target_")
    known = settings_of(target, at[:-1]) if isinstance(target, str) else None
    takes_more = not place or (target and (known is None or leaf in known))
    if not hint and takes_more and not difflib.get_close_matches(leaf, place):
        hint = f"to add it: +{key}=…"
    return UnknownNameError(f"key of {at[:-1]}" if at else "key", leaf, place, hint)


def _no_option(text: str) -> str:
    """The message for a choice that is not a name, such as `env=null` or `trainer=5`. `text` is Hydra's message."""
    for override in OverridesParser.create().parse_overrides(get_args_parser().parse_args().overrides):
        group, value = override.key_or_group, override.value()
        folder = Path(conf.__file__).parent / group
        if not isinstance(value, (str, list)) and folder.is_dir():
            return str(UnknownNameError(group, shown(value), [path.stem for path in folder.glob("*.yaml")]))
    return _one_line(text)


def _compose_without(key: str, config_name: str, overrides: Sequence[str] | None) -> dict[str, Any]:
    """The configuration without one override; `overrides` None means the command line.

    If other overrides are wrong too, it has only the choices from groups; if a choice is wrong, only the defaults.
    """
    args = get_args_parser().parse_args()
    given, name = (args.overrides, args.config_name or config_name) if overrides is None else (overrides, config_name)
    path = [f"hydra.searchpath=['file://{Path(args.config_dir).absolute()}']"] if args.config_dir else []
    others = [override for override in given if override_key(override) != key]
    choices = [override for override in others if "." not in override_key(override)]
    config: DictConfig | None = None
    runs = GlobalHydra.instance().is_initialized()  # in a command that composes configurations, such as a sweep
    with contextlib.nullcontext() if runs else hydra.initialize_config_module("conf", version_base="1.3"):
        for base, overrides in ((name, [*others, *path]), (name, [*choices, *path]), (config_name, [])):
            with contextlib.suppress(HydraException):
                config = config or hydra.compose(base, overrides, return_hydra_config=True)
    plain = cast(dict[str, Any], OmegaConf.to_container(config))
    if key.startswith("hydra."):
        return plain
    groups = [
        group for group in plain["hydra"]["runtime"]["choices"] if "/" not in group
    ]  # including groups without a choice
    return dict.fromkeys(groups) | {name: plain[name] for name in plain if name != "hydra"}


def _keys(config: dict[str, Any], parent: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{parent}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{parent}{name}.")


# -- output -----------------------------------------------------------------------------------------------------------
class Terminal(Console):
    """The console of the commands.

    Text is printed literally: brackets in a folder's name or an observation are not markup. If stdout is closed, it
    raises `BrokenPipeError` (see `run`); Rich would exit.
    """

    def __init__(self, **options: Any) -> None:
        """`options` are those of `rich.console.Console`."""
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "stdout is closed")


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain data, resolved, to be stored or compared.

    Without secrets: keys called `api_key`, and the values of `${oc.env:…}`.
    """
    raw = OmegaConf.create(_escaped(OmegaConf.to_container(config)))
    return cast(dict[str, Any], OmegaConf.to_container(raw, resolve=True))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(member) for key, member in value.items() if key != "api_key"}
    if isinstance(value, list):
        return [_escaped(member) for member in value]
    return value.replace("${oc.env:", "\\${oc.env:") if isinstance(value, str) else value


def printable(text: str) -> str:
    """Text for a terminal: characters that would move the cursor or change colours are escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def compare_machines(before: Facts, now: Facts, console: Console) -> None:
    """Print what differs from the machine of the last start: results may be rounded differently."""
    for name, change in differences(before["machine"], now["machine"]).items():
        console.print(f"changed since the last start: machine.{name} {change}")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str | int]:
    """Facts of the machine that rounding in torch on a CPU depends on, besides the version. Imports torch."""
    import torch

    return {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
