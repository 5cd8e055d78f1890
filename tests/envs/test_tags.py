"""Pairs of tags are those of the pattern that they stand for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search import mt_grpo
from envs.tags import PairedTags

PIECES = [
    *(f"{mark}{name}>" for mark in ("<", "</") for name in ("search", "answer", "Search", "ANSWER", "ſearch")),
    *(" ", "\n", "\x1f", "\u2003", "a", "<", ">", "</", "<search", "x>"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize("names", [["search"], ["answer"], ["search", "answer"]])
@given(text=TEXTS)
def test_pairs_are_those_of_the_pattern(names: list[str], ignore_case: bool, text: str) -> None:
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else re.NOFLAG)
    end = r"\1" if len(names) > 1 else names[0]
    expected = re.findall(f"<({'|'.join(names)})>(.*?)</{end}>", text, flags)
    tags = PairedTags(*names, ignore_case=ignore_case)
    assert [tuple(pair) for pair in tags.findall(text)] == expected
    assert tags.search(text) == next(iter(expected), None)


@given(text=TEXTS)
def test_mt_grpos_fields_are_those_of_its_pattern(text: str) -> None:
    found = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    assert mt_grpo.field(text, "answer") == (found[1].strip() if found else None)
