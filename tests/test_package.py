"The package as a whole: what CI checks beside the notebooks' own tests."
import ast
import html.parser
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.parse
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = [f"{name}.ipynb" for name in """
    00_core 01_config 02_data 03_video 04_clip 05_store 05a_arrays 05b_check 06_toyworld 06a_semireal
    07_masks 08_alignment 09_localizer 10_captioner 11_losses 12_gaps 13_writers 14_model 15_train
    16_run 17_export 18_text_scores 19_evaluate 19a_judge 20_plots 21_report 22_explorer 23_experiments
    24_commands""".split()]
ORDER = [name.split("_", 1)[1].removesuffix(".ipynb") for name in CHAPTERS]
NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
                   if not p.name.startswith(".") and ".ipynb_" not in str(p))
EXPORTING = [n for n in NOTEBOOKS if n in CHAPTERS]
MODULES = [p for p in sorted((ROOT / "sail_nbdev").glob("*.py")) if p.stem in ORDER]


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


SETTINGS = settings()
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
COMMANDS = dict(line.split("=") for line in SETTINGS["console_scripts"].split())


def cells(notebook, kind=None):
    found = json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in found if kind in (None, c["cell_type"])]


def flags(cell):
    return {m.split(":")[0].strip() for m in re.findall(r"^#\|\s*(.+)$", cell["source"], re.M)}


def our_files():
    "Files of the repository, committed or about to be."
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    try: out = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError): pytest.skip("not a git working tree")
    return [ROOT / line for line in out.splitlines() if (ROOT / line).is_file()]


def copy_tree(to):
    "A copy of the repository in the folder `to`, without anything git ignores."
    for path in our_files():
        new = to / path.relative_to(ROOT)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, new, follow_symlinks=False)
    return to


def shell(*command, cwd=ROOT, **env):
    "Run a command of this Python's environment; its output on failure."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(cwd), **env}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
    printed = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{printed}"
    return done.stdout


def quickest(limit, *command):
    "Least wall time in seconds of a few runs; stops at the first that is below `limit`."
    times = []
    for _ in range(5):
        start = time.perf_counter()
        shell(*command)
        times.append(time.perf_counter() - start)
        if times[-1] < limit: break
    return min(times)


# -- metadata

def test_version_is_stated_once():
    import sail_nbdev
    assert sail_nbdev.__version__ == SETTINGS["version"] == importlib.metadata.version("sail_nbdev")
    assert f"\nversion: {SETTINGS['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{SETTINGS['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_commands_are_installed():
    entries = importlib.metadata.entry_points(group="console_scripts")
    assert {e.name: e.value for e in entries if e.value.startswith("sail_nbdev")} == COMMANDS


def test_constraints_fit_the_ranges():
    wanted = {}
    for key in [k for k in SETTINGS if k.endswith("requirements")]:
        for word in SETTINGS[key].split():
            req = Requirement(word)
            wanted[req.name.lower().replace("_", "-")] = req
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            req = Requirement(line)
            pinned.setdefault(req.name.lower().replace("_", "-"), []).append(req)
    apart = sorted(set(wanted) ^ set(pinned))
    assert not apart, f"in only one of settings.ini and constraints.txt: {apart}"
    for name, pins in pinned.items():
        for pin in pins:
            version = next(iter(pin.specifier)).version
            assert version in wanted[name].specifier, f"{pin} is outside {wanted[name]}"
        for python, system in itertools.product(PYTHONS, ("linux", "darwin", "win32")):
            always = Marker("python_version > '3'")
            here = {"python_version": python, "sys_platform": system}
            fits = [p for p in pins if (p.marker or always).evaluate(here)]
            some = len(fits) == 1 or (not fits and wanted[name].marker)
            assert some, f"{len(fits)} pins of {name} for Python {python} on {system}"


def test_every_requirement_has_both_bounds():
    "Below what was seen to work, nothing; above it, not the next major version, which nobody has tried."
    keys = ("requirements", "llm_requirements", "scale_requirements", "gpu_requirements")
    wanted = [Requirement(word) for key in keys for word in SETTINGS[key].split()]
    assert [str(r) for r in wanted if {s.operator for s in r.specifier} != {">=", "<"}] == []


