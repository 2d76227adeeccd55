"""The replay: a ring of rows for each environment, in host memory. Plain numpy, no jax.

Rows of an environment are numbered from its start; row `number` lies in slot `number % rows_per_env`, and the
last `rows_per_env` of them are held. An item is a possible sequence start: a number whose `context + batch_length`
rows are all held. Sequences run over episode boundaries, never over the head of a ring.
Source: spec section 10.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.errors import UserError, nearest
from dreamer.runtime import capacity
from dreamer.runtime.capacity import Capacity
from dreamer.runtime.steps import Batch, Rows, Step
from dreamer.spaces import Space, Spec


@dataclasses.dataclass(frozen=True)
class Config:
    """What the replay holds and how batches are drawn from it."""

    capacity_steps: int = 1_000_000
    """Most rows held, all environments together."""
    capacity_gb: float = 0
    """Most host memory taken, in GB (10^9 bytes); 0 takes at most half of what is free."""
    batch_size: int = 16
    """Sequences per update."""
    batch_length: int = 64
    """Trained rows per sequence."""
    context: int = 1
    """Rows before the trained ones: 1 starts sequences from a stored latent, 0 from the initial one."""
    online: bool = True
    """Train on each freshly collected sequence once, before drawing uniformly."""
    flush: float = 5.0
    """Seconds between two files of rows in the run directory: what a kill can lose; 0 = at checkpoints only."""


class Span(NamedTuple):
    """The rows from `start` up to `stop` of one environment, by their running numbers."""

    env: int
    start: int
    stop: int


def plan(spec: Spec, storage: Mapping[str, Space], config: Config, *, envs: int, env_steps: int) -> Capacity:
    """The size that the replay will have; takes no memory. `describe()` of it is the line to print first.

    storage: the packed latents of a row. env_steps: rows that the run makes, all environments together.
    Raises UserError naming the setting when it is out of range, or when no sequence fits.
    """
    least = {"capacity_steps": 1, "capacity_gb": 0, "batch_size": 1, "batch_length": 1}
    for name, bound in least.items():
        if not bound <= getattr(config, name) < math.inf:
            raise UserError(f"replay.{name}: must be a number of at least {bound}, got {getattr(config, name)}")
    if config.context not in (0, 1):
        raise UserError(f"replay.context: must be 0 or 1, got {config.context}")
    return capacity.fit(
        capacity.row_bytes(_columns(spec, storage, config)),
        envs=envs,
        sequence=config.context + config.batch_length,
        env_steps=env_steps,
        capacity_steps=config.capacity_steps,
        capacity_gb=config.capacity_gb,
        free_bytes=capacity.free_memory(),
    )


class Replay:
    """Owns the host memory of the rings. For one thread at a time.

    Its whole state: `columns` {name: [E, rows_per_env, ..]}, `counts` [E] rows ever added to each ring,
    `queue` of (ring, first row) not yet trained on, `rng` and `report_rng`.

    storage: {name: Space} of the packed latents of a row; stored only where `config.context` has a use for them.
    env_steps: rows that the run makes. size: a `plan` made before, so that what was printed is what is taken.
    Raises UserError as `plan` does.
    """

    def __init__(
        self,
        spec: Spec,
        storage: Mapping[str, Space],
        config: Config,
        *,
        envs: int,
        seed: int,
        env_steps: int,
        size: Capacity | None = None,
    ):
        self.config = config
        self.size = size or plan(spec, storage, config, envs=envs, env_steps=env_steps)
        self.sequence = config.context + config.batch_length
        self._spaces = _columns(spec, storage, config)
        # Zeros, not empty: the system hands out such pages when they are first written.
        self.columns = {
            name: np.zeros((envs, self.size.rows_per_env, *space.shape), capacity.dtype_of(space))
            for name, space in self._spaces.items()
        }
        self.counts = np.zeros(envs, np.int64)
        self.queue: collections.deque[tuple[int, int]] = collections.deque(
            maxlen=envs * (self.size.rows_per_env // self.sequence)
        )
        self.rng = np.random.default_rng(seed)
        # Its own stream, so that how often a run is looked at does not change what it trains on.
        self.report_rng = np.random.default_rng((seed, 1))

    def __len__(self) -> int:
        """Items that can be sampled."""
        return int(self._items().sum())

    @property
    def steps(self) -> int:
        """Rows ever added, all environments together: the environment step counter."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        """Rows held."""
        return int(np.minimum(self.counts, self.size.rows_per_env).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the full rings."""
        return sum(column.nbytes for column in self.columns.values())

    def ready(self, batch_size: int) -> bool:
        """Whether training may start: as many items as a batch has trained rows, or all that the rings can hold."""
        most = len(self.counts) * (self.size.rows_per_env - self.sequence + 1)
        return len(self) >= min(batch_size * self.config.batch_length, most)

    def add(self, step: Step, latent: Mapping[str, np.ndarray], envs: np.ndarray | None = None) -> None:
        """Append one row to the ring of each listed environment.

        step [E', ..] | latent {name: [E', ..]} the packed latents after these observations | envs [E'] int, None = all
        Nothing is written when anything is wrong. Raises UserError naming the column whose shape or dtype is wrong.
        """
        envs = np.arange(len(self.counts)) if envs is None else self._ring_indices(envs)
        given = {
            **{f"obs/{key}": value for key, value in step.obs.items()},
            **{name: getattr(step, name) for name in ("action", "reward", "is_first", "is_last", "is_terminal")},
            **self._named_latents(latent),
        }
        values = _checked(self._spaces, given, (len(envs),), "add")
        slots = self.counts[envs] % self.size.rows_per_env
        for name, value in values.items():
            self.columns[name][envs, slots] = value
        self.counts[envs] += 1
        for env in envs[self.counts[envs] % self.sequence == 0]:
            self.queue.append((int(env), int(self.counts[env]) - self.sequence))

    def sample(self, batch_size: int, *, online: bool = True) -> tuple[Batch, Rows]:
        """Draw sequences: queued fresh ones first, the rest uniformly over all items.

        online: False leaves the queue alone, for evaluation and reports.
        Returns a batch of context + T rows, which owns its memory, and where its T trained rows lie.
        On the sample only, is_first of row 0 is true, and is_last of a row whose successor begins an episode.
        Raises ValueError when no item is there.
        """
        env, start = self._choose(batch_size, online and self.config.online, self.rng if online else self.report_rng)
        number = start[:, None] + np.arange(self.sequence)
        row = self._flat(env, number)
        data = {n: self._gather(n, row) for n in self.columns if not n.startswith("latent/")}
        follows = number + 1 < self.counts[env][:, None]
        data["is_last"] |= follows & self._gather("is_first", self._flat(env, number + 1))
        data["is_first"][:, 0] = True
        context = self.config.context
        batch = Batch(
            obs={n.removeprefix("obs/"): value for n, value in data.items() if n.startswith("obs/")},
            action=data["action"],
            reward=data["reward"],
            is_first=data["is_first"],
            is_last=data["is_last"],
            is_terminal=data["is_terminal"],
            latent={n.removeprefix("latent/"): self._gather(n, row[:, :context]) for n in self._latent_names()},
        )
        return batch, Rows(env, number[:, context:])

    def refresh(self, rows: Rows, latent: Mapping[str, np.ndarray]) -> None:
        """Write recomputed latents {name: [B, T, ..]} back to the rows of a sample.

        Rows that were overwritten since are left alone; of several sequences that share a row the last one counts.
        Raises UserError naming the latent whose shape or dtype is wrong.
        """
        spaces = {name: self._spaces[name] for name in self._latent_names()}
        values = _checked(spaces, self._named_latents(latent), rows.number.shape, "refresh")
        held = rows.number >= (self.counts - self.size.rows_per_env)[rows.env][:, None]
        row = self._flat(rows.env, rows.number)[held]
        for name, value in values.items():
            self._rows_of(name)[row] = value[held]

    def rows_since(self, numbers: np.ndarray) -> tuple[list[Span], dict[str, np.ndarray]]:
        """Copies of the rows from `numbers` [E] on, as far as they are held: spans and columns {name: [R, ..]}."""
        start = np.maximum(numbers, self.counts - self.size.rows_per_env)
        spans = [Span(env, int(start[env]), int(stop)) for env, stop in enumerate(self.counts) if stop > start[env]]
        return spans, {name: self._copy(name, spans) for name in self.columns} if spans else {}

    def held_latents(self, nbytes: int) -> Iterator[tuple[list[Span], dict[str, np.ndarray]]]:
        """Copies of the latents of all rows held, in parts of at most about `nbytes`."""
        names = self._latent_names()
        row = sum(self.columns[name][0, 0].nbytes for name in names)
        length = max(1, nbytes // row) if row else 0
        for env, stop in enumerate(self.counts.tolist() if names else []):
            for start in range(max(0, stop - self.size.rows_per_env), stop, length):
                spans = [Span(env, start, min(start + length, stop))]
                yield spans, {name: self._copy(name, spans) for name in names}

    def put_rows(self, spans: Sequence[Span], columns: Mapping[str, np.ndarray], fresh: bool) -> None:
        """Puts rows {name: [R, ..]} back that `rows_since` gave; each span goes on where its ring ends.

        fresh: queue the sequences that they complete, as `add` does. Raises UserError naming a wrong column.
        """
        count = sum(span.stop - span.start for span in spans)
        self._put(spans, _checked(self._spaces, columns, (count,), "put_rows"))
        for span in spans:
            self.counts[span.env] = span.stop
            firsts = range(-(-(span.start + 1) // self.sequence) * self.sequence, span.stop + 1, self.sequence)
            self.queue.extend((span.env, stop - self.sequence) for stop in firsts if fresh)

    def put_latents(self, spans: Sequence[Span], columns: Mapping[str, np.ndarray]) -> None:
        """Puts latents {name: [R, ..]} back that `held_latents` gave. Raises UserError naming a wrong column."""
        spaces = {name: self._spaces[name] for name in self._latent_names()}
        count = sum(span.stop - span.start for span in spans)
        self._put(spans, _checked(spaces, columns, (count,), "put_latents"))

    def state(self) -> dict[str, Any]:
        """What decides the next samples apart from the rows, as JSON values."""
        return {
            "counts": self.counts.tolist(), "rows_per_env": self.size.rows_per_env, "queue": list(self.queue),
            "rng": self.rng.bit_generator.state, "report_rng": self.report_rng.bit_generator.state,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes a `state` over, but for the counts, which the rows themselves have set."""
        self.queue.clear()
        self.queue.extend((int(env), int(start)) for env, start in state["queue"])
        self.rng.bit_generator.state = state["rng"]
        self.report_rng.bit_generator.state = state["report_rng"]

    def _copy(self, name: str, spans: Sequence[Span]) -> np.ndarray:
        column = self.columns[name]
        slots = [np.arange(span.start, span.stop) % self.size.rows_per_env for span in spans]
        return np.concatenate([column[span.env].take(own, axis=0) for span, own in zip(spans, slots, strict=True)])

    def _put(self, spans: Sequence[Span], columns: Mapping[str, np.ndarray]) -> None:
        offset = 0
        for span in spans:
            slots = np.arange(span.start, span.stop) % self.size.rows_per_env
            for name, values in columns.items():
                self.columns[name][span.env, slots] = values[offset : offset + len(slots)]
            offset += len(slots)

    def _items(self) -> np.ndarray:
        """[E] possible sequence starts of each ring."""
        return np.maximum(0, np.minimum(self.counts, self.size.rows_per_env) - self.sequence + 1)

    def _choose(
        self, batch_size: int, online: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ring [B] and first row number [B] of each sequence."""
        chosen: list[tuple[int, int]] = []
        while online and self.queue and len(chosen) < batch_size:
            env, start = self.queue.popleft()
            if start >= self.counts[env] - self.size.rows_per_env:
                chosen.append((env, start))
        fresh = np.array(chosen, np.int64).reshape(-1, 2)
        items = self._items()
        ends = np.cumsum(items)
        if not ends[-1]:
            raise ValueError(f"the replay holds {self.rows} rows, too few for one sequence of {self.sequence}")
        item = rng.integers(ends[-1], size=batch_size - len(fresh))
        drawn = np.searchsorted(ends, item, side="right")
        oldest = np.maximum(0, self.counts - self.size.rows_per_env)
        start_drawn = oldest[drawn] + item - (ends - items)[drawn]
        return np.concatenate([fresh[:, 0], drawn]), np.concatenate([fresh[:, 1], start_drawn])

    def _flat(self, env: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Index into `_rows_of` of row numbers [B, L] of rings [B]."""
        return env[:, None] * self.size.rows_per_env + number % self.size.rows_per_env

    def _rows_of(self, name: str) -> np.ndarray:
        """A column as a view [E * rows_per_env, ..]."""
        column = self.columns[name]
        return column.reshape(-1, *column.shape[2:])

    def _gather(self, name: str, row: np.ndarray) -> np.ndarray:
        """Copies of the rows [B, L] of a column."""
        return self._rows_of(name).take(row, axis=0)

    def _latent_names(self) -> list[str]:
        return [name for name in self.columns if name.startswith("latent/")]

    def _named_latents(self, latent: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Latents by column name; none where they are not stored."""
        return {f"latent/{name}": value for name, value in latent.items()} if self.config.context else {}

    def _ring_indices(self, envs: np.ndarray) -> np.ndarray:
        envs = np.asarray(envs)
        known = np.issubdtype(envs.dtype, np.integer) and ((envs >= 0) & (envs < len(self.counts))).all()
        if not known or envs.ndim != 1 or len(np.unique(envs)) != len(envs):
            raise UserError(f"replay.add: envs must be different numbers below {len(self.counts)}, got {envs.tolist()}")
        return envs


def _columns(spec: Spec, storage: Mapping[str, Space], config: Config) -> dict[str, Space]:
    """The columns of a row; without a context row nobody reads stored latents."""
    return capacity.columns_of(spec, storage if config.context else {})


def _checked(
    spaces: Mapping[str, Space], given: Mapping[str, np.ndarray], leading: tuple[int, ...], where: str
) -> dict[str, np.ndarray]:
    """The given arrays, if they are exactly those of `spaces` with `leading` axes; else UserError naming the column."""
    for name in sorted(given.keys() - spaces.keys()):
        raise UserError(f"replay.{where}: unknown column {name!r}{nearest(name, spaces)}")
    values = {}
    for name, space in spaces.items():
        if name not in given:
            raise UserError(f"replay.{where}: column {name!r} is missing")
        value = np.asarray(given[name])
        shape, dtype = (*leading, *space.shape), capacity.dtype_of(space)
        if value.shape != shape or value.dtype != dtype:
            raise UserError(
                f"replay.{where}: column {name!r} must be {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}"
            )
        values[name] = value
    return values
