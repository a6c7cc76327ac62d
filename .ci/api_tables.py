"How the site shows a function or class: its call, its docstring, and a table with a row for each parameter."
import importlib
import inspect
import re
import textwrap
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer

PACKAGE = Path(__file__).resolve().parents[1] / "sail_nbdev"
MANY = 12  # parameters; beyond these the call is shortened and the table tells


@lru_cache
def exported(name):
    "The object `name` as the package has it: nbdev runs cells in a shell, where a class has no source."
    for path in sorted(PACKAGE.glob("[!_]*.py")):
        head = rf"^(class|def) {name.split('.')[0]}\b"
        if not re.search(head, path.read_text(encoding="utf-8"), re.M): continue
        try: return attrgetter(name)(importlib.import_module(f"{PACKAGE.name}.{path.stem}"))
        except AttributeError: continue
    return None


def kind(annotation):
    "An annotation as plain words, without the bar that would end a table's cell."
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"\s*\|\s*", " or ", text)


def option(annotation):
    "Type and meaning of a parameter that is annotated with fastcore's `Param`, else None."
    found = re.match(r'Param\("(.*?)",\s*(\w+)', annotation) if isinstance(annotation, str) else None
    return found and (found[2], found[1])


def value(default):
    "A default as it would be typed."
    if inspect.isfunction(default) or inspect.isclass(default): return default.__name__
    return "…" if type(default).__name__.startswith("_") else repr(default)


def call(name, params):
    "One call of `name`, with defaults, broken into lines where it is long."
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    defaults = ["" if p.default is p.empty else f"={value(p.default)}" for p in params]
    words = [star.get(p.kind, "") + p.name + default for p, default in zip(params, defaults)]
    if len(words) > MANY: words = words[:3] + ["…"]
    text = f"{name}({', '.join(words)})"
    if len(text) <= 90: return text
    inner = textwrap.fill(", ".join(words), 82, break_long_words=False)
    return f"{name}(\n" + textwrap.indent(inner, "    ") + "\n)"


def table(obj, params, result):
    "Rows of parameter, type, default and meaning; nothing where no parameter is documented."
    notes = docments(obj, full=True, args_kwargs=True)
    meanings = {k: " ".join(v.docment.split()) for k, v in notes.items() if v.get("docment")}
    if not meanings: return ""
    def row(p):
        declared = kind(p.annotation) if p.annotation is not p.empty else ""
        default = "" if p.default is p.empty else f"`{value(p.default)}`"
        declared, meaning = option(p.annotation) or (declared, meanings.get(p.name, ""))
        return f"`{p.name}`", declared, default, meaning
    rows = [row(p) for p in params]
    if result is not inspect.Signature.empty and result not in (None, "None"):
        rows.append(("returns", kind(result), "", meanings.get("return", "")))
    escaped = [[c.replace("|", r"\|") for c in row] for row in rows]
    rows = [("", "type", "default", "meaning"), ("---",) * 4, *escaped]
    if not any(row[2] for row in rows[2:]): rows = [(row[0], row[1], row[3]) for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def source_link(plain, name):
    "Address of the lines of an object in the repository, or nothing where it has none."
    link = NbdevLookup().code(f"{getattr(plain, '__module__', '')}.{name}")
    if not link: return ""
    try: lines, first = inspect.getsourcelines(plain)
    except (OSError, TypeError): return link.partition("#")[0]
    return f"{link.partition('#')[0]}#L{first}-L{first + len(lines) - 1}"


class ApiTable(BasicMarkdownRenderer):
    "Stands in for nbdev's renderer while the site is built."

    def _repr_markdown_(self):
        obj = exported(self.nm) or self.sym
        plain = inspect.unwrap(obj) if callable(obj) else obj
        source = source_link(plain, self.nm)
        link = f'[source]({source}){{style="float:right; font-size:smaller"}}\n\n' if source else ""
        text = f"---\n\n{link}{'#' * self.title_level} {self.nm}\n\n"
        try: sig = inspect.signature(plain)
        except (TypeError, ValueError): sig = None
        builtin = inspect.isclass(plain) and "__init__" not in vars(plain)  # as of an exception
        if sig and not builtin:
            params = [p for p in sig.parameters.values() if p.name not in ("self", "cls")]
            text += f"```python\n{call(self.nm, params)}\n```\n\n"
        text += f"{inspect.getdoc(plain) or ''}\n\n"
        if sig and not builtin:
            result = inspect.Signature.empty if inspect.isclass(plain) else sig.return_annotation
            text += table(plain, params, result)
        return text
