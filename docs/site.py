"""Build the documentation's site into build/site/html: `python docs/site.py`.

The pages of docs/ are the site's pages. This script adds what Zensical cannot make of them: the reference from
docstrings, pages of configuration files and examples that pages link to, pages of runs (`scripts.page`), the navigation
from docs/README.md, and llms.txt (llmstxt.org) with the pages' Markdown beside them. Zensical then
builds strictly, so a link that leads nowhere is an error. No network is used.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.page import html

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "site"
PACKAGES = ("polyturn", "envs", "agents", "algorithms", "scripts")
PLACES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash"}
INDEX = "docs/README.md"  # its lists are the navigation
RUNS = ".json.gz"  # data of a page of runs
LINK = re.compile(r"(?<!!)\[((?:[^][`]|`[^`]*`)+)\]\(([^)\s]+)\)")


def main() -> None:
    """Build the site. Raises `ValueError` for a link that has no page, and ends with Zensical's exit code."""
    shutil.rmtree(BUILD, ignore_errors=True)
    pages = site_pages()
    write(BUILD / "pages", pages)
    for shown in assets():
        there = BUILD / "pages" / shown.relative_to(ROOT / "docs")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shown, there)
    write(BUILD / "pages", run_pages())
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    (BUILD / "zensical.toml").write_text(settings.replace("[project]\n", f"[project]\nnav = {navigation(pages)}\n", 1))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(BUILD / "zensical.toml")]
    if code := subprocess.run(command, cwd=BUILD, check=False).returncode:
        sys.exit(code)
    write(BUILD / "html", {**pages, "llms.txt": llms(pages)})


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write each text into its file below `folder`."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def site_pages() -> dict[str, str]:
    """The Markdown of each page, by its place in the site."""
    made = {**reference(), **files("conf"), **files("examples")}
    sources = [ROOT / name for name in PLACES] + sorted((ROOT / "docs").rglob("*.md"))
    found = {source.relative_to(ROOT).as_posix(): source.read_text(encoding="utf-8") for source in sources}
    places = {**{name: place_of(name) for name in found}, **{name: place for place, (name, _) in made.items()}}
    return {
        **{places[name]: linked(text, name, places) for name, text in found.items()},
        **{place: text for place, (_, text) in made.items()},
    }


def assets() -> list[Path]:
    """Pictures, and data of laboratories."""
    return [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".json")]


def run_pages() -> dict[str, str]:
    """The page of each file with data of runs, by its place in the site."""
    files_of_data = (ROOT / "docs").rglob(f"*{RUNS}")
    return {
        f"{path.relative_to(ROOT / 'docs').as_posix().removesuffix(RUNS)}.html": html(
            base64.b64encode(path.read_bytes()).decode()
        )
        for path in files_of_data
    }


def place_of(name: str) -> str:
    """Where a page of the repository stands in the site."""
    return "contents.md" if name == INDEX else PLACES.get(name, name.removeprefix("docs/"))


def linked(text: str, name: str, places: dict[str, str]) -> str:
    """The text of the page `name` with its links as they are in the site. Code is left as it is."""
    here = Path(place_of(name)).parent

    def link(found: re.Match[str]) -> str:
        shown, (path, _, anchor) = found[1], found[2].partition("#")
        if "://" in found[2] or not path:
            return found[0]
        whole = (ROOT / name).parent.joinpath(path).resolve()
        if whole in assets():
            return found[0]
        if path.endswith(RUNS) and whole.is_file():
            return f"[{shown}]({path.removesuffix(RUNS)}.html)"
        target = whole.relative_to(ROOT).as_posix()
        if target.startswith("tests/") or target == "LICENSE":
            return shown  # nobody reads it in a site
        if target not in places and f"{target}/__init__.py" in places:
            target = f"{target}/__init__.py"
        if target not in places and (ROOT / target).is_file() and target.startswith(("conf/", "examples/")):
            target, anchor = Path(target).parent.as_posix(), re.sub(r"[^\w-]", "", Path(target).name.lower())
        if target not in places:
            raise ValueError(f"{name}: the site has no page for {found[2]}")
        up = Path(*[".."] * len(here.parts), places[target]).as_posix()
        return f"[{shown}]({up}{'#' * bool(anchor)}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    for number in range(0, len(parts), 2):
        parts[number] = LINK.sub(link, parts[number]).replace("](docs/", "](")  # pictures of the start page
    return "".join(parts)


