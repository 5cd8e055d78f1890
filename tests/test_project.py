"""Rules of the project: its README, the direction of imports, the size of its configuration."""

import ast
import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
LAYERS = ["envs", "agents", "algorithms", "scripts"]


def test_the_example_of_the_readme_is_short_and_knows_nothing_of_polyturn() -> None:
    example = (ROOT / "examples" / "light_switches.py").read_text()
    assert "<!-- examples/light_switches.py -->" in (ROOT / "README.md").read_text()
    assert len(example.splitlines()) <= 35
    assert "polyturn" not in re.sub(r'"""(.*?)"""', "", example, flags=re.DOTALL)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    banned = above | ({"torch", "transformers"} if layer == "envs" else set())
    for path in (ROOT / layer).rglob("*.py"):
        assert not imports_of(path) & banned, path
    for path in (ROOT / "algorithms" / "estimators").glob("*.py"):
        assert not imports_of(path) & {"torch", "transformers"}, path


def test_every_method_has_a_page_and_every_page_is_in_the_index() -> None:
    folder = ROOT / "docs" / "algorithms"
    pages = {path.name: path.read_text() for path in folder.glob("*.md")}
    index = pages.pop("index.md")
    documented = set(re.findall(r"algo=(\w+)", "\n".join(pages.values())))
    methods = {path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml")}
    assert methods - documented == set()
    assert set(re.findall(r"\((\w+\.md)\)", index)) == set(pages)


def leaves(config, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_default_configuration_is_small_and_every_key_is_read() -> None:
    """Keys below a `_target_` are arguments, which Python checks; every other one is read by name in the code."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("config"))
    keys = list(leaves(config))
    assert len(keys) < 90
    code = "\n".join(path.read_text() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
    for key in keys:
        parent, _, leaf = key.rpartition(".")
        node = config
        for part in filter(None, parent.split(".")):
            node = node[part]
        if "_target_" in node:
            continue
        assert re.search(rf"\b{leaf}\b", code), f"nobody reads {key}"


def test_every_experiment_and_every_choice_composes() -> None:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
            hydra.compose("config", [f"+experiment={path.stem}"])
        for group in ("agent", "policy", "rollout", "trainer"):  # test_algo_conf has the methods
            for path in (ROOT / "conf" / group).glob("*.yaml"):
                hydra.compose("config", [f"{group}={path.stem}"])
