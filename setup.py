"Package metadata, read from settings.ini so that it is stated once."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def words(key):
    return cfg.get(key, "").split()


def absolute(text):
    "README.md for a page that shows it alone: its links to files and pictures lead to the repository."
    def moved(m):
        form = "raw" if m[1].startswith("!") else "blob"
        return f'{m[1]}({cfg["git_url"]}/{form}/{cfg["branch"]}/{m[2]})'
    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)", moved, text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=absolute(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": cfg["git_url"] + "/blob/main/CHANGELOG.md",
    },
    keywords=cfg["keywords"].split(),
    license_expression="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    package_data={cfg["lib_name"]: ["assets/*", "py.typed"]},
    include_package_data=True,
    install_requires=words("requirements"),
    extras_require={name: words(f"{name}_requirements") for name in ("dev", "lab", "llm", "scale", "gpu")},
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d'],
    },
    zip_safe=False,
)