def test_pythons_are_the_same_everywhere():
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == PYTHONS
    classifiers = importlib.metadata.metadata("sail_nbdev").get_all("Classifier")
    assert [c.split()[-1] for c in classifiers if re.search(r":: 3\.\d+$", c)] == PYTHONS
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert SETTINGS["min_python"] == PYTHONS[0] and f'requires-python = ">={PYTHONS[0]}"' in project
    assert f"{PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_makefile_explains_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY:(.*)$", makefile, re.M)[1].split()
    out = shell("make", "help")
    assert {"demo", "test", "docs", "bench", "clean", "help"} <= set(targets)
    assert [t for t in targets if not re.search(rf"make {t}\b", out)] == []


# -- code

def imports(path):
    "Modules of this package that `path` imports, also inside functions, with the line."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "sail_nbdev." * bool(node.level) + (node.module or "")
            package = base.rstrip(".") == "sail_nbdev"
            names = [f"{base.rstrip('.')}.{a.name}" for a in node.names] if package else [base]
        else: continue
        for name in names:
            if name.startswith("sail_nbdev."): yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    above = ORDER[:ORDER.index(path.stem)]
    wrong = [(name, line) for name, line in imports(path) if name in ORDER and name not in above]
    assert not wrong, f"a module imports only {above}: {wrong}"


def test_every_module_is_a_chapter():
    found = {p.stem for p in (ROOT / "sail_nbdev").glob("*.py")} - {"__init__", "_modidx"}
    assert found == set(ORDER), f"missing or too many: {sorted(found ^ set(ORDER))}"


def load(path, name):
    "A script of the repository as a module."
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def counts():
    "How each chapter reads: see .ci/counts.py."
    script = load(".ci/counts.py", "counts")
    return {n: script.count(ROOT / "nbs" / n) for n in EXPORTING}


def over(counts, name, limit):
    return {n: c[name] for n, c in counts.items() if c[name] > limit}


def test_exported_cells_are_short(counts):
    script = load(".ci/counts.py", "counts")
    lengths = [n for chapter in EXPORTING for n in script.export_lengths(ROOT / "nbs" / chapter)]
    assert statistics.median(lengths) < 10 and over(counts, "most_export", 45) == {}


def test_functions_are_short(counts):
    assert over(counts, "longest_function", 40) == {}


def test_one_effect_per_line(counts):
    assert over(counts, "packed", 0) == {} and over(counts, "over_110", 0) == {}


def test_words_and_examples_stand_between_exported_cells(counts):
    assert over(counts, "longest_run", 4) == {}
    ratio = sum(c["examples"] for c in counts.values()) / sum(c["exported"] for c in counts.values())
    assert ratio >= .8, f"{ratio:.2f} examples per exported cell"
    assert statistics.median(c["median_example"] for c in counts.values()) <= 3


def test_modules_import_at_their_top(counts):
    "But for the commands, whose help must be quick, and for extras that may be missing."
    late = sum(c["late_imports"] for n, c in counts.items() if "commands" not in n)
    assert late <= 20, {n: c["late_imports"] for n, c in counts.items() if c["late_imports"]}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_lines_fit_the_page(path):
    "Of a module only `__all__` is longer, which nbdev wraps by itself."
    text = re.sub(r"^__all__ = \[.*?\]\n", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 110] == []


def weights_only(call):
    "Is this `torch.load(…, weights_only=True)`, which reads tensors and runs nothing?"
    named = {k.arg: k.value for k in call.keywords} if isinstance(call, ast.Call) else {}
    only = getattr(named.get("weights_only"), "value", False)
    return only is True and ast.unparse(call).startswith("torch.load(")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_nothing_is_pickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe = [o.func for o in ast.walk(tree) if isinstance(o, ast.Call) and weights_only(o)]
    for node in ast.walk(tree):
        if node in safe: continue
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {a.name.split(".")[0] for a in node.names}
            names.add((getattr(node, "module", "") or "").split(".")[0])
            assert not names & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, where
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save"), f"{where}: torch.{node.attr} pickles; use safetensors"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert node.value.value is False, where


