"""Run the programs as a user does: in this process for speed, or as a command to test the process."""

import contextlib
import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

from hydra._internal.hydra import Hydra

from tests.forked import Forked

REPOSITORY = Path(__file__).parent.parent


def _composed_once(words):
    """Skip the first of Hydra's two compositions, which only reads hydra.mode, unless the words may start a sweep.

    Started and forked processes compose twice, as for users.
    """
    if any(word in ("-m", "--multirun") or "sweep" in word or "hydra.mode" in word for word in words):
        return contextlib.nullcontext()
    return mock.patch.object(Hydra, "get_mode", return_value=None)


def in_process(main, *arguments, cwd):
    """Run a program's main with a command line. Return (status, stdout, stderr)."""
    out, err, argv, folder = io.StringIO(), io.StringIO(), sys.argv, Path.cwd()
    sys.argv, status = ["program", *map(str, arguments)], 0
    os.chdir(cwd)
    try:
        with _composed_once(sys.argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as exit:
        status = exit.code
    finally:
        sys.argv = argv
        os.chdir(folder)
    return status, out.getvalue(), err.getvalue()


def start(module, *arguments, cwd, group=False, forked=False, **environment):
    """Start `python -m module …` with the repository on its path. A variable given as None is unset.

    Args:
        group: start it in its own process group, as a shell does.
        forked: fork it from the server of tests.forked, without the seconds of imports and of reading conf/.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    merged = clean | environment
    given = {name: value for name, value in merged.items() if value is not None}
    words = [str(argument) for argument in arguments]
    if forked:
        return Forked(module, words, cwd, given, group)
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def start_ranks(module, *arguments, cwd, count=2, forked=False, **environment):
    """Start `count` ranks with torchrun's environment, or srun's if SLURM_JOB_ID is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "1",
        "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", **environment,
    }  # fmt: skip
    names = ("SLURM_PROCID", "SLURM_LOCALID") if "SLURM_JOB_ID" in environment else ("RANK", "LOCAL_RANK")
    return [
        start(module, *arguments, cwd=cwd, forked=forked, **common, **dict.fromkeys(names, str(r)))
        for r in range(count)
    ]


def run(module, *arguments, cwd, timeout=120, forked=False, **environment):
    """Run a module to its end. Return (status, stdout, stderr)."""
    process = start(module, *arguments, cwd=cwd, forked=forked, **environment)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
