"""Loggers: services and files for metrics beside metrics.jsonl, `logger=[tensorboard]`, `logger=[wandb,trackio]`.

metrics.jsonl is always written, too. By default, nothing leaves the machine: wandb is offline unless WANDB_MODE is set,
trackio writes to its folder, tensorboard to RUN/tensorboard. If a logger raises, the run prints a warning and continues
without it. A resumed run continues the same run of the service.

Other packages add loggers by an entry point of the group `polyturn.loggers`, whose object makes a `RunLogger`:

    [project.entry-points."polyturn.loggers"]
    mlflow = "my_package.loggers:MlflowLogger"
"""

from __future__ import annotations

import html
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from agents.episode import Episode
from envs.core import UnknownNameError
from envs.facts import Facts
from envs.files import write_whole

PLUGIN_GROUP = "polyturn.loggers"
PROJECT = "polyturn"
ID_FILE = "logger_id"  # in the run's folder: the name of the run in every service

logger = logging.getLogger(__name__)


class RunLogger(Protocol):
    """Receives what one run logs."""

    def start(self, run: Path, name: str, update: int, facts: Facts) -> None:
        """Start the run `name`, or continue it after `update` updates.

        `facts` describe the run: configuration, manifests with their hashes, versions. Updates after `update` may have
        been logged before; they are logged again.
        """

    def log(self, update: int, metrics: Mapping[str, float], episodes: Mapping[str, str]) -> None:
        """Log the metrics of an update or an evaluation, and a text of an episode for each evaluated split."""

    def finish(self) -> None:
        """Flush and close."""


class TensorboardLogger:
    """Files for TensorBoard in RUN/tensorboard."""

    def start(self, run: Path, name: str, update: int, facts: Facts) -> None:  # noqa: ARG002
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=update + 1)  # type: ignore[no-untyped-call]
        self.writer.add_text("run", "\n".join(f"    {key}: {value}" for key, value in flat(facts).items()), update)  # type: ignore[no-untyped-call]

    def log(self, update: int, metrics: Mapping[str, float], episodes: Mapping[str, str]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, update)  # type: ignore[no-untyped-call]
        for split, text in episodes.items():
            self.writer.add_text(f"episodes/{split}", _in_html(text), update)  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        self.writer.close()  # type: ignore[no-untyped-call]


class WandbLogger:
    """Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync RUN/wandb/offline-*` uploads it."""

    def start(self, run: Path, name: str, update: int, facts: Facts) -> None:  # noqa: ARG002
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=name, name=name, resume="allow", dir=str(run),
            config=flat(facts), mode=os.environ.get("WANDB_MODE", "offline"), settings=wandb.Settings(silent=True),
        )  # fmt: skip
        self.run.define_metric("update")
        self.run.define_metric("*", step_metric="update")

    def log(self, update: int, metrics: Mapping[str, float], episodes: Mapping[str, str]) -> None:
        texts = {f"episodes/{split}": self.wandb.Html(_in_html(text)) for split, text in episodes.items()}
        self.run.log({"update": update, **metrics, **texts})

    def finish(self) -> None:
        self.run.finish()


class TrackioLogger:
    """Trackio, on this machine: `trackio show --project polyturn` shows it."""

    def start(self, run: Path, name: str, update: int, facts: Facts) -> None:  # noqa: ARG002
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=name, resume="allow", config=flat(facts), embed=False)

    def log(self, update: int, metrics: Mapping[str, float], episodes: Mapping[str, str]) -> None:
        texts = {f"episodes/{split}": self.trackio.Markdown(f"```\n{text}\n```") for split, text in episodes.items()}
        self.trackio.log({**metrics, **texts}, step=update)

    def finish(self) -> None:
        self.trackio.finish()


BUILT_IN: dict[str, tuple[str, Callable[[], RunLogger]]] = {
    "tensorboard": ("tensorboard", TensorboardLogger), "trackio": ("trackio", TrackioLogger),
    "wandb": ("wandb", WandbLogger),
}  # fmt: skip


def make_loggers(names: Sequence[str]) -> Loggers:
    """The loggers with these names. Raises `UnknownNameError`, and `ValueError` for a package that is missing."""
    others = {point.name: point for point in metadata.entry_points(group=PLUGIN_GROUP)}
    made: dict[str, RunLogger] = {}
    for name in names:
        if name in others:
            made[name] = others[name].load()()
            continue
        if name not in BUILT_IN:
            raise UnknownNameError("logger", name, [*BUILT_IN, *others])
        package, make = BUILT_IN[name]
        if find_spec(package) is None:
            raise ValueError(f"logger=[{name}] needs the package {package}: pip install 'polyturn[loggers]'")
        made[name] = make()
    return Loggers(made)


class Loggers:
    """The loggers of a run. After an exception in a logger, there is one warning, and it is not called again."""

    def __init__(self, made: Mapping[str, RunLogger]) -> None:
        self.active = dict(made)
        self.episodes: dict[str, str] = {}  # logged with the next metrics

    def start(self, run: Path, update: int, facts: Facts) -> None:
        """See `RunLogger`. The name of the run is the one that an earlier start chose."""
        if not self.active:
            return
        file = run / ID_FILE
        if not file.is_file():
            write_whole(file, f"{run.resolve().name}-{secrets.token_hex(4)}\n")
        name = file.read_text(encoding="utf-8").strip()
        self._each(lambda one: one.start(run, name, update, facts))

    def sample(self, episodes: Mapping[str, Sequence[Episode]]) -> None:
        """Keep the first episode of each split for the next metrics."""
        self.episodes = {split: transcript(played[0]) for split, played in episodes.items() if played and self.active}

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """See `RunLogger`."""
        episodes, self.episodes = self.episodes, {}
        self._each(lambda one: one.log(update, metrics, episodes))

    def close(self) -> None:
        """Finish all loggers."""
        self._each(lambda one: one.finish())

    def _each(self, call: Callable[[RunLogger], None]) -> None:
        for name, one in list(self.active.items()):
            try:
                call(one)
            except Exception as error:
                del self.active[name]
                logger.warning(
                    "logger %s failed, and the run goes on without it: %s: %s", name, type(error).__name__,
                    " ".join(str(error).split()),
                )  # fmt: skip


def transcript(episode: Episode) -> str:
    """An episode as text: its task, then observations and actions, then how it ended."""
    lines = [f"task {episode.task.id}"]
    for number, turn in enumerate(episode.turns, start=1):
        lines += [f"\n[{number}] {turn.observation}", f"> {turn.action}   (reward {turn.reward:g})"]
    return "\n".join([*lines, f"\n{episode.final_observation}", f"ended by {episode.stop_reason}"])


def flat(facts: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Nested facts with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= flat(value, f"{parent}{key}.") if isinstance(value, dict) and value else {f"{parent}{key}": value}
    return found


def _in_html(text: str) -> str:
    """Escape the text of an environment or a model, so that TensorBoard shows it literally."""
    return f"<pre>{html.escape(text)}</pre>"