def test_import_is_light():
    best = quickest(1.0, sys.executable, "-c", "import sail_nbdev")
    assert best < 1.0, f"import sail_nbdev takes {best:.2f} s"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name, tmp_path):
    module, function = COMMANDS[name].split(":")
    script = tmp_path / name  # as pip writes it
    script.write_text(f"import sys\nfrom {module} import {function}\n"
                      f"if __name__ == '__main__': sys.exit({function}())\n")
    text = shell(sys.executable, str(script), "--help")
    assert name in text and "--help" in text
    best = quickest(2.0, sys.executable, str(script), "--help")
    assert best < 2.0, f"{name} --help takes {best:.2f} s"


# -- notebooks

def test_every_chapter_is_there():
    assert [c for c in ["index.ipynb", *CHAPTERS] if c not in NOTEBOOKS] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_first_cell_is_title_and_sentence(notebook):
    "nbdev takes the first cell as the page's title and description and drops whatever else stands in it."
    first = cells(notebook)[0]
    lines = [line for line in first["source"].splitlines() if line.strip()]
    marks = [line[:2] for line in lines]
    assert first["cell_type"] == "markdown" and marks == ["# ", "> "], first["source"][:300]


def prints(cell):
    "Whether a cell must have left something to see: it prints, or ends in an expression that is no call."
    if flags(cell) & {"hide", "eval", "output", "slow", "include"}: return False
    source = re.sub(r"^[%!].*$", "pass", cell["source"], flags=re.M)
    body = ast.parse(source).body
    values = [n.value for n in body if isinstance(n, ast.Expr)]
    if any(isinstance(v, ast.Call) and getattr(v.func, "id", "") == "print" for v in values): return True
    if not body or not isinstance(body[-1], ast.Expr) or source.rstrip().endswith(";"): return False
    return not isinstance(body[-1].value, (ast.Call, ast.Constant))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_was_run(notebook):
    code = cells(notebook, "code")
    for i, cell in enumerate(code):
        where = f"{notebook}, code cell {i}:\n{cell['source'][:300]}"
        assert [o for o in cell["outputs"] if o["output_type"] == "error"] == [], where
        text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
        assert not any(w in text for w in ("Traceback (most recent call last)", "Warning:", "it/s]")), where
        assert cell["outputs"] or not prints(cell), f"no output kept: {where}"
    if notebook != "index.ipynb":
        assert not code or any(c["outputs"] for c in code), f"{notebook} keeps no output"
    metadata = json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["metadata"]
    assert "widgets" not in metadata, f"{notebook} keeps the state of widgets, which need a kernel that runs"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_explains(notebook):
    words = sum(len(c["source"].split()) for c in cells(notebook, "markdown"))
    assert words >= 150, f"{notebook} has {words} words of prose"


@pytest.mark.parametrize("notebook", EXPORTING)
def test_chapter_has_a_picture(notebook):
    kinds = {k for c in cells(notebook, "code") for o in c["outputs"] for k in o.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}, f"{notebook} keeps no picture"


def pictures(cell):
    return [o for o in cell["outputs"] if any(k.startswith("image/") for k in o.get("data", {}))]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_picture_is_told_in_words(notebook):
    "`#| fig-alt` becomes the picture's alt text in the site, for those who do not see it."
    drawn = [c for c in cells(notebook, "code") if pictures(c)]
    told = [re.search(r'^#\| fig-alt: "(.{20,})"$', c["source"], re.M) for c in drawn]
    assert [c["source"][-200:] for c, words in zip(drawn, told) if not words] == []
    markdown = "\n".join(c["source"] for c in cells(notebook, "markdown"))
    assert re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*\balt=)[^>]*>", markdown) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_installs_itself_in_colab_and_nowhere_else(notebook):
    found = [i for i, c in enumerate(cells(notebook)) if "[ -e /content ]" in c["source"]]
    if notebook in CHAPTERS or notebook.startswith("tutorials/"):
        assert found == [2 if notebook in CHAPTERS else 1], "after the title, before all that imports"
        cell = cells(notebook)[found[0]]
        assert {"hide", "eval"} <= flags(cell) and cell["outputs"] == []
    else: assert found == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_has_the_metadata_that_jupyter_is_given(notebook):
    "`.ci/jupyter_server_config.py` adds what JupyterLab would: nothing else may differ, and cells have ids."
    nb = json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))
    spec = {"display_name": "python3", "language": "python", "name": "python3"}
    assert (nb["metadata"], nb["nbformat"], nb["nbformat_minor"]) == ({"kernelspec": spec}, 4, 5)
    ids = [c["id"] for c in nb["cells"]]
    assert len(set(ids)) == len(ids) and all(c["metadata"] == {} for c in nb["cells"])


