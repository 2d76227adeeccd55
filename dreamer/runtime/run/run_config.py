"""The config file of a run, with a seal that proves who wrote it; and the check whether it may be used. Imports no jax.

The first line of config.yaml is a comment with the random id of the run, the sha256 of all later lines, and the seal:
an HMAC of both with a key of this user (`dreamer.trust`), or "-" if no key could be stored:

    # dreamer run 5deb623c918d42e99015cc9dee381d8b sha256 <64 hex> seal <64 hex>

So the file is written in one step and can be used as a preset. A file without this line was written by hand or by an
earlier version. It can be read, but does not prove who wrote it.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dreamer import plugins, trust
from dreamer.config import PLUGINS, Config, Note, similar_key, stack, to_yaml
from dreamer.errors import UserError
from dreamer.fields import type_of
from dreamer.layers import Layer, dotted, layer_of
from dreamer.layers import layer as nested
from dreamer.runtime.files import safe_files
from dreamer.runtime.files.atomic import write_durably
from dreamer.runtime.files.manifest import Manifest
from dreamer.runtime.files.run_dir import CONFIG, existing_run_dir


class RunConfig(NamedTuple):
    """The text of a run's config.

    run: the id of the run; None: the config has no seal | ours: whether this user made the config on this machine
    """

    text: str
    run: str | None
    ours: bool
    path: Path

    def layer(self) -> Layer:
        """Returns the settings in the text, to lay over the defaults. Raises UserError if it is not valid YAML."""
        return layer_of(self.text, str(self.path))


def write(run_dir: Path, config: Config, run: str) -> None:
    """Writes the config of a run with its seal, completely or not at all. Raises UserError if it cannot be written.

    run: the id of the run.
    """
    text = trust.sealed_text(to_yaml(config), run)
    write_durably(run_dir / CONFIG, lambda half: half.write_text(text, encoding="utf-8"))


def read(run_dir: Path) -> RunConfig:
    """Reads the config of a run as text. Raises UserError if the file is missing or was changed after writing."""
    path = existing_run_dir(run_dir) / CONFIG
    try:
        found = trust.unsealed(safe_files.read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged, {error}; restore the original, and give changes as flags") from None
    return RunConfig(found.text, found.run, found.ours, path)


def check(found: RunConfig, *, trusted: bool, given: Mapping[str, Any]) -> None:
    """Raises UserError if the run's config contains names that may not be imported.

    trusted: whether the user trusts the run, which allows all names.
    given: the settings that the command itself gives, by dotted key. A name is allowed if the command gives it too.
    """
    values = found.layer().values
    trust.check(values, str(found.path), plugins.suite_names(), given=given, trust=trusted or found.ours)


def load(run_dir: Path, *, trusted: bool = False, given: Mapping[str, Any] | None = None) -> Config:
    """Loads the config of a run, to make its environment and agent.

    trusted, given: as in `check`. Raises UserError if `read` or `check` does.
    """
    found = read(run_dir)
    check(found, trusted=trusted, given=given or {})
    return stack([found.layer()], note=lambda note: None)


def load_plain(run_dir: Path, unknown: Note | None = None) -> Config:
    """Loads the config of a run for display only, without importing anything that the run names.

    A world model or behavior that is not part of dreamer becomes a plain record of the settings in the file.
    unknown: called with a line on each setting that this version of dreamer does not know; the setting is left out.
    None: such a setting raises UserError.
    """
    layer = read(run_dir).layer()
    values, strangers = dict(layer.values), {}
    for path in PLUGINS:
        outer, inner = path.split(".")
        group = values.get(outer)
        settings = group.get(inner) if isinstance(group, Mapping) else None
        name = settings.get("name") if isinstance(settings, Mapping) else None
        if isinstance(name, str) and ("." in name or ":" in name):
            values[outer] = {key: value for key, value in group.items() if key != inner}  # type: ignore[union-attr]
            strangers[path] = _record(settings)
    if unknown is not None:
        values = _known(layer._replace(values=values), unknown)
    config = stack([layer._replace(values=values)], note=lambda note: None)
    for path, record in strangers.items():
        outer, inner = path.split(".")
        config = dataclasses.replace(config, **{outer: dataclasses.replace(getattr(config, outer), **{inner: record})})
    return config


def _known(layer: Layer, unknown: Note) -> dict[str, Any]:
    """Returns the values of a layer without the settings that this version does not know; calls `unknown` for those."""
    flat = dict(dotted(layer.values))
    names = {key: flat[key] for key in (f"{path}.name" for path in PLUGINS) if key in flat}
    config = stack([nested(names, layer.origin)], note=lambda note: None)
    return _pruned(config, layer, layer.values, "", unknown)


def _pruned(config: Config, layer: Layer, values: Mapping[str, Any], path: str, unknown: Note) -> dict[str, Any]:
    """Returns `values`, found at the dotted key `path`, without the keys that this version does not know."""
    kept = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        kind = type_of(config, key)
        if kind is None:
            near = similar_key(config, key)
            hint = f" (now {near}?)" if near else ""
            unknown(f"{layer.where(key)}: this version of dreamer has no setting {key}{hint}; it is left out")
        elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            kept[name] = _pruned(config, layer, value, key, unknown)
        else:
            kept[name] = value
    return kept


def check_same_run(found: RunConfig, manifest: Manifest, step: int) -> None:
    """Raises UserError if config and checkpoint belong to different runs, or if the config has lost its first line."""
    if found.run is None and manifest.format in (None, 1):
        return
    if found.run != manifest.run:
        what = "has lost its first line, which seals it" if found.run is None else "belongs to another run"
        raise UserError(f"{found.path} {what}: checkpoint {step} belongs to run {manifest.run}")


def _record(settings: Any) -> Any:
    """Converts the settings of a world model or behavior to a dataclass with fields of the same names."""
    fields = [(str(name), Any, dataclasses.field(default=None)) for name in settings if _is_field(str(name))]
    return dataclasses.make_dataclass("Foreign", fields, frozen=True)(
        **{name: _frozen(settings[name]) for name, _, _ in fields}
    )


def _is_field(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
