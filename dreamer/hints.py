"""Finds the valid name of a setting or a preset file that is most similar to a wrong name. Imports no jax."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from dreamer import shipped

# The name of a setting in other libraries -> its key here.
ALIASES = {
    "lr": "agent.optimizer.learning_rate",
    "wd": "agent.optimizer.weight_decay",
    "clip": "agent.optimizer.agc", "grad_clip": "agent.optimizer.agc", "max_grad_norm": "agent.optimizer.agc",
    "gamma": "agent.horizon", "discount": "agent.horizon",
    "dtype": "agent.compute_dtype", "precision": "agent.compute_dtype",
    "ent_coef": "agent.behavior.entropy", "actent": "agent.behavior.entropy",
    "lambda": "agent.behavior.lam", "gae_lambda": "agent.behavior.lam",
    "imag_length": "agent.behavior.imagine_length", "imag_horizon": "agent.behavior.imagine_length",
    "batch": "replay.batch_size", "bs": "replay.batch_size",
    "seq_len": "replay.batch_length", "sequence_length": "replay.batch_length",
    "buffer_size": "replay.capacity_steps", "capacity": "replay.capacity_steps",
    "ratio": "replay_ratio", "train_ratio": "replay_ratio", "utd": "replay_ratio",
    "steps": "env_steps", "total_steps": "env_steps", "num_steps": "env_steps", "max_steps": "env_steps",
    "timesteps": "env_steps", "total_timesteps": "env_steps", "frames": "env_steps",
    "num_envs": "workers.envs", "n_envs": "workers.envs",
    "num_workers": "workers.processes", "n_workers": "workers.processes",
    "logdir": "run_dir", "log_dir": "run_dir", "outdir": "run_dir", "output_dir": "run_dir",
    "task": "env", "env_id": "env", "env_name": "env", "game": "env",
    "env_kwargs": "env_options", "env_args": "env_options",
    "frame_skip": "action_repeat", "frameskip": "action_repeat",
    "gpus": "devices.count", "num_gpus": "devices.count", "num_devices": "devices.count",
    "least": "workers.min_ready", "patience": "workers.max_wait",
    "deterministic": "lockstep",
    "load": "init_from", "pretrained": "init_from", "from_checkpoint": "init_from",
}  # fmt: skip


def similar_key(names: Iterable[str], key: str) -> str | None:
    """Returns the dotted key among `names` that the user may have meant by a wrong `key`, or None if none is similar.

    Tries in this order: a field of the same name in another nested config, names of settings in other libraries
    (ALIASES), similar spellings, and initials of a field's words ("bl" for batch_length).
    """
    names = list(names)
    by_field = {name.rpartition(".")[2]: name for name in reversed(names)}
    last = key.rpartition(".")[2].lower()
    if last in by_field:
        return by_field[last]
    meant = ALIASES.get(last, "")
    if meant in names:
        return meant
    if meant.rpartition(".")[2] in by_field:
        return by_field[meant.rpartition(".")[2]]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    near = near or [by_field[name] for name in difflib.get_close_matches(last, by_field, n=1, cutoff=0.7)]
    initials = {"".join(word[:1] for word in name.split("_")): name for name in by_field if "_" in name}
    near = near or ([by_field[initials[last]]] if last in initials else [])
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return near[0] if near else None


def nearest_preset_file(path: str) -> str:
    """Returns a hint for a missing preset file. The hint is never empty.

    It names a similar file in the folder or a similar preset of dreamer, or says that there is no such folder, or lists
    the YAML files in the folder.
    """
    folder = os.path.dirname(path) or "."
    choices = []
    if os.path.isdir(folder):
        choices = [file for file in os.listdir(folder) if file.endswith((".yaml", ".yml"))]
    close = difflib.get_close_matches(os.path.basename(path), choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {os.path.join(os.path.dirname(path), close[0])!r}?"
    where = "" if os.path.isdir(folder) else f"; there is no folder {folder!r}"
    if near := shipped.nearest_preset(path):
        return f"{where}; the preset {near!r} comes with dreamer, its name alone is enough: dreamer train {near}"
    return where or f"; {folder!r} holds {', '.join(sorted(choices)) or 'no .yaml file'}"
