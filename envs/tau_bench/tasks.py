"""The tasks of tau-bench.

tasks = TauBenchTasks("retail")           # 500 train, 20 dev and 115 test tasks; "airline" has 50 test tasks
tasks = TauBenchTasks("embedded")         # a small shop with the tools of retail: no data is needed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.core import Expert, Manifest, Task, UnknownNameError, counted, find_task, hash_tasks
from envs.partners import Partner
from envs.tau_bench.domains import DOMAINS, EMBEDDED, folder_of, open_domain, read_tasks, read_text
from envs.tau_bench.env import ENV_ID, MAX_TURNS, TauBenchEnv
from envs.tau_bench.expert import Oracle, ShopExpert
from envs.tau_bench.generate import POLICY, make_shop
from envs.tau_bench.generate import VERSION as SHOP_VERSION
from envs.tau_bench.users import ScriptedUser
from envs.tools.calls import FORMATS

AUTO = "auto"
CHOICES = (AUTO, *DOMAINS)
NO_CHANGE, SEVERAL = "no change", "several changes"  # types of tasks; others are a writing tool
EVERY = 5  # every fifth embedded task is one of `valid`


class TauBenchTasks:
    """Conversations as a `TaskSet`. The type of a task is what its reference actions change."""

    env_id = ENV_ID

    def __init__(
        self,
        domain: str = AUTO,
        user: Partner | None = None,
        format: str | None = None,  # noqa: A002
        data: str | None = None,
        max_turns: int = MAX_TURNS,
        oracle: bool = False,
    ) -> None:
        """`domain` is one of `CHOICES`: `auto` is retail if its files are there, otherwise the embedded shop.

        `user` None is scripted. `format` is one of `envs.tools.calls.FORMATS`; None is brackets for the
        embedded shop, as small policies write them, otherwise tags. `data` is the folder above `tau_bench`.
        With `oracle`, `expert` is a player that knows the solution. Raises `UnknownNameError`, `ValueError`, and
        `NoDataError` for a domain whose files are not there.
        """
        for kind, name, known in (("domain", domain, CHOICES), ("format", format, FORMATS)):
            if name is not None and name not in known:
                raise UnknownNameError(kind, name, known)
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        if domain == AUTO:
            domain = "retail" if (folder_of("retail", data) / "data").is_dir() else EMBEDDED
        self.domain, self.max_turns = domain, max_turns
        self.format = format or ("brackets" if domain == EMBEDDED else "tags")
        self._user, self._oracle = user or ScriptedUser(), oracle
        self._folder = "" if domain == EMBEDDED else str(folder_of(domain, data))
        open_domain(domain, self._folder)  # raises where there is no database
        # The policy that agents follow: the system prompt of agents with a chat template.
        self.system_prompt = POLICY if domain == EMBEDDED else read_text(Path(self._folder) / "wiki.md")
        self.splits: Sequence[str] = tuple(DOMAINS[domain].official) or ("train", "valid")
        self.eval_splits: Sequence[str] = (self.splits[-1],)
        self._payloads: dict[str, dict[str, dict[str, Any]]] = {}
        self._manifests: dict[str, Manifest] = {}

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split; the hash covers the tasks, the policy, the user, and the format of calls."""
        if split not in self._manifests:
            payloads = self._tasks(split)
            contents = (
                (name, json.dumps({**payload, "folder": "", "about": self.facts()}, sort_keys=True).encode())
                for name, payload in payloads.items()
            )
            count = DOMAINS[self.domain].official.get(split)
            self._manifests[split] = Manifest(ENV_ID, split, tuple(sorted(payloads)), hash_tasks(contents), count)
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        return find_task(ENV_ID, split, task_id, self._tasks(split))

    def make(self) -> TauBenchEnv:
        """A new environment."""
        return TauBenchEnv(self.format, self.max_turns, self._user, self._oracle)

    def expert(self) -> Expert | None:
        """The oracle if it was asked for; for the embedded shop an expert that knows what it is shown."""
        if self._oracle:
            return Oracle(self.format)
        return ShopExpert(self.format) if self.domain == EMBEDDED else None

    def describe(self) -> str:
        where = f"{self.domain} of {self._folder}" if self._folder else "an embedded shop"
        counts = ", ".join(f"{counted(len(self._tasks(split)), 'task')} in {split}" for split in self.splits)
        known = "; agent=expert knows the hidden tasks" if self._oracle else ""
        return f"{ENV_ID}: {where}: {counts}; user {self._user.name}, calls as {self.format}{known}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        policy = hashlib.sha256(self.system_prompt.encode()).hexdigest()
        facts = {"domain": self.domain, "user": self._user.name, "format": self.format, "policy_sha256": policy}
        return facts | ({"shop_version": SHOP_VERSION} if self.domain == EMBEDDED else {})

    def _tasks(self, split: str) -> Mapping[str, dict[str, Any]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        if split not in self._payloads:
            self._payloads[split] = {
                f"{self.domain}-{split}-{number:03d}": self._payload(task)
                for number, task in enumerate(self._read(split))
            }
        return self._payloads[split]

    def _read(self, split: str) -> Sequence[Mapping[str, Any]]:
        if self.domain != EMBEDDED:
            return read_tasks(Path(self._folder), split)
        held_out = split == "valid"
        return [task for place, task in enumerate(make_shop().tasks) if (place % EVERY == EVERY - 1) == held_out]

    def _payload(self, task: Mapping[str, Any]) -> dict[str, Any]:
        writes = [action["name"] for action in task["actions"] if action["name"] in DOMAINS[self.domain].writes]
        kind = NO_CHANGE if not writes else writes[0] if len(writes) == 1 else SEVERAL
        return {
            "type": kind, "domain": self.domain, "folder": self._folder, "instruction": task["instruction"],
            "actions": task["actions"], "outputs": task["outputs"],
        }  # fmt: skip
