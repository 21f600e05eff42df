"""Hooks of MkDocs: adds pages from outside docs/; makes links work on the site and in a checkout.

README.md becomes the site's first page. A link to a file of the repository that has no page, such
as LICENSE, becomes plain text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "BUILD.md": "build.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/index.md",
}
PAGES |= {
    f"benchmarks/{path.name}": f"benchmarks/{path.name}"
    for path in ROOT.glob("benchmarks/*-20*.md")
}
PAGES = {name: page for name, page in PAGES.items() if (ROOT / name).is_file()}
NAMES = {page: name for name, page in PAGES.items()}
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def on_files(files, config):
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(NAMES.get(here, f"docs/{here}"))

    def on_site(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        name = posixpath.normpath(posixpath.join(folder, target))
        if name in PAGES:
            target = PAGES[name]
        elif name.startswith("docs/"):
            target = name.removeprefix("docs/")
        elif (ROOT / name).exists():
            return text
        else:
            return match[0]  # MkDocs reports it
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(on_site, markdown)
