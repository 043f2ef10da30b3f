"""What the ranks of a learner write below one folder, and how it is read again.

    mp_rank_00_model_states.pt, zero_pp_rank_*    DeepSpeed's own: weights and optimizer state of each rank
    average.safetensors                           the running average of the weights, where there is one
    random-0000.safetensors                       states of rank 0's generators (rl/run/checkpoints.py)
    ranks.json                                    how many ranks wrote this, under which ZeRO stage

Another number of ranks reads it through DeepSpeed's universal checkpoint, made on the spot beside it and deleted
after. Without ZeRO every rank holds everything, and the file of rank 0 serves any number of ranks as it is.
DeepSpeed's files are pickles: they are read from a run's own folder and from nowhere else.
"""

import contextlib
import io
import json
import os
import shutil
from argparse import Namespace
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl.config.learner import RankPlace, TrainingSettings
from rl.run.checkpoints import random_states, set_random_states

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns, in every process, that it found no GPU
import deepspeed
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator as CPU_Accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import zero_to_fp32

AVERAGE = "average.safetensors"
_CONVERSION = timedelta(days=1)
"""How long ranks wait for the conversion of another number's files: some minutes at 7B, as the disk goes."""


@dataclass(frozen=True)
class RankFiles:
    """What ranks.json says."""

    ranks: int
    zero_stage: int
    dtype: str
    steps_done: int
    """Learner steps that the weights have seen."""


def save_ranks(engine: Any, folder: Path, learner: TrainingSettings, place: RankPlace, steps_done: int) -> None:
    """Write the engine's state and this rank's random states into `folder`. All ranks call it."""
    engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state={}, save_latest=False)
    save_file(random_states(), folder / f"random-{place.rank:04d}.safetensors")
    if place.rank == 0:
        files = RankFiles(place.world_size, learner.zero_stage, learner.dtype, steps_done)
        (folder / "ranks.json").write_text(json.dumps(asdict(files)) + "\n")


def read_ranks(folder: Path) -> RankFiles:
    """What `folder` says of itself. Raises FileNotFoundError where it holds no such files."""
    if not (folder / "ranks.json").is_file():
        raise FileNotFoundError(f"{folder} holds no ranks.json, so no rank has written here; name another checkpoint.")
    return RankFiles(**json.loads((folder / "ranks.json").read_text()))


def load_ranks(engine: Any, folder: Path, learner: TrainingSettings, place: RankPlace) -> RankFiles:
    """Bring a new engine to what `save_ranks` wrote with any number of ranks. All ranks call it.

    Raises ValueError for files of another ZeRO stage or dtype.
    """
    files = read_ranks(folder)
    if (files.zero_stage, files.dtype) != (learner.zero_stage, learner.dtype):
        raise ValueError(
            f"{folder} was written with learner.zero_stage {files.zero_stage} and learner.dtype {files.dtype}, this "
            f"run has {learner.zero_stage} and {learner.dtype}; go on with those, the number of ranks alone may change."
        )
    if files.ranks == place.world_size or files.zero_stage == 0:
        engine.load_checkpoint(str(folder.parent), tag=folder.name)
    else:
        _load_universal(engine, folder, place)
    random = folder / f"random-{place.rank:04d}.safetensors"
    if random.is_file():  # a rank that there was not goes on with the generators that it began with
        set_random_states(load_file(random))
    return files


def _load_universal(engine: Any, folder: Path, place: RankPlace) -> None:
    universal = folder.with_name(f"{folder.name}.universal")
    # Rank 0 may convert for longer than a collective may take; ended with an error, it breaks this group at once.
    patient = torch.distributed.new_group(backend="gloo", timeout=_CONVERSION)
    if place.rank == 0:
        shutil.rmtree(universal, ignore_errors=True)
        _convert(folder, universal)
    torch.distributed.barrier(patient)
    torch.distributed.destroy_process_group(patient)
    # DeepSpeed knows this as a setting of the engine, but an engine is built before it is known what will be loaded.
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(folder.parent), tag=universal.name)
    engine._config.load_universal_checkpoint = False
    # Under ZeRO-3 all groups of parameters now have one counter of steps in common, which each would count up.
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = state["step"].clone()
    deepspeed.comm.barrier()
    if place.rank == 0:
        shutil.rmtree(universal)
        (folder.parent / "latest_universal").unlink(missing_ok=True)


def _convert(folder: Path, universal: Path) -> None:
    """One file a parameter and a state, whatever the number of ranks that wrote or read."""
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(
            Namespace(
                input_folder=str(folder),
                output_folder=str(universal),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def whole_weights(folder: Path) -> dict[str, Tensor]:
    """All parameters of the policy as its ranks would gather them, by name, on the CPU; no engine, no GPU.

    Those that ZeRO-3 has sharded are its float32 masters.
    """
    if read_ranks(folder).zero_stage == 3:
        with contextlib.redirect_stdout(io.StringIO()):
            return zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    path = folder / "mp_rank_00_model_states.pt"
    return torch.load(path, map_location="cpu", weights_only=False)["module"]
