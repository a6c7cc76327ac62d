"Build the site into _docs/: with Quarto where it is installed, else with smalldocs, which needs only Python."
import ast
import html
import json
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


FOLD = """<button type="button" class="all-lines" onclick="{
const folds = [...document.querySelectorAll('details.code-fold')], open = folds.some(o => !o.open)
folds.forEach(o => o.open = open)
this.textContent = open ? 'Fold all exported lines' : 'Show all exported lines'
}">Show all exported lines</button>"""


def opening(path, settings):
    "Markup for the top of the page of a notebook: its link to Colab."
    repo = "/".join(settings["git_url"].split("/")[-2:])
    colab = f"https://colab.research.google.com/github/{repo}/blob/{settings['branch']}/nbs/{path.as_posix()}"
    return f'<a class="colab" href="{colab}" title="Run this page in Google Colab">Open in Colab</a>'


def prepare(notebook, proc, settings):
    "In a processed notebook: exported lines fold below the table that nbdev made; Colab at the top."
    path = notebook.relative_to(proc)
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    folded = 0
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if "#| code-fold: show" not in source: continue
        folded += 1
        cell["source"] = source.replace("#| code-fold: show", "#| code-fold: true")
    links = [opening(path, settings)] if path.stem[:2].isdigit() or path.parts[0] == "tutorials" else []
    if folded: links.append(FOLD)
    text = "```{=html}\n<p>" + "\n".join(links) + "</p>\n```"
    cell = {"cell_type": "markdown", "id": "opening", "metadata": {}, "source": text}
    if links: nb["cells"].insert(1, cell)
    notebook.write_text(json.dumps(nb, ensure_ascii=False, indent=1), encoding="utf-8")


def inside(page, site, settings):
    "Links to the site's own address become links between its files: nbdev names pages without their numbers."
    base = settings["doc_host"] + settings["doc_baseurl"] + "/"
    named = {re.sub(r"^\d+[a-z]?_", "", p.name): p.name for p in site.glob("*.html")}

    def moved(match):
        target = site / named.get(match[1], match[1])
        if not target.exists(): return match[0]
        known = not match[2] or f'id="{match[2][1:]}"' in target.read_text(encoding="utf-8")
        return os.path.relpath(target, page.parent).replace(os.sep, "/") + (match[2] or "") * known
    text = page.read_text(encoding="utf-8")
    new = re.sub(rf"{re.escape(base)}([\w/.-]+\.html)(#[\w.-]+)?(?=[\"\')\s])", moved, text)
    if new != text: page.write_text(new, encoding="utf-8")


def without_fonts(style):
    "A stylesheet that fetches no font from elsewhere: the page is read in those of the machine."
    text = style.read_text(encoding="utf-8")
    style.write_text(re.sub(r"@import\s*url\([\"']?https?:[^)]*\)\s*;", "", text), encoding="utf-8")


def beside(site):
    "The Markdown of each page beside it, under the name that nbdev's sites give it: page.html.md."
    for page in site.rglob("*.llms.md"):
        page.rename(page.with_name(page.name.replace(".llms.md", ".html.md")))
    for path in [site / "llms.txt", *site.rglob("*.html.md")]:
        if not path.exists(): continue
        text = path.read_text(encoding="utf-8").replace(".llms.md", ".html.md")
        text = re.sub(r"```\{=html\}\n.*?\n```\n*|<!-- WARNING.*?-->\n*", "", text, flags=re.S)
        path.write_text(re.sub(r"(?<=\))\{(?:style=|\.)[^}\n]*\}", "", text), encoding="utf-8")


def build():
    "Process the notebooks into _proc/, then render that into _docs/."
    os.chdir(ROOT)
    import nbdev.processors
    import nbdev.showdoc
    from api_tables import ApiTable
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs

    settings = get_config().d

    nbdev.showdoc.BasicMarkdownRenderer = ApiTable
    plain = nbdev.processors._do_eval
    nbdev.processors._do_eval = lambda cell: needed(cell) and plain(cell)
    proc = Path(proc_nbs(force=True, n_workers=0))     # in this process: it sees ApiTable
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    sidebar = config["website"]["sidebar"]
    sidebar["contents"] = present(sidebar["contents"], proc)
    for notebook in proc.rglob("*.ipynb"): prepare(notebook, proc, settings)
    config["website"]["llms-txt"] = True
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
    beside(site)
    for style in site.rglob("*.css"): without_fonts(style)
    for page in [*site.rglob("*.html"), *site.rglob("*.html.md")]: inside(page, site, settings)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(site, ROOT / "_docs")


if __name__ == "__main__":
    build()
    print("the site is in _docs/index.html")
