"""Orbax's handler of a pytree, with the checksums of its files beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orbax.checkpoint as ocp

from dreamer.runtime.files.checkpoint_files import write_list


class SealedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of a pytree; writes the checksums of its files before the checkpoint counts as whole."""

    def finalize(self, directory: Path) -> None:
        """Called by Orbax in its thread, when all files of `directory` are written and none has its last name yet."""
        super().finalize(directory)
        write_list(Path(directory))


@ocp.args.register_with_handler(SealedHandler, for_save=True)
@dataclasses.dataclass
class SealedSave(ocp.args.StandardSave):
    """What a `SealedHandler` is given to write: Orbax finds the handler by the type of its argument."""


@ocp.args.register_with_handler(SealedHandler, for_restore=True)
@dataclasses.dataclass
class SealedRestore(ocp.args.StandardRestore):
    """What a `SealedHandler` is given to read; Orbax wants both of a handler."""
