"Build the site into _docs/: with Quarto where it is installed, else with smalldocs, which needs only Python."
import ast
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def present(entries, folder):
    "Sidebar entries whose notebooks are in `folder`: a glob becomes the files it finds."
    found = []
    for entry in entries:
        if isinstance(entry, str) and "*" in entry:
            found += sorted(str(p.relative_to(folder)) for p in folder.glob(entry))
        elif isinstance(entry, str) or "href" in entry:
            href = entry if isinstance(entry, str) else entry["href"]
            if href.startswith("http") or (folder / href).exists(): found.append(entry)
        else:
            contents = present(entry["contents"], folder)
            if contents: found.append({**entry, "contents": contents})
    return found


def needed(cell):
    "Whether a cell may have to run for the tables: not one that imports something for an example of its own."
    always = {"export", "exports", "exporti", "exec_doc"}
    if cell.cell_type != "code" or cell.directives_.keys() & always: return True
    body, kinds = cell.parsed_() or [], (ast.Import, ast.ImportFrom)
    nodes = [n for top in body for n in ast.walk(top)]
    return all(isinstance(n, kinds) for n in body) or not any(isinstance(n, kinds) for n in nodes)


def mathml(page):
    "Replace the TeX of a page by MathML, which needs no script; returns what could not be read."
    from latex2mathml.converter import convert

    failed = []

    def draw(match):
        tex = html.unescape(match[2])
        try: maths = convert(tex, display="block" if match[1] == "display" else "inline")
        except Exception: maths = "\\"
        if "\\" in maths:
            failed.append(f"{page.name}: {tex}")
            return match[0]
        return f'<span class="math {match[1]}">{maths}</span>'

    text = page.read_text(encoding="utf-8")
    new = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', draw, text, flags=re.S)
    if not failed: new = re.sub(r'<(?:link|script)[^>]*/katex@[^>]*>(?:</script>)?\s*', "", new)
    if new != text: page.write_text(new, encoding="utf-8")
    return failed


def build():
    "Process the notebooks into _proc/, then render that into _docs/."
    os.chdir(ROOT)
    import nbdev.processors
    import nbdev.showdoc
    from api_tables import ApiTable
    from nbdev.serve import proc_nbs

    nbdev.showdoc.BasicMarkdownRenderer = ApiTable
    plain = nbdev.processors._do_eval
    nbdev.processors._do_eval = lambda cell: needed(cell) and plain(cell)
    proc = Path(proc_nbs(force=True, n_workers=0))     # in this process: it sees ApiTable
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    sidebar = config["website"]["sidebar"]
    sidebar["contents"] = present(sidebar["contents"], proc)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (proc / "_quarto.yml").write_text(text, encoding="utf-8")

    if shutil.which("quarto"):
        command = ["quarto", "render", str(proc), "--no-execute", "-M", "html-math-method:mathml"]
    else:
        try: import smalldocs  # noqa: F401
        except ImportError: sys.exit("make docs needs Quarto, or smalldocs (Python 3.11 or newer)")
        command = [sys.executable, "-m", "smalldocs.cli", "render", str(proc)]
    subprocess.run(command, check=True)
    site = proc / config["project"]["output-dir"]
    if not shutil.which("quarto"):
        for page in sorted(site.rglob("*.html")):
            for line in mathml(page): print("maths left as TeX:", line, file=sys.stderr)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(site, ROOT / "_docs")


if __name__ == "__main__":
    build()
    print("the site is in _docs/index.html")
