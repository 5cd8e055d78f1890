"""Play in a server of OpenEnv: `polyturn/OpenEnv-v0`.

An action is the text in one field of the server's action, and an observation the text in one field of its observation.
A server of `envs.openenv.server` says everything that the contract of `envs.core` needs. For others, the end of an
episode with a positive reward is a success, and the goal is the first observation.

An environment has a session of its own, which begins at its first reset. A server that cannot be reached ends the run
(`NoDataError`); one that is lost ends the episode (`ServiceError`), and the next reset begins a new session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.checks import checked_step, clean_text
from envs.core import Info, NoDataError, Task, TextEnv
from envs.served import INFO, PUBLIC
from envs.services import ServiceError

ENV_ID = "polyturn/OpenEnv-v0"
MAX_TURNS = 50
NEEDED = "OpenEnv needs the package openenv: pip install 'polyturn[openenv]', in an environment without polyturn[tools]"


class OpenEnvError(RuntimeError):
    """The server refused a call, or answered without the text."""


class OpenEnvEnv(TextEnv):
    """Plays in one session of a server. A task's payload has `arguments`, those of `reset`."""

    def __init__(
        self,
        url: str,
        action: str,
        observation: str,
        max_turns: int = MAX_TURNS,
        call_timeout: float = 60.0,
        render_mode: str | None = None,
    ) -> None:
        """`action` and `observation` name the fields of text."""
        super().__init__(max_turns, render_mode)
        self._url, self._action, self._observation, self._timeout = url, action, observation, call_timeout
        self._client: Any = None
        self._goal = ""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        if task is not None and not (isinstance(task, Task) and isinstance(task.payload.get("arguments"), Mapping)):
            raise ValueError(f"{ENV_ID} needs a task whose payload has arguments, got {task!r:.200}")
        arguments = dict(task.payload["arguments"]) if task else {}
        if seed is not None:
            arguments.setdefault("seed", seed)
        was_open = self._client is not None
        try:
            result = self._ask("reset", **arguments)
        except ServiceError:
            if not was_open:
                raise
            result = self._ask("reset", **arguments)  # the server may have ended an idle session
        observation, _, _, _, info = self._read(result)
        self._goal = info.get("goal", observation)
        return observation, {"goal": self._goal, **info}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, reward, done, truncated, info = self._read(self._ask("step", {self._action: clean_text(action)}))
        success = info.setdefault("success", done and reward > 0)
        if success:
            info["score"] = 1.0
        if truncated:  # an episode that the server ends is at its turn limit
            self._turns = self.max_turns - 1
        return observation, reward, done and not truncated, {"goal": self._goal, **info}

    def _read(self, result: Any) -> tuple[str, float, bool, bool, Info]:
        """What the server answered, checked."""
        seen = result.observation
        text = seen.get(self._observation)
        if not isinstance(text, str):
            raise OpenEnvError(
                f"{self._url}: expected text in the field {self._observation!r} of an observation, got {text!r:.100}; "
                f"its fields: {', '.join(sorted(seen))}"
            )
        further = (result.metadata or {}).get(INFO)
        info: Info = {}
        if isinstance(further, Mapping):  # only a server of ours means the same by these names
            info = {key: seen.get(key) for key in PUBLIC} | dict(further)
            info.pop("stop_reason")  # it follows from the others
        is_truncated = bool(info) and bool(seen.get("truncated"))
        return checked_step((text, result.reward or 0.0, bool(result.done), is_truncated, info))

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call the client. Raises `OpenEnvError`, `ServiceError` for a lost server, `NoDataError` where is none."""
        if self._client is None:
            self._client = _connect(self._url, self._timeout)
        try:
            return getattr(self._client, method)(*arguments, **named)
        except RuntimeError as error:  # what the server says: "Server error: …"
            raise OpenEnvError(f"{self._url}, {method}: {error}") from error
        except Exception as error:  # of websockets and of asyncio
            self.close()  # what the server has done is unknown
            raise ServiceError(f"{self._url}, {method}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End the session."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        super().close()


def _connect(url: str, timeout: float) -> Any:
    try:
        from openenv.core import GenericEnvClient
    except ImportError as error:
        raise ModuleNotFoundError(f"{NEEDED} ({error})") from error
    client = GenericEnvClient(base_url=url, connect_timeout_s=timeout, message_timeout_s=timeout).sync()
    try:
        return client.connect()
    except ConnectionError as error:
        client.close()
        raise NoDataError(f"no server of OpenEnv at {url}: {error}") from error
