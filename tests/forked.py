"""Real processes without the seconds of imports: each is forked from a server that has imported everything.

Signals, exit statuses, locks, files and memory are those of any process. The server also reads conf/ once for all of
them. Tests of the start itself use `tests.command.start`.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

IMPORTED_EARLY = (
    "lightning_diffusion.app.commands.train", "lightning_diffusion.configuration.quick", "tests.runs", "imageio.v3",
    "imageio.plugins.pillow", "lightning_diffusion.metrics.extractors.classifier",
    "lightning_diffusion.training.callbacks.samples", "lightning_diffusion.training.callbacks.scores",
    "lightning_diffusion.training.callbacks.progress", "lightning_diffusion.training.callbacks.noise_levels",
    "lightning_diffusion.training.optimizers.muon", "lightning_diffusion.runs.pictures",
)  # fmt: skip


class Forked:
    """The part of subprocess.Popen that tests use. The process is a child of the server, which reaps it."""

    def __init__(self, module, arguments, cwd, environment, group, log=None):
        """Start the process. If `log`, an open file or one with a name, is given, all output goes there."""
        new = functools.partial(tempfile.NamedTemporaryFile, "r", prefix="forked-")
        self.stdout, self.stderr = log or new(), log or new()
        self.returncode = None
        self.pid = _ask(
            module=module, arguments=arguments, cwd=str(cwd), environment=environment, group=group,
            out=self.stdout.name, err=self.stderr.name,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self.stdout.close()

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout=120):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=120):
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def popen(command, *, env, stdout, start_new_session, **others):
    """Stand in for subprocess.Popen, for `python -m module arguments…` with all output in one file or pipe."""
    assert command[:2] == [sys.executable, "-m"], command
    assert others.pop("stderr") == subprocess.STDOUT, "expected errors and output in the same file"
    fork = functools.partial(Forked, command[2], command[3:], os.getcwd(), env, start_new_session)
    if stdout != subprocess.PIPE:
        return fork(log=stdout)
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        os.mkfifo(pipe := Path(folder, "output"))
        process = fork(log=SimpleNamespace(name=str(pipe)))
        process.stdout = pipe.open(encoding="utf-8")  # waits for the process to open its end
    return process


@functools.cache
def _server():
    """Return the server. It starts with the first request and ends when this end of the pipe closes."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def _ask(**request):
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve():
    """Answer requests until the pipe closes. In each forked process, return its request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
        print(json.dumps(answer), flush=True)
    return None


def _redirect(descriptor, name, flags):
    opened = os.open(name, flags)
    os.dup2(opened, descriptor)
    os.close(opened)


def _become(module, arguments, cwd, environment, group, out, err):
    """Run `python -m module arguments…` with the given folder, environment and files."""
    if group:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    _redirect(0, os.devnull, os.O_RDONLY)
    _redirect(1, out, os.O_WRONLY | os.O_APPEND)
    if err == out:
        os.dup2(1, 2)
    else:
        _redirect(2, err, os.O_WRONLY | os.O_APPEND)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.argv = [module, *arguments]
    sys.path[0] = cwd
    from tests.once import once

    with once():
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _prepare():
    """Import what the programs import in the first seconds, and read conf/ once for all processes."""
    from lightning_diffusion.system.lazy_import import TORCHMETRICS, defer

    defer("torchmetrics", TORCHMETRICS)  # as the programs do
    for name in IMPORTED_EARLY:
        importlib.import_module(name)
    from hydra.core.plugins import Plugins
    from PIL import Image

    from lightning_diffusion.configuration.trusted_targets import CONF
    from tests.once import load, safe_load

    Image.init()
    Plugins.instance()
    for path in CONF.rglob("*.yaml"):
        safe_load(path.read_text())
        load(path.open())


if __name__ == "__main__":
    _prepare()
    gc.freeze()  # the collector touches no page that the processes share
    if request := _serve():
        _become(**request)
