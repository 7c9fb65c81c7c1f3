"""The description on a package index: README.md with absolute links. A metadata hook of hatchling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURES = (".png", ".svg")


class PackagePage(MetadataHookInterface):
    """Sets the field ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README, whose links lead to the sources of this version."""
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute(readme, metadata["urls"]["Homepage"], f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(markdown: str, homepage: str, version: str) -> str:
    """Let the relative links of a page lead to ``version`` of the repository at ``homepage``."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(PICTURES) else "blob"
        return f"]({homepage}/{kind}/{version}/{found[1]})"

    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, markdown)
