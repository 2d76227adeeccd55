"""The root configuration. YAML presets and overrides change it under the same strict rules. Imports no jax.

Each Config is defined in the file that it configures; `Config` here joins them. A preset or an override is a `Layer`
of differences; layers are applied to the defaults from left to right. A complete config is itself a valid preset.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from dreamer import hints, plugins
from dreamer import trust as trusting
from dreamer.coerce import Dumper, NotPlain, coerce, plain, show
from dreamer.data.episodes import Reading
from dreamer.errors import UserError
from dreamer.fields import (
    MAY_CHANGE,
    SAME_GROUP,
    at_least,
    between,
    check_bounds,
    check_field,
    declared,
    keys,
    type_of,
)
from dreamer.layers import Layer, dotted, layer, read_preset
from dreamer.runtime.log.logger import Config as LogConfig
from dreamer.runtime.replay.config import Config as ReplayConfig
from dreamer.runtime.workers import Config as WorkersConfig

NO_ENV = "none"  # the environment of a run that only learns from data and is not evaluated
PLUGINS = {"agent.world_model": "dreamer.world_models", "agent.behavior": "dreamer.behaviors"}


def _default(module: str) -> Any:
    """Returns a dataclass field whose default is dreamer.`module`.Config(). The default imports the module."""
    return field(default_factory=lambda: plugins.load(f"dreamer.{module}").Config())


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: Annotated[int, between(0, 2**31 - 1), SAME_GROUP] = 0
    """Seed of networks, replay and environments."""
    env: str = "CartPole-v1"
    """Environment: a gymnasium id, suite:task (envs/suite.py) or package.module:factory. A run with `updates`
    uses it to evaluate only; none: not even that, and the data tell the spaces."""
    env_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment; --env-options.KEY VALUE sets one."""
    action_repeat: Annotated[int, at_least(1)] = 1
    """Environment frames for which each action is held."""
    env_steps: Annotated[int, at_least(1), MAY_CHANGE] = 1_000_000
    """Length of the run in agent steps (rows stored, reset rows included), all environments together."""
    data: tuple[str, ...] = ()
    """Datasets to learn from, as in `dreamer data PATH`: with `updates` from nothing else, otherwise in a share of each
    batch, `replay.data_share`."""
    reading: Reading = field(default_factory=Reading)
    """How `data` is read where it does not say itself what it means."""
    updates: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Length of a run that learns from `data` only, in updates, without environment steps; 0 = the run collects."""
    replay_ratio: Annotated[float, at_least(0)] = 32
    """Trained time steps per collected agent step; updates = env_steps * replay_ratio / (batch_size * batch_length)."""
    run_dir: Annotated[str, MAY_CHANGE, SAME_GROUP] = ""
    """Folder of the run; empty: runs/<time>-<env>-seed<seed>."""
    init_from: str = ""
    """Run directory whose newest weights initialise a new run; empty: start from scratch."""
    init_parts: Literal["all", "world_model", "behavior"] = "all"
    """Parts to initialise from that run."""
    init_missing: Annotated[float, between(0, 1)] = 0.0
    """Share of the arrays in `init_parts` that may be missing or differ in shape; such arrays start from scratch."""
    loop: Annotated[Literal["auto", "host", "device"], MAY_CHANGE] = "auto"
    """Where the loop runs: host, for any environment; device, as one program that includes the environments, which must
    be written in JAX; auto: device if possible."""
    collect: Annotated[Literal["auto", "turns", "thread"], MAY_CHANGE] = "auto"
    """How the loop on the host collects: in turns with training, or in a thread beside it; auto: in turns if
    environments, policy and updates share a CPU."""
    updates_per_call: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Most updates that the loop on the host makes in one call of the device, where that many are due; 0: those of one
    turn of all environments, at most 8. Latents are then written back that many updates late; `lockstep` makes one."""
    lockstep: bool = False
    """Alternate collecting and training, so that the same seed gives a bit-identical run."""
    agent: Any = _default("agent")
    """World model, behavior and optimizer."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Environments and the processes that run them."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Size of the replay, and how batches are drawn."""
    log: Annotated[LogConfig, MAY_CHANGE, SAME_GROUP] = field(default_factory=LogConfig)
    """Where metrics are written."""
    eval: Annotated[Any, MAY_CHANGE] = _default("runtime.run.evaluation")
    """Evaluation during training."""
    checkpoint: Annotated[Any, MAY_CHANGE, SAME_GROUP] = _default("runtime.files.checkpoint")
    """When the train state is saved."""
    devices: Annotated[Any, MAY_CHANGE] = _default("runtime.devices.mesh")
    """Devices and hosts that learn together."""
    population: Any = _default("runtime.population.config")
    """Several agents in one program."""

    def __post_init__(self) -> None:
        for name, kind in declared(self).items():
            if kind is Any and not dataclasses.is_dataclass(getattr(self, name)):
                raise UserError(f"{name} must be a Config, such as Config().{name}, not {show(getattr(self, name))}")
            object.__setattr__(self, name, _exact(name, getattr(self, name), kind))
        check_bounds(self)
        if not self.env:
            raise UserError("env must name an environment, not be empty")

    @property
    def length(self) -> int:
        """Returns the length of the run: `updates` if it learns from data only, else `env_steps`."""
        return self.updates or self.env_steps

    @property
    def counted(self) -> str:
        """Returns the name of these steps: updates or env_steps."""
        return "updates" if self.updates else "env_steps"


