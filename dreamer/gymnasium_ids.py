"""Makes environments by their gymnasium ids, and suggests a correction for a wrong id. Imports no jax."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from dreamer.errors import UserError, one_line

if TYPE_CHECKING:
    import gymnasium


def make_registered(name: str, env_id: str, options: dict[str, Any], render_mode: str | None) -> gymnasium.Env:
    """Makes the environment that gymnasium's registry knows as `env_id`. Raises UserError.

    name: its name in errors | options: its keyword arguments | render_mode: passed on only if it takes this argument
    """
    import gymnasium

    extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        try:
            # dreamer.runtime.env.rows checks every row; gymnasium's own checker would halve the speed.
            return gymnasium.make(env_id, disable_env_checker=True, **options, **extra)
        except TypeError as error:
            if not extra or "render_mode" not in str(error):
                raise
            return gymnasium.make(env_id, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"env {name!r} is no registered gymnasium id{_nearest_id(env_id)}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        text = " ".join(str(error).split())
        extra_name = re.search(r"gymnasium\[([\w-]+)\]", text)
        advice = f'; try: pip install "gymnasium[{extra_name.group(1)}]"' if extra_name else ""
        raise UserError(f"env {name!r} needs a package that is not installed: {text}{advice}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env {name!r} could not be made with options {options}: {one_line(error)}") from error


# Packages whose ids have the form namespace/Name-v0, and dreamer's suite of these environments, which is also an extra.
_NAMESPACES = {
    "ale": ("ale_py", "atari"), "dm_control": ("shimmy", "dmc"), "minigrid": ("minigrid", "minigrid"),
    "babyai": ("minigrid", "minigrid"), "memory_maze": ("memory_maze", "memory_maze"),
    "meta-world": ("metaworld", "metaworld"), "popgym": ("popgym", "popgym"), "vizdoom": ("vizdoom", "vizdoom"),
}  # fmt: skip


def _nearest_id(env_id: str) -> str:
    """Returns a hint for a wrong gymnasium id: an id that the user may have meant, or a package to import; or ""."""
    import gymnasium

    by_lower = {known.lower(): known for known in sorted(gymnasium.registry)}
    namespace, slash, task = env_id.rpartition("/")
    # MiniGrid's ids have their name before a hyphen: MiniGrid-Empty-5x5-v0.
    family = namespace.lower() if slash else env_id.partition("-")[0].lower()
    if any(known.startswith(f"{family}/" if slash else f"{family}-") for known in by_lower):
        family = ""  # the package is imported: its own ids are near enough
    if family in _NAMESPACES:
        module, suite = _NAMESPACES[family]
        name = task if slash else env_id.removeprefix("MiniGrid-")
        if suite in ("atari", "dmc", "memory_maze"):
            name = re.sub(r"-v\d+$", "", name).removeprefix("MemoryMaze-")
        name = name.lower() if suite == "atari" else name
        ours = f"{suite}:{name} (extra {suite.replace('_', '-')})"
        return f"; it belongs to {module}, which is not imported: use our suite's {ours}, or {module}:{env_id}"
    if slash and family:
        near = f"did you mean {by_lower[task.lower()]!r}?" if task.lower() in by_lower else ""
        near = near or f"name the module that does, such as my_package:{env_id}"
        return f"; nothing here registers ids of {namespace!r}: {near}"
    close = difflib.get_close_matches(env_id.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