@pytest.mark.parametrize("notebook", EXPORTING)
def test_exported_cells_have_prose_before_them(notebook):
    second = cells(notebook)[1]["source"]
    assert second.startswith("#| default_exp"), f"{notebook}: the second cell names the module"


def test_readme_is_the_home_page():
    shell(sys.executable, ".ci/readme.py", "--check")


def test_readme_names_the_costs_of_chapter_4():
    from sail_nbdev.clip import ENCODER_COSTS
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [f"| {k} | {c.megabytes:,} MB | {c.gigabytes} GB | {c.rate} |" for k, c in ENCODER_COSTS.items()]
    assert [row for row in rows if row not in readme] == []


def test_readme_keeps_text_outputs_and_turns_links(tmp_path):
    readme = load(".ci/readme.py", "readme")
    links = "[a](00_core.ipynb) [b](../LICENSE) [c](https://x.org/y) [d](#t)"
    table = {"data": {"text/markdown": "|a|\n|-|"}}
    figure = {"data": {"image/png": "x", "text/plain": "fig"}}
    made = [{"cell_type": "markdown", "source": ["# T\n", "\n", links]},
            {"cell_type": "code", "source": "#| hide\nsecret", "outputs": []},
            {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}]},
            {"cell_type": "code", "source": "#| echo: false\nshow()", "outputs": [table, figure]}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": made}))
    assert readme.render(tmp_path / "n.ipynb") == readme.NOTE + (
        "# T\n\n[a](nbs/00_core.ipynb) [b](LICENSE) [c](https://x.org/y) [d](#t)\n\n"
        "```python\n1 + 1\n```\n\n```\n2\n```\n\n|a|\n|-|\n")


# -- repository

def test_no_paths_of_a_machine():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users)/[\w.]|[A-Z]:\\+Users\b")
    wrong = []
    for path in our_files():
        if path.suffix in (".png", ".gz"): continue
        text = path.read_text(encoding="utf-8")
        places = [text[max(0, m.start() - 30):m.end() + 30] for m in pattern.finditer(text)]
        wrong += [f"{path.relative_to(ROOT)}: {place!r}" for place in places]
    assert wrong == []


def test_links_of_the_markdown_files():
    wrong = []
    for path in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|#", target): continue
            if not (ROOT / target.split("#")[0]).exists(): wrong.append(f"{path.name}: {target}")
    assert wrong == []


def differences(a, b):
    "Files that are in only one of two folders, or not the same in both."
    def files(d):
        found = [p for p in d.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return {p.relative_to(d) for p in found}
    changed = {f for f in files(a) & files(b) if (a / f).read_bytes() != (b / f).read_bytes()}
    return sorted(map(str, (files(a) ^ files(b)) | changed))


def test_ruff_finds_nothing():
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)]
    r = subprocess.run(ruff, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


@pytest.mark.slow
def test_hints_are_sound(tmp_path):
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    r = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


@pytest.mark.slow
def test_export_and_clean_change_nothing(tmp_path):
    before, after = copy_tree(tmp_path / "before"), copy_tree(tmp_path / "after")
    shell("nbdev_export", cwd=after)
    shell("nbdev_clean", cwd=after)
    changed = differences(before, after)
    assert changed == [], "run `make export` and commit what it changes"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "The source archive, and the wheel that is built from it."
    tree = copy_tree(tmp_path_factory.mktemp("dist") / "tree")
    shell(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tree.parent), cwd=tree)
    return tree.parent


@pytest.mark.slow
def test_source_archive_holds_the_whole_repository(dist):
    archive, = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar: names = {n.partition("/")[2] for n in tar.getnames()}
    assert {p.relative_to(ROOT).as_posix() for p in our_files()} - names == set()


