"""The site's front page is the README: written once, with links as the site has them."""

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
    return re.sub(
        r"\[([^\]]+)\]\(((?:[\w-]+/)*(?:README|CONTRIBUTING|CHANGELOG)\.md|examples/[^)]+)\)", r"\1 (`\2`)", text
    )
