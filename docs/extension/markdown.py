"""Plain text as Markdown that shows it unchanged."""

from __future__ import annotations

import re


def escaped(text: str) -> str:
    """Text with Markdown's special characters escaped; what stands between backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>|#$])", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Text as code."""
    return f"`{text}`"
