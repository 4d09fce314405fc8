"""Writes the pages of the site that follow from the code: the commands, the API, changelog and contributing.

python website/generate.py    writes docs/reference/*.md, docs/{browser,changelog,contributing}.md, which git ignores
"""

import argparse
import ast
import pkgutil
from collections.abc import Iterator
from html import escape
from pathlib import Path

import deformable_detr
from deformable_detr.cli.commands import COMMANDS, find_command

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = ("boxes", "categories", "config", "detector", "keywords", "postprocessing", "presets", "structures")
"""Modules with public names that are not in a room of their own."""


def main() -> None:
    """Write all pages."""
    pages = {"reference/commands.md": commands_page()}
    pages |= {f"reference/{name}.md": module_page(name) for name in MODULES}
    pages |= {f"reference/{name}.md": room_page(name) for name in rooms()}
    pages |= {f"{name.lower()}.md": root_page(name) for name in ("CHANGELOG", "CONTRIBUTING")}
    pages["browser.md"] = browser_page(live=(DOCS / "live" / "index.html").is_file())
    for name, text in pages.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def rooms() -> list[str]:
    """The packages that people use from Python."""
    found = [module.name for module in pkgutil.iter_modules(deformable_detr.__path__) if module.ispkg]
    return [name for name in found if name != "cli"]


def root_page(name: str) -> str:
    """A document of the root as a page of docs/, to which its links into docs/ are shorter."""
    return (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("](docs/", "](")


BROWSER = """# In your browser

`deformable-detr export RUN FOLDER --to web` writes a detector as a page that computes in the visitor's browser
([how, and with what](deploying.md#in-the-browser)).
"""

LIVE = """This is the detector of `deformable-detr demo`, trained for some minutes on CPU cores. It knows drawn circles, squares,
triangles and stars, and nothing else. No image that it is shown leaves your machine.

<p>Drawn images: <a href="../live/?image=scene-1.png" target="live">one</a>,
<a href="../live/?image=scene-2.png" target="live">another</a>,
<a href="../live/?image=scene-3.png" target="live">a third</a>; or one of your own.
<a href="../live/?image=scene-1.png">On a page of its own</a> it may use several threads.</p>

<iframe class="live" name="live" title="The detector in your browser" src="../live/?image=scene-1.png" allow="camera"></iframe>
"""

NOT_LIVE = """This copy of the site was built without a detector. On a machine with the source:

```bash
make demo    # trains the demo's detector: some minutes on CPU cores
make live    # writes it as a page, which fetches onnxruntime-web (npm)
make docs    # this page has it now
```
"""


def browser_page(live: bool) -> str:
    """The page with the live demo, or what to do for it where no detector was exported (`website/live.py`)."""
    return f"{BROWSER}\n{LIVE if live else NOT_LIVE}"


def module_page(name: str) -> str:
    """The page of a module with all its public names; mkdocstrings puts the docstrings there."""
    return f"# `deformable_detr.{name}`\n\n::: deformable_detr.{name}\n"


def room_page(name: str) -> str:
    """The page of a package: what its `__all__` offers, each from the module where it stands (which may have the same name)."""
    tree = ast.parse(Path(deformable_detr.__path__[0], name, "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    (names,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    lines = [f"# `deformable_detr.{name}`", "", ast.get_docstring(tree) or ""]
    for public in ast.literal_eval(names):
        home = homes.get(public, f"deformable_detr.{name}.{public}")
        lines += ["", f"::: {home}", "    options:", "      show_root_heading: true", "      show_root_toc_entry: true"]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """All commands with all their options, from the parsers that the program itself uses."""
    lines = [
        "# Commands",
        "",
        "`deformable-detr COMMAND --help` prints the same. Options may be written with underscores, too.",
        "",
    ]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {text} |" for name, text in COMMANDS.items()]
    for name in COMMANDS:
        lines += ["", *command_section(name)]
    return "\n".join(lines) + "\n"


def command_section(name: str) -> Iterator[str]:
    """One command: usage, description, examples, options."""
    command = find_command(name)
    parser = command.parser()
    yield from (f"## {name}", "", "```text", f"{parser.usage}", "```", *paragraphs(command.description))
    yield from ("", "```text", *command.examples.rstrip().splitlines(), "```")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        if not actions:
            continue
        yield from ("", f"**{(group.title or '').capitalize()}**", "", "| option | what it does |", "|---|---|")
        for action in actions:
            yield f"| {option(action)} | {cell((action.help or '').replace('%%', '%'))} |"


def paragraphs(text: str) -> Iterator[str]:
    """A description as Markdown: lines that are indented are code."""
    for block in text.strip().split("\n\n"):
        if all(line.startswith("  ") for line in block.splitlines()):
            yield from ("", "```text", block, "```")
        else:
            yield from ("", cell(block).replace("&#124;", "|"))


def option(action: argparse.Action) -> str:
    """How an option is written, with the placeholder of its value."""
    if not action.option_strings:
        return f"`{action.metavar}`"
    names = ", ".join(action.option_strings)
    value = "" if action.nargs == 0 else f" {action.metavar}"
    more = " …" if action.nargs == "+" else ""
    return f"<code>{cell(names + value + more)}</code>"


def cell(text: str) -> str:
    """Plain text in a cell of a table."""
    return escape(text.replace("\n", " "), quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")


if __name__ == "__main__":
    main()
