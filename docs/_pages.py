"""The site's front page is the README, written once, with links as the site has them; and names of code in docstrings are plain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The README in place of ``index.md``. What lies outside docs/ is named there, and not linked."""
    if page.file.src_path != "index.md":
        return markdown
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    outside = re.compile(r"\[([^\]]+)\]\(((?:[\w-]+/)*(?:README|CONTRIBUTING|CHANGELOG)\.md|examples/[^)]+)\)")
    return outside.sub(lambda link: f"`{link[2]}`" if link[1] == link[2] else f"{link[1]} (`{link[2]}`)", text)


def on_page_content(content: str, **_: Any) -> str:
    """What docstrings say of a name's kind, ``:class:`` for example, is for other readers than a page's."""
    return re.sub(r":(?:class|func|meth|mod|attr):(?=<code)", "", content)
