"""An Orbax checkpoint handler for pytrees that also writes the checksums of its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orbax.checkpoint as ocp

from dreamer.runtime.files.checkpoint_files import write_list


class SealedHandler(ocp.StandardCheckpointHandler):
    """An Orbax handler for pytrees that also writes the checksums of its files, before the checkpoint is complete."""

    def finalize(self, directory: Path) -> None:
        """Writes the checksums. Orbax calls this in its thread after writing all files, before renaming `directory`."""
        super().finalize(directory)
        write_list(Path(directory))


@ocp.args.register_with_handler(SealedHandler, for_save=True)
@dataclasses.dataclass
class SealedSave(ocp.args.StandardSave):
    """The argument for saving with `SealedHandler`. Orbax finds the handler by the type of the argument."""


@ocp.args.register_with_handler(SealedHandler, for_restore=True)
@dataclasses.dataclass
class SealedRestore(ocp.args.StandardRestore):
    """The argument for restoring with `SealedHandler`. Orbax needs different types for saving and for restoring."""
