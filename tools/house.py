"""Print how the code stands against the limits of its layout; exit with 1 where one is exceeded.

python tools/house.py            the table
python tools/house.py --lines    also the longest modules, and lines per folder
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
MODULES, LENGTH, PARAMETERS, READING = 120, 450, 8, 2000
FIRST_VERSION = 38_421  # lines of Python under workbench/ at version 0.1.0, with bench/ and demo/
READING_PATH = (
    "edit.py", "editing/prepare.py", "drag/problem.py", "drag/loop.py", "drag/methods.py",
    "diffusion/unet.py",
)  # fmt: skip
KERNELS = "groupnorm_triton.py"
ENTRANCES = {"__init__.py", "__main__.py", "app.py", "doctor.py", "edit.py"}


def sources(*tops: str) -> list[Path]:
    """Every Python file under the given folders of the repository."""
    return sorted(path for top in tops for path in (REPO / top).rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted module name of a file."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lines(path: Path) -> int:
    """Number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports at run time, inside functions too; not for types alone."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (a.name for a in child.names if a.name in known)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    found = full if full in known else child.module
                    if found in known:
                        yield found
            else:
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while (member := stack.pop()) != node:
                group.append(member)
            if group:
                found.append(sorted([node, *group]))

    for node in sorted(graph):
        if node not in index:
            connect(node)
    return found


def module_graph() -> dict[str, set[str]]:
    """Who imports whom, by module; a package's own code counts where it is run."""
    paths = {name_of(p): p for p in sources("workbench", "benchmarks", "training")}
    graph = {}
    for name, path in paths.items():
        seen = set(imports(path, set(paths)))
        # importing a module runs the packages around it first
        around = {".".join(n.split(".")[:k]) for n in seen for k in range(1, n.count(".") + 1)}
        own = {".".join(name.split(".")[:k]) for k in range(1, name.count(".") + 2)}
        graph[name] = (seen | (around & set(paths) - own)) - {name}
    return graph


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Who imports whom, by first folder; top-level files count by themselves."""
    files = {name_of(p) for p in (REPO / "workbench").glob("*.py")}

    def room(name: str) -> str:
        return name if name in files else ".".join(name.split(".")[:2])

    out: dict[str, set[str]] = {}
    for name, others in graph.items():
        mine = out.setdefault(room(name), set())
        mine |= {room(o) for o in others if room(o) != room(name)} - {"workbench"}
    return out


def wide_functions() -> list[str]:
    """Functions with more than eight parameters, but for kernels; `self` and `cls` do not count."""
    found = []
    for path in sources("workbench", "benchmarks", "training"):
        if path.name == KERNELS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                args = node.args
                names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
                count = len(names) - (bool(names) and names[0] in ("self", "cls"))
                if count > PARAMETERS:
                    found.append(f"{name_of(path)}.{node.name} ({count})")
    return found


class Row(NamedTuple):
    """One limit: what is counted, how many there are, how many there may be, and which are too many."""

    what: str
    value: int
    limit: int
    culprits: tuple[str, ...] = ()


def rows() -> list[Row]:
    """Every limit but vulture's, measured."""
    ours = sources("workbench")
    graph = module_graph()
    reading = sum(lines(REPO / "workbench" / p) for p in READING_PATH)

    def none(what: str, culprits: list[str]) -> Row:
        return Row(what, len(culprits), 0, tuple(culprits))

    def rings(graph: dict[str, set[str]]) -> list[str]:
        return [" <-> ".join(ring) for ring in cycles(graph)]

    return [
        Row("modules under workbench/", len(ours), MODULES),
        none(
            f"modules above {LENGTH} lines",
            [f"{name_of(p)} ({lines(p)})" for p in ours if lines(p) > LENGTH],
        ),
        none(
            "top-level files that are not an entrance",
            sorted({p.name for p in (REPO / "workbench").glob("*.py")} - ENTRANCES),
        ),
        none(f"functions with more than {PARAMETERS} parameters", wide_functions()),
        none("import cycles between modules", rings(graph)),
        none("import cycles between folders", rings(folder_graph(graph))),
        Row("lines on the reading path", reading, READING),
    ]


def main() -> int:
    """Print the table; returns 1 when a limit is exceeded."""
    ours = sources("workbench")
    measured = rows()
    for what, value, limit, culprits in measured:
        print(f"{'ok' if value <= limit else 'X '}  {what:<44} {value:>7}   <= {limit}")
        for culprit in culprits:
            print(f"        {culprit}")
    total = sum(lines(p) for p in sources("workbench", "benchmarks", "training"))
    print(f"    {f'lines of Python (0.1.0: {FIRST_VERSION})':<44} {total:>7}")
    if "--lines" in sys.argv[1:]:
        for path in sorted(ours, key=lines, reverse=True)[:20]:
            print(f"    {lines(path):5} {path.relative_to(REPO)}")
        for folder in sorted({p.parent for p in ours}):
            inside = [p for p in ours if p.parent == folder]
            print(f"    {sum(map(lines, inside)):5} in {len(inside):3} {folder.relative_to(REPO)}/")
    dead = subprocess.run(
        [sys.executable, "-m", "vulture"], cwd=REPO, capture_output=True, text=True, check=False
    )
    print(dead.stdout, end="")
    print(f"{'ok' if not dead.returncode else 'X '}  unused code found by vulture")
    return int(bool(dead.returncode) or any(r.value > r.limit for r in measured))


if __name__ == "__main__":
    raise SystemExit(main())
