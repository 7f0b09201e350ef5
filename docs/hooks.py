"""Hooks of the documentation site: documents of the top folder become pages, and files that pages link to are copied.

The Markdown files are written to be read in the repository, where `../cluster.yaml` is a file beside this folder. On the site the
link leads to a copy, or to a page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Documents of the top folder, and the pages that they become.
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
_COPIES = "files"
#: Where `docs/gallery.py` writes its page and images.
GALLERY = ROOT / "build" / "gallery"
_NO_GALLERY = "# Gallery\n\n`make docs` draws the figures of this page.\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the documents of the top folder, and copies of the files that any page links to."""
    for name, page in PAGES.items():
        if name != "README.md":
            files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    files.append(File.generated(config, "gallery/index.md", content=_gallery()))
    for image in sorted(GALLERY.glob("*.svg")):
        files.append(File.generated(config, f"gallery/{image.name}", abs_src_path=str(image)))
    linked: set[Path] = set()
    for file in files.documentation_pages():
        if file.src_uri.endswith(".md"):
            linked |= {target for _, target in _outside(file.src_uri, file.content_string)}
    for path in sorted(linked):
        inside = path.relative_to(ROOT).as_posix()
        if path.is_file() and inside not in PAGES and not inside.startswith("docs/"):
            files.append(File.generated(config, f"{_COPIES}/{inside}", abs_src_path=str(path)))
    return files


def _gallery() -> str:
    page = GALLERY / "index.md"
    return page.read_text("utf-8") if page.is_file() else _NO_GALLERY


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to what is outside of this folder lead to the page or copy; a folder is only named."""
    where = page.file.src_uri
    targets = dict(_outside(where, markdown))

    def changed(found: re.Match[str]) -> str:
        target = targets.get(found[2])
        if target is None:
            return found[0]
        inside = target.relative_to(ROOT).as_posix()
        if inside.startswith("docs/"):
            goal = inside.removeprefix("docs/")
        elif target.is_file():
            goal = PAGES.get(inside, f"{_COPIES}/{inside}")
        else:
            return f"{found[1]}{_relative('index.md', where)}{found[4]}"
        return f"{found[1]}{_relative(goal, where)}{found[3] or ''}{found[4]}"

    return _LINK.sub(changed, markdown)


def _outside(page: str, markdown: str) -> list[tuple[str, Path]]:
    """Return the links of a page to what is not in this folder as it is seen from the page: (as written, path)."""
    origin = ROOT if page in PAGES.values() and page != "index.md" else (ROOT / "docs" / page).parent
    found = []
    for match in _LINK.finditer(markdown):
        link = match[2]
        if "://" in link or link.startswith(("mailto:", "/")):
            continue
        target = Path(posixpath.normpath(origin / link))
        from_top = origin == ROOT
        if target.exists() and target.is_relative_to(ROOT) and (from_top or not target.is_relative_to(ROOT / "docs")):
            found.append((link, target))
    return found


def _relative(goal: str, page: str) -> str:
    return posixpath.relpath(goal, posixpath.dirname(page) or ".")