Note = Callable[[str], object]  # receives each remark on a config that is worth reading but is no error


def tell(note: str) -> None:
    """Prints a note on stderr."""
    print(f"dreamer: note: {note}", file=sys.stderr)


def load(
    *presets: str | os.PathLike, overrides: Mapping[str, Any] | None = None, note: Note = tell, trust: bool = False
) -> Config:
    """Returns the default Config, changed by the presets from left to right, then by `overrides` {dotted key: value}.

    load("quickstart", "experiments/mine.yaml", overrides={"seed": 3, "agent.world_model.free_nats": 0.5})
    presets: names of presets that come with dreamer, or paths of YAML files. note: see `overlay`.
    trust: whether preset files may name code outside dreamer; `overrides` always may.
    Raises UserError with a one-line message: the key, its file and line, and the nearest valid name.
    """
    own = layer({} if overrides is None else overrides, origin="overrides")
    files = [*map(read_preset, presets)]
    check_names(files, given=dict(dotted(own.values)), trust=trust)
    return stack([*files, own], note=note)


def check_names(layers: Sequence[Layer], *, given: Mapping[str, Any], trust: bool) -> None:
    """Raises UserError when a layer from a file names code outside dreamer that the user has not approved.

    given: the settings from the command line or from Python, by dotted key; the code that they name is approved.
    trust: whether the user approves all code that the files name.
    """
    for one in layers:
        trusting.check(one.values, one.origin, plugins.suite_names(), given=given, trust=trust or one.ours)


def stack(layers: Sequence[Layer], *, note: Note = tell) -> Config:
    """Returns the default Config with `layers` applied from left to right. Raises UserError. note: see `overlay`."""
    config = Config()
    for number, one in enumerate(layers):
        config = overlay(config, one, before=layers[:number], note=note)
    return without_env(config, any("env" in one.values for one in layers))


def without_env(config: Config, named: bool) -> Config:
    """Returns a config with env NO_ENV if it is to learn from data only and the user has not `named` an environment."""
    return config if named or not config.updates else dataclasses.replace(config, env=NO_ENV)