@pytest.mark.slow
def test_wheel_holds_every_module_script_and_style_and_no_notebook(dist):
    wheel, = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"sail_nbdev-{SETTINGS['version']}-py3-none-any")
    package = ROOT / "sail_nbdev"
    ours = [*package.glob("*.py"), package / "py.typed", *(package / "assets").iterdir()]
    assert {p.relative_to(ROOT).as_posix() for p in ours} == {n for n in names if ".dist-info/" not in n}
    info = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in info and any(n.endswith("LICENSE") for n in names)
    links = re.findall(r"\]\(([^)\s]+)\)", info.partition("\n\n")[2])
    assert [o for o in links if not re.match(r"https://|#", o)] == []


class Page(html.parser.HTMLParser):
    "Links and anchors of one page of the site."
    def __init__(self, path):
        super().__init__()
        self.links, self.pictures, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"): self.ids.add(attrs["id"])
        if tag == "img": self.pictures.append(attrs.get("alt"))
        target = attrs.get("href" if tag in ("a", "link") else "src")
        if target: self.links.append((tag, target))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built by smalldocs from a copy of the tree."
    if importlib.util.find_spec("smalldocs") is None: pytest.skip("smalldocs needs Python 3.11")
    tree = copy_tree(tmp_path_factory.mktemp("site"))
    shell(sys.executable, ".ci/docs.py", cwd=tree)
    return tree / "_docs"


@pytest.mark.slow
def test_site_has_every_page_and_no_broken_link(site):
    pages = {p: Page(p) for p in site.rglob("*.html")}
    assert {p.relative_to(site).with_suffix(".ipynb").as_posix() for p in pages} >= set(NOTEBOOKS)
    wrong, home = [], SETTINGS["doc_host"] + SETTINGS["doc_baseurl"] + "/"
    for path, page in pages.items():
        wrong += [f"{path.name}: {link} leaves the site" for tag, link in page.links
                  if tag == "a" and link.startswith(home)]
        if "Traceback (most recent call last)" in path.read_text(encoding="utf-8"):
            wrong.append(f"{path.name}: shows a traceback")
        for _, link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc: continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            anchor = urllib.parse.unquote(url.fragment)
            if not target.exists(): wrong.append(f"{path.name}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                wrong.append(f"{path.name}: {link} has no such anchor")
    assert wrong == []


@pytest.mark.slow
def test_site_shows_every_notebook_in_its_sidebar(site):
    home = Page(site / "index.html")
    targets = {urllib.parse.unquote(link).removeprefix("./") for tag, link in home.links if tag == "a"}
    assert [n for n in NOTEBOOKS if n.replace(".ipynb", ".html") not in targets] == []


@pytest.mark.slow
def test_site_needs_nothing_from_outside(site):
    loads = ("script", "img", "link")
    links = [(p.name, tag, link) for p in site.rglob("*.html") for tag, link in Page(p).links]
    assert [o for o in links if o[1] in loads and re.match(r"https?:|//", o[2])] == []
    remote = re.compile(r"""@import\s*(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//""")
    assert [p.name for p in site.rglob("*.css") if remote.search(p.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_site_tells_every_picture_in_words(site):
    pictures = [(p.name, alt) for p in site.rglob("*.html") for alt in Page(p).pictures]
    assert len(pictures) > 60 and [name for name, alt in pictures if not (alt or "").strip()] == []


@pytest.mark.slow
def test_site_folds_exported_lines_and_links_to_them(site):
    page = (site / "07_masks.html").read_text(encoding="utf-8")
    assert page.count('<details class="code-fold">') >= 8 and 'details open="" class="code-fold"' not in page
    found = re.findall(rf'{SETTINGS["git_url"]}/blob/main/(sail_nbdev/\w+\.py)#L(\d+)-L(\d+)', page)
    lines = (ROOT / "sail_nbdev/masks.py").read_text(encoding="utf-8").splitlines()
    heads = [lines[int(first) - 1] for path, first, last in found if int(last) <= len(lines)]
    assert len(heads) == len(found) >= 8 and all(re.match(r"def |@|class ", line) for line in heads), heads


@pytest.mark.slow
def test_site_has_markdown_of_every_page(site):
    index = (site / "llms.txt").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        text = page.with_name(page.name + ".md")
        assert text.exists() and text.relative_to(site).as_posix() in index, page.name
        written = text.read_text(encoding="utf-8")
        assert written.startswith("# ") and "{=html}" not in written and ".llms.md" not in written
