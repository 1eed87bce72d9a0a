"""The structure of the repository: imports go one way, and files and the whole keep to a size."""

import ast
import graphlib
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator

from small import ROOT

LEVELS = (  # a room imports its own modules and rooms of the levels before its own
    ("progress", "printing"),
    ("config", "distributed", "statistics", "command_line"),
    ("io", "device", "figures"),
    ("web", "nn", "data"),
    ("training", "evaluation", "demo"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODEL_ROOMS = {"config", "distributed", "io", "device", "nn"}
FREE = ("tests/", "benchmarks/", "nanoprune/demo/")  # outside the total
LIMITS = {"train.py": 2400, "model.py": 3200}
UNCOUNTED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENCODING, tokenize.ENDMARKER}

LISTED = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
FILES = [file for file in LISTED.stdout.splitlines() if (ROOT / file).is_file()]
MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
SCRIPTS = {module for module in MODULES if "." not in module and f"{module}.py" in FILES}


def imports(node: ast.AST) -> Iterator[str]:
    """The repository's modules that a piece of code imports, also inside functions, but not for types alone.
    """
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if name.name in MODULES)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name their module in full"
        for name in node.names:
            longer = f"{node.module}.{name.name}"
            yield from [module for module in (longer, node.module) if module in MODULES][:1]
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def room(module: str) -> str:
    """The room of a module: the part after `nanoprune`; of scripts and configs their first part."""
    parts = module.split(".")
    return parts[1] if parts[0] == "nanoprune" and parts[1:2] != ["__main__"] and len(parts) > 1 else parts[0]


def allowed(module: str, target: str) -> bool:
    ours, theirs = room(module), room(target)
    if ours in LEVEL:
        return ours == theirs or LEVEL.get(theirs, len(LEVELS)) < LEVEL[ours]
    if module == "model":
        return theirs in MODEL_ROOMS
    if ours == "configs":
        return theirs in ("configs", "config")
    return target not in SCRIPTS or target == "model" or (module, target) == ("study", "train")


def test_imports_go_one_way():
    graph = {}
    for module, file in MODULES.items():
        if not file.startswith(("tests/", "benchmarks/")):
            graph[module] = sorted(set(imports(ast.parse((ROOT / file).read_text(encoding="utf-8")))))
    edges = [(module, target) for module, targets in graph.items() for target in targets]
    wrong = [f"{module} imports {target}" for module, target in edges if not allowed(module, target)]
    assert not wrong, "\n".join(wrong)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules of a cycle


def tokens(file: str) -> int:
    """Tokens of a file, without comments and blank lines; a docstring or an f-string is one."""
    count = depth = 0
    with open(ROOT / file, "rb") as source:
        for token in tokenize.tokenize(source.readline):
            kind = tokenize.tok_name[token.type]
            depth -= kind == "FSTRING_END"  # from Python 3.12 on an f-string comes in parts
            count += not depth and token.type not in UNCOUNTED and kind != "FSTRING_START"
            depth += kind == "FSTRING_START"
    return count


def test_no_file_and_not_the_whole_is_too_large():
    counts = {file: tokens(file) for file in FILES}
    limits = {file: LIMITS.get(file, 6000 if file.startswith(FREE) else 3500) for file in FILES}
    wrong = [f"{file}: {counts[file]} tokens, at most {limits[file]}"
             for file in FILES if counts[file] > limits[file]]
    total = sum(count for file, count in counts.items() if not file.startswith(FREE))
    most = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nanoprune"]["tokens"]
    if total > most:
        wrong.append(f"{total} tokens in all, at most {most} by pyproject.toml")
    assert not wrong, "\n".join(wrong)
