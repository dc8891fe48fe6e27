"""Processes that need not import torch and Lightning again, which takes seconds: copies of one that has.

Copied they are processes like any other: their own id, memory, signals and files, children of whoever asked. The few
tests that are about starting up itself start Python anew.
"""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PRELOADED = ("src.programs.train", "src.programs.sample", "src.programs.evaluate", "src.programs.export")
PR_SET_CHILD_SUBREAPER = 36
_asking = None  # this process's end of the socket to its zygote


class Copied(subprocess.Popen):
    """`python -m module …` as Popen starts it, with the modules imported before."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        """As in CPython: sets self.pid and closes the child's ends of the pipes."""
        pipes = rest[3:9]  # p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite; after startupinfo, …, shell
        ends = [os.open(os.devnull, os.O_RDONLY), pipes[3], pipes[5]]
        request = {"module": args[2], "arguments": args[3:], "cwd": str(cwd), "env": env}
        asking = _zygote()
        socket.send_fds(asking, [json.dumps(request).encode()], ends)
        self.pid = int(asking.recv(32))
        self._child_created = True
        os.close(ends[0])
        self._close_pipe_fds(*pipes)


def available():
    """Whether processes can be copied here, and their orphans adopted."""
    return sys.platform == "linux"


def _zygote():
    global _asking
    if _asking is None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        _asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _asking.set_inheritable(False)
        command = [sys.executable, "-m", "tests.zygote", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        atexit.register(process.wait)
        atexit.register(_asking.close)
    return _asking


def serve(asked):
    """Copies itself for each request; returns in the copies alone, with what to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, *_ = socket.recv_fds(asked, 1_000_000, 3)
        if not message:
            raise SystemExit
        read, write = os.pipe()
        if os.fork():  # by way of a process that ends at once: the copy becomes the asker's child
            os.close(write)
            with os.fdopen(read, "rb") as pid:
                asked.send(pid.read())
            for fd in fds:
                os.close(fd)
            continue
        if pid := os.fork():
            os.write(write, str(pid).encode())
            os._exit(0)
        os.close(read)
        os.close(write)
        asked.close()
        for fd, place in zip(fds, (0, 1, 2), strict=True):
            os.dup2(fd, place)
            os.close(fd)
        return json.loads(message)


def become(request):
    """What the interpreter does before `python -m module`."""
    for name in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[:] = [request["module"], *request["arguments"]]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
