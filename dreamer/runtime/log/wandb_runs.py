"""Weights & Biases: each run of dreamer is a run of its own there, which a resumed run continues. Imports no jax.

Weights & Biases cannot take back what it was sent. So a file beside its own says how far each curve goes. A run that is
resumed from a checkpoint does not send again what lies before that, and its curves do not overlap.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.log import images

STEP = "env_steps"  # the x-axis
SENT = "wandb/sent.json"  # in the run directory
FLUSH = 1.0  # seconds after which a killed run loses nothing that it has sent; wandb itself would take 15


class Sent:
    """Owns the file that says what a run has sent to Weights & Biases: {"id", "step", "env_steps": {name: number}}.

    id: of the run in Weights & Biases; None: there is no such file | step: the number of calls that sent something
    """

    def __init__(self, run_dir: Path):
        """Reads the file. A file that is damaged or missing says that nothing was sent."""
        self._path = run_dir / SENT
        self.id: str | None = None
        self.step = 0
        self._ends: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            ends = {str(name): int(step) for name, step in found["env_steps"].items()}
            self.id, self.step, self._ends = str(found["id"]), int(found["step"]), ends
        self._before = dict(self._ends)

    def forget(self) -> None:
        """Drops what the file says, because it is about another run there."""
        self.step, self._ends, self._before = 0, {}, {}

    def fresh(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values {name: value} at `step` that lie after all that an earlier process has sent."""
        return {name: value for name, value in values.items() if step > self._before.get(name, -1)}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Records that values were sent. Raises UserError if the file cannot be written."""
        self.step += 1
        self._ends |= {name: max(step, self._ends.get(name, -1)) for name in values}
        self.write()

    def write(self) -> None:
        """Writes the file completely or not at all. Raises UserError if it cannot be written."""
        text = json.dumps({"id": self.id, "step": self.step, "env_steps": self._ends})
        write_whole(self._path, lambda half: half.write_text(text, encoding="utf-8"))


class WeightsAndBiases:
    """Owns one Weights & Biases run, with its files under run_dir/wandb. The x-axis is env_steps.

    env_steps is logged as a value. It cannot be wandb's own step, which must not decrease: an evaluation may be logged
    after other values with more env_steps. wandb's own step counts the calls, and goes on where a run is resumed, so
    that the files of both parts can be synchronised one after the other.
    A process may own many of them; they share one service process of wandb.
    """

    def __init__(
        self, run_dir: Path, config: Any, run_config: Mapping[str, Any], run_id: str | None = None, anew: bool = False
    ):
        """config: a `logger.Config` | run_config: the settings of the run

        run_id: the Weights & Biases run to continue; None: the one of which the run directory knows, or a new one
        anew: whether to begin a new one in any case
        Raises UserError if wandb cannot start, or if the disk is full.
        """
        self._wandb = wandb = wandb_ready(config.wandb)
        self._sent = Sent(run_dir)
        if anew or (run_id and run_id != self._sent.id):
            self._sent.forget()
        run_id = None if anew else run_id or self._sent.id
        mode: Literal["online", "offline"] = "online" if config.wandb == "online" else "offline"
        try:
            self._run = wandb.init(
                project=config.wandb_project, name=config.wandb_name or run_dir.name,
                group=config.wandb_group or None, tags=list(config.wandb_tags) or None, dir=str(run_dir), mode=mode,
                config=dict(run_config), settings=wandb.Settings(silent=True, console="off", **_flushing(wandb)),
                id=run_id, resume="allow" if run_id and mode == "online" else None,
                reinit="create_new",  # wandb would return the run of another member, or one of the caller
            )  # fmt: skip
        except wandb.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"log.wandb={config.wandb} could not start: {reason}") from error
        self._remove_outward_links(run_dir)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._sent.id, self._sent.step = self._run.id, max(self._sent.step, self._run.step)
        self._sent.write()

    @property
    def run_id(self) -> str:
        """Returns the id of the run in Weights & Biases."""
        return self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each name."""
        self._log(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image [H, W, 3] uint8 as PNG."""
        self._log(step, {name: self._wandb.Image(image)})

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Logs frames [T, H, W, 3] uint8 as a GIF. Encodes it here, because wandb itself would need moviepy."""
        gif = io.BytesIO(images.encode_gif(frames, fps))
        self._log(step, {name: self._wandb.Video(gif, format="gif")})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        values = self._sent.fresh(step, values)
        if values:
            self._run.log({**values, STEP: step}, step=self._sent.step)
            self._sent.add(step, values)

    @staticmethod
    def _remove_outward_links(run_dir: Path) -> None:
        """Removes wandb's symbolic links to a log in the user's cache. Links to the outside would prevent resuming."""
        for link in (run_dir / "wandb").glob("*run-*/logs/debug-core.log"):
            if link.is_symlink():
                link.unlink()


def wandb_ready(mode: str) -> Any:
    """Returns the imported package wandb. mode: "offline" or "online".

    Raises UserError if the package is missing, or if the mode is "online" and the user is not logged in.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"log.wandb={mode} needs the package wandb: python -m pip install wandb") from error
    # Checked before init, which on a terminal would stop and ask for an account.
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "log.wandb=online needs an account: run `wandb login`, or use --log.wandb offline and sync later"
        )
    return wandb


def _flushing(wandb: Any) -> dict[str, float]:
    """Returns the setting that makes wandb write its file often, if this version of wandb has it."""
    name = "x_transaction_log_flush_interval"
    return {name: FLUSH} if name in wandb.Settings.model_fields else {}
