"""What the site has beside the pages of docs/: pages of the repository's root, and the script of the diagrams."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
MERMAID = "node_modules/@mermaid-js/tiny/dist/mermaid.tiny.js"


def on_config(config: MkDocsConfig) -> None:
    """Name the script of the diagrams, which the theme would otherwise load from another host."""
    config.extra_javascript = ["mermaid.js"]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the root, with links as they are in the site."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=as_in_site((ROOT / name).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "mermaid.js", content=(SITE / MERMAID).read_bytes()))


def as_in_site(text: str) -> str:
    """A page of the root with its links as from docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(rf"\]\(({'|'.join(PAGES)})", lambda link: f"]({PAGES[link[1]]}", text)
