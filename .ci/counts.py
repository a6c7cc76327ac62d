"""How the notebooks read, in numbers: `python .ci/counts.py [NOTEBOOK …]`; without arguments all chapters."""
import ast
import json
import re
import statistics
import sys
from pathlib import Path

CHAPTER = re.compile(r"\d\d_\w+\.ipynb")
MOST_COLUMNS = 110


def source(cell) -> str:
    return "".join(cell["source"])


def is_export(cell) -> bool:
    return cell["cell_type"] == "code" and bool(re.match(r"#\|\s*export[is]?\b", source(cell)))


def own_lines(cell) -> list[str]:
    "Lines of a cell without directives and empty ones."
    return [o for o in source(cell).splitlines() if o.strip() and not o.startswith("#|")]


def only_imports(cell) -> bool:
    try:
        return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(source(cell)).body)
    except SyntaxError:
        return False


def is_example(cell) -> bool:
    "A visible cell that shows something and exports nothing."
    if cell["cell_type"] != "code" or is_export(cell) or not own_lines(cell):
        return False
    if re.search(r"^#\|\s*(hide\b|default_exp)", source(cell), re.M):
        return False
    return not only_imports(cell)


def longest_run(cells) -> int:
    "Exported cells in a row with neither words nor an example between them."
    run = most = 0
    for c in cells:
        if is_export(c):
            run += 1
        elif c["cell_type"] == "markdown" or is_example(c):
            run = 0
        most = max(most, run)
    return most


def functions(tree):
    return [o for o in ast.walk(tree) if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))]


def packed_assignments(tree) -> int:
    "`a, b = x, y`: several assignments in one line."
    return sum(isinstance(o, ast.Assign) and isinstance(o.value, ast.Tuple)
               and any(isinstance(t, ast.Tuple) for t in o.targets) for o in ast.walk(tree))


def late_imports(tree) -> int:
    return sum(isinstance(o, (ast.Import, ast.ImportFrom)) for f in functions(tree) for o in ast.walk(f))


def export_lengths(path: Path) -> list[int]:
    "Lines of each exported cell of one notebook."
    return [len(own_lines(c)) for c in json.loads(path.read_text())["cells"] if is_export(c)]


def count(path: Path) -> dict:
    "The counts of one notebook."
    cells = json.loads(path.read_text())["cells"]
    exported = [c for c in cells if is_export(c)]
    examples = [c for c in cells if is_example(c)]
    tree = ast.parse("\n".join(source(c) for c in exported))
    code = [line for c in cells if c["cell_type"] == "code" for line in source(c).splitlines()]
    return dict(
        exported=len(exported),
        examples=len(examples),
        ratio=round(len(examples) / max(1, len(exported)), 2),
        median_export=statistics.median([len(own_lines(c)) for c in exported] or [0]),
        most_export=max([len(own_lines(c)) for c in exported] or [0]),
        median_example=statistics.median([len(own_lines(c)) for c in examples] or [0]),
        longest_run=longest_run(cells),
        over_110=sum(len(o) > MOST_COLUMNS for o in code),
        longest_function=max([f.end_lineno - f.lineno + 1 for f in functions(tree)] or [0]),
        packed=packed_assignments(tree),
        late_imports=late_imports(tree),
        lines=sum(len(own_lines(c)) for c in exported),
    )


def main(paths: list[str]) -> None:
    files = [Path(p) for p in paths] or sorted(p for p in Path("nbs").iterdir() if CHAPTER.fullmatch(p.name))
    for path in files:
        print(f"{path.stem:16}", " ".join(f"{k}={v}" for k, v in count(path).items()))


if __name__ == "__main__":
    main(sys.argv[1:])
