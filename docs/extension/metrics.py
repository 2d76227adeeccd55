"""Every metric as Markdown, from the glossary of dreamer: name, meaning, what is healthy."""

from __future__ import annotations

from docs.extension.markdown import code, escaped
from dreamer.runtime.log.glossary import METRICS


def page() -> str:
    """A section for each group of metrics, in the order of the glossary."""
    sections: dict[str, list[str]] = {}
    for metric in METRICS:
        healthy = f"\n\n  *Healthy:* {escaped(metric.healthy)}" if metric.healthy else ""
        entry = f"{code(metric.name)}\n: {escaped(metric.meaning)}{healthy}"
        sections.setdefault(metric.group, []).append(entry)
    return "\n\n".join("\n\n".join([f"## {group}", *entries]) for group, entries in sections.items())
