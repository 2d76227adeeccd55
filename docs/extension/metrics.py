"""Every metric as Markdown, from the glossary of dreamer: name, meaning, what is healthy."""

from __future__ import annotations

import importlib.util

from docs.extension.markdown import code, escaped


def page() -> str:
    """A section for each group of metrics, in the order of the glossary."""
    if importlib.util.find_spec("dreamer.runtime.log.glossary") is None:
        return ""
    from dreamer.runtime.log.glossary import METRICS

    sections: dict[str, list[str]] = {}
    for metric in METRICS:
        healthy = f"\n\n  *Healthy:* {escaped(metric.healthy)}" if metric.healthy else ""
        entry = f"{code(metric.name)}\n: {escaped(metric.meaning)}{healthy}"
        sections.setdefault(metric.group, []).append(entry)
    return "\n\n".join("\n\n".join([f"## {group}", *entries]) for group, entries in sections.items())
