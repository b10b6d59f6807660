"""Guards the structure itself: facts that are true or false, not tastes.

Imports are read from the source, lazy ones inside functions included; the commands are read from the Typer app.
"""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# An import points to a lower line, or stays in its own part. Parts on one line do not know each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"pipelines"},
    {"evaluation", "interop"},
    {"training", "decoding"},
    {"model", "corpus"},
    {"device", "settings", "files", "workers"},
    {"errors", "__init__"},
)

SEARCH = "--beam --length-penalty --batch-tokens --shortlist"
DEVICE = "--device --precision --threads"

# The contract of the command line: scripts depend on it, so a change here is a decision.
COMMANDS = {
    "": "--quiet --debug --version",
    "tokenizer": "",
    "tokenizer train": "--vocab-size --output --type",
    "tokenizer encode": "--model",
    "tokenizer decode": "--model",
    "train": "--train --valid --output --clean --source-lang --target-lang --config --preset --vocab-size --tokenizer"
    f" --max-steps --max-minutes --seed --from --cache --overwrite --show-config --set --devices {DEVICE}",
    "translate": f"--model --output --nbest --format --shard --devices {SEARCH} {DEVICE}",
    "evaluate": "--model --source --reference --hypothesis --output --format --target-lang --bleu-tokenize"
    f" {SEARCH} {DEVICE}",
    "info": "--format",
    "plot": "--output",
    "average": "--last --output",
    "shortlist": "--pieces",
    "export": "--to --output --weights",
    "bench": "",
    "bench train": f"--preset --vocab-size --updates --repetitions --format --set {DEVICE}",
    "bench translate": f"--model --repetitions --format {SEARCH} {DEVICE}",
    "demo": "--output",
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "mt").rglob("*.py"))}


def imports_of(module):
    """The modules of mt that a module imports, wherever in its text; `from package import module` means the module."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found & MODULES.keys()


def part_of(module):
    return (module.split(".") + ["__init__"])[1]


def layer_of(part):
    assert any(part in layer for layer in LAYERS), f"mt/{part} stands in no layer"
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("module", MODULES)
def test_every_import_points_downward(module):
    part = part_of(module)
    for imported in imports_of(module) - {"mt"}:
        below = layer_of(part_of(imported)) > layer_of(part)
        assert below or part_of(imported) == part, f"{module} imports {imported}"


def test_no_module_imports_itself_in_a_circle():
    graphlib.TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize("use", ["", "from typer.testing import CliRunner; CliRunner().invoke(mt.cli.app, ['--help'])"])
def test_the_command_line_starts_without_heavy_libraries_and_in_silence(use):
    heavy = "{'torch', 'numpy', 'sentencepiece', 'sacrebleu', 'matplotlib'}"
    code = f"import sys, mt.cli\n{use}\nloaded = {heavy} & set(sys.modules)\nassert not loaded, loaded"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def commands():
    """Every command of the app by its full name; the app itself is ''."""
    import typer

    from mt.cli import app

    found, waiting = {}, [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        found[name] = command
        waiting += [(f"{name} {key}".strip(), sub) for key, sub in getattr(command, "commands", {}).items()]
    return found


def flags_of(command):
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def test_commands_and_flags_are_the_ones_agreed_on():
    agreed = {name: set(flags.split()) for name, flags in COMMANDS.items()}
    assert {name: flags_of(command) for name, command in commands().items()} == agreed


def test_every_command_has_help_and_stands_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in commands().items():
        assert command.help, f"mt {name} has no help"
        assert re.search(rf"\b{f'mt {name}'.strip()}\b", readme), f"README.md does not mention mt {name}"


def readme_paths():
    """The paths in the README's map of the code: an indented line stands in the folder above it.

    A line is an entry when its first word is followed by two spaces or by nothing.  Python files that the line of a
    folder names further on stand in that folder.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The map of the code\n.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no fenced block under '## The map of the code'"
    paths, folders = set(), []
    for line in block[1].splitlines():
        entry = re.match(r"( *)(\.?\w[\w./-]*)(?:  (.*))?$", line.rstrip())
        if entry is None:
            continue
        indent, name, rest = len(entry[1]), entry[2], entry[3] or ""
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        path = (folders[-1][1] if folders else "") + name
        paths.add(path.rstrip("/"))
        if name.endswith("/"):
            folders.append((indent, path))
            paths |= {path + file for file in re.findall(r"\b\w+\.py\b", rest)}
    return paths


def test_the_readme_shows_the_code_as_it_is():
    shown = readme_paths()
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "mt").rglob("__init__.py")}
    assert {path for path in shown if not (ROOT / path).exists()} == set(), "shown, but not there"
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mt").rglob("*.py") if not path.name.startswith("__")}
    assert (packages | modules) - shown == set(), "there, but not shown"
