"""Real processes without the seconds of imports: each is forked from a server that has imported everything.

Signals, exit statuses, locks, files and memory are those of any process. Tests of the start itself use
`tests.command.start`.
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


class Forked:
    """The part of subprocess.Popen that tests use. The process is a child of the server, which reaps it."""

    def __init__(self, module, arguments, cwd, environment, group, log=None):
        """Start the process. If `log`, an open file, is given, all output goes there."""
        new = functools.partial(tempfile.NamedTemporaryFile, "r", prefix="forked-")
        self.stdout, self.stderr = log or new(), log or new()
        self.returncode = None
        self.pid = _ask(
            module=module, arguments=arguments, cwd=str(cwd), environment=environment, group=group,
            out=self.stdout.name, err=self.stderr.name,
        )  # fmt: skip

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
    """Stand in for subprocess.Popen, for `python -m module arguments…` with all output in one file."""
    assert command[:2] == [sys.executable, "-m"], command
    assert others.pop("stderr") == subprocess.STDOUT, "expected errors and output in the same file"
    return Forked(command[2], command[3:], os.getcwd(), env, start_new_session, log=stdout)


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


def _become(module, arguments, cwd, environment, group, out, err):
    """Run `python -m module arguments…` with the given folder, environment and files."""
    if group:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    write = os.O_WRONLY | os.O_APPEND
    for target, (name, mode) in enumerate([(os.devnull, os.O_RDONLY), (out, write), (err, write)]):
        opened = os.open(name, mode)
        os.dup2(opened, target)
        os.close(opened)
    sys.argv = [module, *arguments]
    sys.path[0] = cwd
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from lightning_diffusion.system.lazy_import import TORCHMETRICS, defer

    defer("torchmetrics", TORCHMETRICS)  # as the programs do
    for name in ("lightning_diffusion.app.commands.train", "tests.runs"):
        importlib.import_module(name)
    gc.freeze()  # the collector touches no page that the processes share
    if request := _serve():
        _become(**request)
