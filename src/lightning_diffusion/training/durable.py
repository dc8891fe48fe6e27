"""Lightning's checkpoint reader and writer: it writes files atomically with a seal, and verifies them on reading."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_diffusion.checkpoints.folder import load
from lightning_diffusion.checkpoints.seal import next_counter, write_sealed
from lightning_diffusion.system.files import NotWritten
from lightning_diffusion.training.ownership import make_run_folder


class DurableCheckpointIO(TorchCheckpointIO):
    """Seals every checkpoint, whichever callback saves it, and loads only checkpoints that are proven intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Writes and seals a checkpoint. Raises NotWritten and then leaves earlier files as they were."""
        path = Path(path)
        make_run_folder(path.parent)
        counter, step = next_counter(path.parent), int(checkpoint["global_step"])
        try:
            write_sealed(path, lambda file: torch.save(checkpoint, file), counter, step)
        except NotWritten as error:
            raise NotWritten(f"{error}; earlier checkpoints are unchanged") from error

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint without running code from it, whatever `weights_only` and the environment request."""
        checkpoint: dict[str, Any] = load(Path(path), f"ckpt_path={path}", map_location)
        return checkpoint