def overlay(
    config: Any, layer: Layer, path: str = "", *, before: Sequence[Layer] = (), note: Note = tell
) -> Any:
    """Returns `config` with the differences in `layer` applied. path: the dotted key of `config`; "" for the root.

    If `layer` names another plug-in, the defaults of that plug-in first replace the settings of the old one. A value
    that an earlier layer (`before`) gave to the old plug-in is kept if the new plug-in has such a field and accepts the
    value. If some values are not kept, `note` is called with a text that lists them.
    An empty mapping empties a dict field; any other mapping is merged into the field. Raises UserError.
    """
    values = layer.values
    for part in path.split(".") if path else []:
        values = values[part]
    if path in PLUGINS and "name" in values and values["name"] != config.name:
        config = _plugin(path, values["name"], layer.where(f"{path}.name"))
        config = _carried(config, path, before, note)
    fields = declared(config)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        where = layer.where(key)
        if name not in fields:
            raise UserError(f"unknown key {key!r} (from {where}){_nearest_key(config, key, str(name))}")
        current = getattr(config, name)
        if not dataclasses.is_dataclass(current):
            changes[name] = _leaf(config, name, value, key, where)
        elif isinstance(value, Mapping):
            changes[name] = overlay(current, layer, key, before=before, note=note)
        else:
            raise UserError(f"{key} must be a mapping of its fields, not {show(value)} (from {where})")
    try:
        return dataclasses.replace(config, **changes)
    except (UserError, ValueError) as error:
        where = ", ".join(sorted({layer.where(f"{path}.{name}" if path else name) for name in changes}))
        text = " ".join(str(error).split())
        # An error text begins with the name of its field, or is about the whole mapping.
        joint = "." if text.partition(" ")[0] in fields else ": "
        raise UserError(f"{path}{joint if path else ''}{text} (from {where})") from None


def to_yaml(config: Any) -> str:
    """Returns the complete config as YAML, in the order of the fields. Loading this YAML returns the same config."""
    return yaml.dump(_plain(config), Dumper=Dumper, sort_keys=False, width=100)


def similar_key(config: Any, key: str) -> str | None:
    """Returns the dotted key of `config` that is most similar to a wrong `key`, or None if no key is similar."""
    return hints.similar_key([*declared(config), *keys(config)], key)


def expect_config(value: Any, call: str) -> None:
    """Raises UserError unless `value` is a Config. call: the function that received it, such as "dreamer.train"."""
    if isinstance(value, Config):
        return
    if isinstance(value, str | os.PathLike):
        raise UserError(f"{call} takes a Config: {call}(dreamer.load_config({os.fspath(value)!r}))")
    if isinstance(value, Mapping):
        raise UserError(f"{call} takes a Config, not a mapping: {call}(dreamer.load_config(overrides={{...}}))")
    raise UserError(f"{call} takes a Config, as returned by dreamer.load_config, not {show(value)}")


def _leaf(config: Any, name: str, value: Any, key: str, where: str) -> Any:
    """Converts `value` to the type of the field `name` of `config`; merges a mapping into the field. Raises UserError.

    key: the dotted key of the field. where: the file and line, or the flag, that gave the value.
    """
    try:
        value = coerce(value, declared(config)[name])
    except NotPlain as error:
        raise UserError(f"{key}{error.inside} {error.reason} (from {where})") from None
    except ValueError as error:
        expected, *hint = error.args
        raise UserError(f"{key} must be {expected}, not {show(value)} (from {where}){''.join(hint)}") from None
    try:
        check_field(config, name, value, key)
    except UserError as error:
        raise UserError(f"{error} (from {where})") from None
    current = getattr(config, name)
    if isinstance(current, Mapping) and isinstance(value, Mapping):
        return _merged(current, value, declared(config)[name])
    return value


