"Write README.md from nbs/index.ipynb, without Quarto. With --check, only say whether they agree."
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written from nbs/index.ipynb by `make readme`: edit that notebook. -->\n\n"


def local_links(text):
    "Point relative links and pictures of a page in nbs/ at their place seen from the top of the repository."
    def moved(m): return m[1] + ("nbs/" + m[2]).replace("nbs/../", "")
    return re.sub(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)", moved, text)


def code(cell):
    "A code cell as Markdown: its source, then the outputs that are text."
    source = "".join(cell["source"])
    flags = re.findall(r"^#\|\s*(.+)$", source, re.M)
    if any(f in ("hide", "include: false") for f in flags): return ""
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    parts = [] if "echo: false" in flags else [f"```python\n{source}\n```"]
    for out in cell["outputs"]:
        data = out.get("data", {})
        if "text/markdown" in data: parts.append(local_links("".join(data["text/markdown"])))
        elif "image/png" in data or "image/svg+xml" in data: continue
        else:
            text = "".join(out.get("text", data.get("text/plain", ""))).rstrip()
            if text: parts.append(f"```\n{text}\n```")
    return "\n\n".join(p.strip() for p in parts)


def render(notebook):
    "The whole README as one string."
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    def part(c): return local_links("".join(c["source"])) if c["cell_type"] == "markdown" else code(c)
    parts = [part(c) for c in cells if c["cell_type"] != "raw"]
    return NOTE + "\n\n".join(p.strip() for p in parts if p.strip()) + "\n"


if __name__ == "__main__":
    text, readme = render(ROOT / "nbs/index.ipynb"), ROOT / "README.md"
    if "--check" not in sys.argv: readme.write_text(text, encoding="utf-8")
    elif readme.read_text(encoding="utf-8") != text:
        sys.exit("README.md differs from nbs/index.ipynb: run `make readme`")
