"""Two people talk, and each has a goal of its own: `polyturn/Sotopia-v0`.

    Turn #0: Ada Berg said: "I only have 20 dollars with me."
    You are at Turn #1.
    > speak[That is less than I paid for it. How about 25?]
    Turn #2: Ada Berg said: "Then I will think about it."
    You are at Turn #3.

The policy is one of the two, by the task; the other one is a partner (`envs.partners`). The people act in turn. A
conversation ends after 20 turns of both, after three turns in a row without an action, or when somebody leaves. A
judge then rates both people; without a judge there is no reward.
"""

from __future__ import annotations

import hashlib
from typing import Any

from envs.checks import clean_text
from envs.core import BRIEF, Info, Task, TextEnv
from envs.partners import Dialogue, Lines, Partner
from envs.sotopia.conversation import ACTIONS, MAX_TURNS, NONE, Action, Conversation, read_action
from envs.sotopia.judge import GOAL, Judge, overall
from envs.sotopia.profiles import Person, Relationship, Scenario, context

ENV_ID = "polyturn/Sotopia-v0"
LONGEST = 4000  # characters of an action that are read
SCRIPT = (  # of the default partner
    "speak[Hello.]", "speak[Tell me more about what you want.]", "speak[I can agree to that.]", "leave",
)  # fmt: skip
FORMAT = (
    "In each turn, write one action: speak[what you say], non-verbal communication[expression or gesture], "
    "action[physical action], none, or leave. You can leave this conversation if 1. you have achieved your social "
    "goals, 2. this conversation makes you uncomfortable, 3. you find it uninteresting/you lose your patience, 4. or "
    "for other reasons you want to leave."
)
SUCCESS = 8  # of 10 for the goal: polyturn's own limit, since SOTOPIA reports means


class SotopiaEnv(TextEnv):
    """Plays a conversation of `SotopiaTasks`."""

    def __init__(
        self,
        partner: Partner | None = None,
        judge: Judge | None = None,
        max_turns: int = MAX_TURNS,
        render_mode: str | None = None,
    ) -> None:
        """`partner` None says the lines of `SCRIPT`. `max_turns` counts the turns of both people."""
        super().__init__(max_turns, render_mode)
        self._partner, self._judge = partner or Lines(SCRIPT), judge
        self._payload: Any = None
        self._place = 0  # of the policy
        self._scenario: Scenario
        self._people: tuple[Person, Person]
        self._conversation: Conversation
        self._dialogue: Dialogue
        self._seen = 0  # turns that the policy has read

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"scenario", "people", "place"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of SotopiaTasks, got {task!r:.200}")
        self._enter(task.payload, ())
        if self._place == 1:
            self._answer()
        brief = f"{self._scenario.text}\nYour goal: {self._goal}\n{self._conversation.told()}"
        return f"{self._role(self._place)}\nConversation Starts:\n\n{self._look()}", {**self._info_of({}), BRIEF: brief}

    def _enter(self, payload: Any, known: tuple[str, ...]) -> None:
        self._payload, self._place, self._seen = payload, payload["place"], 0
        fields = payload["scenario"]
        relationship = Relationship(fields["relationship"])
        self._scenario = Scenario(fields["text"], tuple(fields["goals"]), relationship, payload["type"])
        first, second = (Person(**person) for person in payload["people"])
        self._people = first, second
        self._conversation = Conversation((first.name, second.name), self.max_turns)
        self._dialogue = Dialogue(self._partner, self._role(1 - self._place), known)

    def _role(self, place: int) -> str:
        """What a person is told before the conversation."""
        told = context(self._scenario, self._people, place)
        return f"{instruction(self._people[place].name)}\n\n{told}\n{FORMAT}"

    def _answer(self) -> None:
        """The partner's turn. What cannot be read is a turn in which nothing is done, as in the reference."""
        turns = self._conversation.turns
        told = self._conversation.told(max(len(turns) - 1, 0))
        text = self._dialogue.answer(f"{told}\n\nYou are at Turn #{len(turns)}.".lstrip())
        self._conversation.add(read_action(clean_text(text[:LONGEST])) or Action(NONE))

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        read = read_action(clean_text(action[:LONGEST]))
        self._conversation.add(read or Action(NONE))
        self._seen = len(self._conversation.turns)  # the policy knows what it did
        if not self._conversation.why_over:
            self._answer()
        why = self._conversation.why_over
        text = self._look() if not why else f"{self._conversation.told(self._seen)}\n\nThe conversation is over: {why}."
        if read is None:
            text = f"That is no action, so you did nothing. {FORMAT}\n\n{text}"
        text = text.strip()
        return (text, 0.0, False, self._info_of({})) if not why else self._end(text)

    def _look(self) -> str:
        """The turns that the policy has not read, and the number of the next one."""
        told = self._conversation.told(self._seen)
        self._seen = len(self._conversation.turns)
        return f"{told}\n\nYou are at Turn #{self._seen}.".lstrip()

    def _end(self, text: str) -> tuple[str, float, bool, Info]:
        if self._judge is None:
            return text, 0.0, True, self._info_of({})
        background = context(self._scenario, self._people, None)
        both = self._judge.rate(background, self._conversation.history())
        own, other = both[self._place], both[1 - self._place]
        score = own[GOAL] / 10
        signals = {
            "scores": own, "overall": overall(own), "scores_of_partner": other, "overall_of_partner": overall(other),
        }  # fmt: skip
        return text, score, True, self._info_of({"score": score, "success": own[GOAL] >= SUCCESS, "signals": signals})

    @property
    def _goal(self) -> str:
        return self._scenario.goals[self._place]

    def _info_of(self, more: Info) -> Info:
        seen = repr((self._place, self._conversation.turns))
        return {
            "goal": self._goal, "admissible": list(ACTIONS), "partner": self._partner.name,
            "state_key": hashlib.sha256(seen.encode()).hexdigest()[:16], **more,
        }  # fmt: skip

    def _save(self) -> Any:
        return self._payload, tuple(self._conversation.turns), self._dialogue.answers, self._seen

    def _load(self, saved: Any) -> None:
        payload, turns, answers, seen = saved
        self._enter(payload, answers)
        for action in turns:
            if self._conversation.next == self._place:
                self._conversation.add(action)
            else:
                self._answer()
        self._seen = seen


def instruction(name: str) -> str:
    """The beginning of the reference's prompt for one of the people."""
    return (
        f"Imagine you are {name}, your task is to act/speak as {name} would, keeping in mind {name}'s social goal.\n"
        f"You can find {name}'s background and goal in the 'Here is the context of the interaction' field.\n"
        f"Note that {name}'s secret and goal is only visible to you.\n"
        f"You should try your best to achieve {name}'s goal in a way that align with their character traits.\n"
        "Additionally, maintaining the conversation's naturalness and realism is essential (e.g., do not repeat what "
        "other people has already said before)."
    )