def _merged(current: Mapping[str, Any], value: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Returns the dict `current` with `value` merged into it; an empty `value` gives an empty dict.

    kind: the type of the field. If it is a dict of dicts, the inner dicts are merged in the same way.
    """
    if not value:
        return {}
    inner = get_args(kind)[1:]
    if not inner or get_origin(inner[0]) is not dict:
        return {**current, **value}
    return {**current, **{name: _merged(current.get(name, {}), entry, inner[0]) for name, entry in value.items()}}


def _exact(key: str, value: Any, kind: Any) -> Any:
    """Converts a value given in Python to the type `kind`, or each field of a nested config to its declared type.

    Raises UserError. key: the dotted key of the value, for the message.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = declared(value)
        new = {name: _exact(f"{key}.{name}", getattr(value, name), fields[name]) for name in fields}
        changes = {name: item for name, item in new.items() if item is not getattr(value, name)}
        return dataclasses.replace(value, **changes) if changes else value
    try:
        return coerce(value, kind)
    except NotPlain as error:
        raise UserError(f"{key}{error.inside} {error.reason}") from None
    except ValueError as error:
        expected, *hint = error.args
        raise UserError(f"{key} must be {expected}, not {show(value)}{''.join(hint)}") from None


def _carried(config: Any, path: str, before: Sequence[Layer], note: Note) -> Any:
    """Returns `config`, the defaults of a new plug-in, with the values that earlier layers set for the old plug-in.

    before: the earlier layers. Values that do not fit are left out, and `note` is called with a text that lists them.
    """
    given: dict[str, tuple[Any, str]] = {}
    for one in before:
        inside: Any = one.values
        for part in path.split("."):
            inside = inside.get(part, {}) if isinstance(inside, Mapping) else {}
        for key, value in _leaves(inside, config):
            given[key] = value, one.where(f"{path}.{key}")
    given.pop("name", None)
    left = dict(given)
    fitting = [key for key, (value, _) in given.items() if _fits(config, key, value)]
    # All at once, since some fields are valid only together, then one by one.
    for some in (fitting, *([key] for key in fitting)):
        try:
            config = overlay(config, layer({key: left[key][0] for key in some if key in left}, path))
        except UserError:
            continue
        left = {key: item for key, item in left.items() if key not in some}
    if left:
        ignored = ", ".join(f"{key} = {show(value)} (from {where})" for key, (value, where) in left.items())
        note(f"{path} {config.name!r} has no such field, or refuses the value, so that it is left out: {ignored}")
    return config


def _fits(config: Any, key: str, value: Any) -> bool:
    """Whether `config` has a field at the dotted `key`, and `value` can be converted to its type."""
    kind = type_of(config, key)
    if kind is None:
        return False
    try:
        coerce(value, kind)
    except ValueError:
        return False
    return True


def _leaves(values: Any, config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each leaf of nested `values`. A mapping for a field of type dict is a leaf.

    path: a prefix for the keys.
    """
    for name, value in values.items() if isinstance(values, Mapping) else ():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(config, str(name), None)):
            yield from _leaves(value, getattr(config, str(name)), f"{key}.")
        else:
            yield key, value


def _plugin(path: str, name: Any, where: str) -> Any:
    """Returns the default config of a plug-in. path: its dotted key, such as "agent.behavior". Raises UserError."""
    if not isinstance(name, str):
        raise UserError(f"{path}.name must be text (str), not {show(name)} (from {where})")
    try:
        module = plugins.load(name, PLUGINS[path])
        make: Any = getattr(module, "Config", None)
        if "name" not in getattr(make, "__dataclass_fields__", {}):
            raise UserError(f"{name!r} has no dataclass Config with a field 'name'")
        return make(name=name)
    except UserError as error:
        raise UserError(f"{path}.name: {error} (from {where})") from None


def _nearest_key(config: Any, key: str, name: str) -> str:
    near = similar_key(config, name)
    if near == name:  # a key with dots inside a preset
        return f"; nest it: {': {'.join(name.split('.'))}: ..{'}' * name.count('.')}"
    return f"; did you mean {key.removesuffix(name) + near!r}?" if near else f"; choices: {', '.join(declared(config))}"


def _plain(value: Any, kind: Any = Any, key: str = "") -> Any:
    """Converts a Config, or a value of the type `kind`, to YAML's types; 32 in a float field becomes 32.0.

    Raises UserError when YAML's types cannot hold the value. key: the dotted key of the value, for the message.
    """
    if dataclasses.is_dataclass(value):
        return {name: _plain(getattr(value, name), hint, f"{key}.{name}") for name, hint in declared(value).items()}
    try:
        return float(value) if kind is float else plain(value)
    except NotPlain as error:
        raise UserError(f"{key.lstrip('.')}{error.inside} {error.reason}") from None