# -- pages that are made ----------------------------------------------------------------------------------------------
def files(folder: str) -> dict[str, tuple[str, str]]:
    """A page for each folder below `folder`, with its files as they are: place -> (folder, text)."""
    pages = {}
    for where in [ROOT / folder, *sorted(path for path in (ROOT / folder).rglob("*") if path.is_dir())]:
        name = where.relative_to(ROOT).as_posix()
        shown = [path for path in sorted(where.iterdir()) if path.suffix in LANGUAGES and path.name != "__init__.py"]
        parts = [
            f"## {path.name}\n\n```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```\n" for path in shown
        ]
        if parts or where == ROOT / folder:
            pages[f"reference/{name}/index.md"] = name, f"# {name}/\n\n" + "\n".join(parts)
    return pages


def reference() -> dict[str, tuple[str, str]]:
    """A page for each public module, from its docstrings: place -> (file, text)."""
    pages = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT)
            module = name.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
            if path.name.startswith("_") and path.name != "__init__.py":
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            text = f"# {module}\n\n{prose(tree)}\n" + "".join(described(node, "") for node in tree.body)
            place = name.with_name("index.md") if path.name == "__init__.py" else name.with_suffix(".md")
            pages[f"reference/{place.as_posix()}"] = name.as_posix(), text
    return pages


def described(node: ast.AST, owner: str) -> str:
    """The signature and the docstring of a public function or class with its public methods; empty for other code."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return ""
    text = prose(node)
    if node.name.startswith("_") and not (node.name == "__init__" and text):
        return ""
    if isinstance(node, ast.ClassDef):
        fields = [f"    {ast.unparse(f)}" for f in node.body if isinstance(f, ast.AnnAssign) and public(f)]
        of = ", ".join(map(ast.unparse, node.bases))
        head = "\n".join([f"class {node.name}{f'({of})' if of else ''}", *fields])
    else:
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        head = f"def {node.name}({ast.unparse(node.args)}){result}"
        if len(head) > 100:
            head = head.replace(", ", ",\n    ").replace("(", "(\n    ", 1)
    below = "".join(described(part, f"{owner}{node.name}.") for part in node.body) if not owner else ""
    return f"\n{'###' if owner else '##'} {owner}{node.name}\n\n```python\n{head}\n```\n\n{text}\n{below}"


def public(field: ast.AnnAssign) -> bool:
    """Whether a field is for users."""
    return isinstance(field.target, ast.Name) and not field.target.id.startswith("_")


def prose(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The docstring, which is Markdown; `<` is a sign outside of code, and not the beginning of HTML."""
    parts = re.split(r"(`[^`]*`|^    .*$)", ast.get_docstring(node) or "", flags=re.MULTILINE)
    for number in range(0, len(parts), 2):
        parts[number] = parts[number].replace("<", "&lt;")
    return "".join(parts)


# -- what ties them together ------------------------------------------------------------------------------------------
def sections() -> dict[str, list[tuple[str, str]]]:
    """The headings of docs/README.md, each with the names and files that its list links to."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, text in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / INDEX).read_text(), re.DOTALL | re.MULTILINE
    ):
        links = [(name, path) for name, path in LINK.findall(text) if "#" not in path]
        found[heading] = [(name, place_of(f"docs/{path}")) for name, path in links]
    return found


def navigation(pages: dict[str, str]) -> str:
    """The value of `nav`, as TOML. Pages have the name of their heading."""

    def entry(name: str, value: str | list[str]) -> str:
        shown = json.dumps(value) if isinstance(value, str) else f"[{', '.join(value)}]"
        return f"{{ {json.dumps(name)} = {shown} }}"

    made = [entry("polyturn", "index.md"), entry("All pages", "contents.md")]
    for heading, links in sections().items():
        made.append(entry(heading, [json.dumps(place) for place in dict.fromkeys(place for _, place in links)]))
    below: dict[str, list[str]] = {}
    for page in pages:
        if page.startswith("reference/"):
            folder, *rest = [part for part in Path(page).with_suffix("").parts[1:] if part != "index"]
            below.setdefault(folder, []).append(entry(".".join(rest) or folder, page))
    made += [entry("Reference", [entry(folder, below[folder]) for folder in below])]
    made += [entry("Contributing", "contributing.md"), entry("Changelog", "changelog.md")]
    return f"[{', '.join(made)}]"


def llms(pages: dict[str, str]) -> str:
    """An overview for language models: every page of the index, with its Markdown."""
    start = pages["index.md"].split("\n## ")[0]
    summary = " ".join(re.sub(r"!?\[.*?\]\(.*?\)", "", start.split("\n", 1)[1]).split())
    lines = ["# polyturn", "", f"> {summary}", ""]
    for heading, links in sections().items():
        lines += [f"## {heading}", "", *(f"- [{name}]({place})" for name, place in dict.fromkeys(links)), ""]
    lines += [
        "## Optional",
        "",
        "- [Reference of every module](reference/polyturn/index.md)",
        "- [Changelog](changelog.md)",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
