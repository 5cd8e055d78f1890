from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from benchmarks import bfcl
from envs.tools.bfcl import INSTALL, SETS


@pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"needs {INSTALL}")
def test_verdicts_are_those_of_the_official_checker(capsys: pytest.CaptureFixture[str]) -> None:
    bfcl.main(["--mutations", "120"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in SETS:
        assert report["sets"][name]["ground_truth_right"] == 200
        assert report["sets"][name]["silence_right"] == 0
    assert report["mutations"]["different"] == 0
    assert min(report["mutations"]["right"], report["mutations"]["wrong"]) > 30
