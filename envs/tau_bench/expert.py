"""Scripted agents: one for the embedded shop that knows what it was shown, and one that knows the hidden solution."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Any

from envs.core import Info
from envs.tau_bench.tools import TRANSFER
from envs.tools.calls import FORMATS
from envs.tools.tool import Call, Tool

_ADDRESS = ("address1", "address2", "city", "country", "state", "zip")
DONE = "It is done."


class _Scripted(ABC):
    """Writes its next move in a format of calls."""

    def __init__(self, format: str) -> None:  # noqa: A002
        self._format = FORMATS[format]

    def reset(self, observation: str, info: Info) -> None:
        """A new episode."""
        about = [schema["function"] for schema in info["tools"]]
        self._tools = {one["name"]: Tool(one["name"], one["description"], one["parameters"], print) for one in about}
        self._begin(observation, info)

    def act(self) -> str:
        """The next message."""
        move = self._move()
        if isinstance(move, Call):
            return self._format.write([move], self._tools)
        return f"answer[{move}]" if self._format.lists_actions else move

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        """Keep what calls gave."""
        calls = self._format.parse(action, self._tools).calls
        for call, text in zip(calls, self._format.results_in(observation), strict=False):
            if isinstance(call, Call):
                self._called(call, text)

    @abstractmethod
    def _begin(self, observation: str, info: Info) -> None: ...

    @abstractmethod
    def _move(self) -> Call | str:
        """A call, or a message to the user."""

    @abstractmethod
    def _called(self, call: Call, text: str) -> None: ...


class ShopExpert(_Scripted):
    """Does what customers of the embedded shop ask for, and looks up what they do not say."""

    def _begin(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self._request = observation.splitlines()[-1]
        self._orders: dict[str, dict[str, Any]] = {}
        self._is_done = False

    def _called(self, call: Call, text: str) -> None:
        if text.startswith("{"):
            order = json.loads(text)
            self._orders[order.get("order_id", "")] = order
            self._is_done = self._is_done or call.name != "get_order_details"

    def _move(self) -> Call | str:
        found = re.search(r"[Oo]rder (#W\d+)", self._request)
        if found is None:
            raise ValueError(f"cannot read the request {self._request!r}")
        order_id = found[1]
        if self._is_done:
            return DONE
        if found := re.search(r"Cancel order .*, it (?:is|was) (.*)\.$", self._request):
            return Call("cancel_pending_order", {"order_id": order_id, "reason": found[1]})
        if found := re.search(r"Ship order \S+ to (.*)\.$", self._request):
            address = dict(zip(_ADDRESS, found[1].split(", "), strict=True))
            return Call("modify_pending_order_address", {"order_id": order_id, **address})
        if found := re.search(r"Charge order \S+ to (\S+)\.$", self._request):
            return Call("modify_pending_order_payment", {"order_id": order_id, "payment_method_id": found[1]})
        if order_id not in self._orders:
            return Call("get_order_details", {"order_id": order_id})
        order = self._orders[order_id]
        if found := re.search(r"Return the (.*) of order \S+ to (\S+)\.$", self._request):
            items = [item["item_id"] for item in order["items"] if item["name"] == found[1]]
            arguments = {"order_id": order_id, "item_ids": items, "payment_method_id": found[2]}
            return Call("return_delivered_order_items", arguments)
        return f"You paid {order['payment_history'][0]['amount']}."


class Oracle(_Scripted):
    """Plays the reference actions, and says the required outputs. It knows the hidden task: it is no baseline."""

    def _begin(self, observation: str, info: Info) -> None:  # noqa: ARG002
        actions = (Call(one["name"], one["kwargs"]) for one in info["reference"]["actions"])
        self._calls = [call for call in actions if call.name != TRANSFER]
        self._outputs = info["reference"]["outputs"]

    def _called(self, call: Call, text: str) -> None:  # noqa: ARG002
        if self._calls and call == self._calls[0]:
            self._calls.pop(0)

    def _move(self) -> Call | str:
        return self._calls[0] if self._calls else " ".join([DONE, *self._outputs])
