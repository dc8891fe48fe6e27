"""The actions of a process by Python's audit events: programs started, addresses requested, files written."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

ACTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "webbrowser.open", "urllib.Request",
    "code.__new__", "os.startfile", "pickle.find_class", "sys.settrace",
)  # fmt: skip
WRITES = (
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "shutil.rmtree",
)  # fmt: skip
OF_TORCH = ("None", "libnvidia-ml.so.1")  # libraries that it looks for
USUAL = (
    "src",
    "lightning_diffusion",
    "torch",
    "hydra",
    "omegaconf",
    "lightning",
    "rich",
    "yaml",
    "encodings",
    "safetensors",
    "torchvision",
)


class Watch:
    """Python's own audit of what the process does: programs started, addresses, code that was text, and files written
    outside of a folder."""

    def __init__(self):
        self.seen, self.folder = None, None
        sys.addaudithook(self.note)

    def note(self, event, arguments):
        if self.seen is None:
            return
        if event in ACTS and not (event == "ctypes.dlopen" and str(arguments[0]) in OF_TORCH):
            self.seen.append((event, str(arguments)[:200]))
        elif event == "import" and arguments[0].split(".")[0] not in (*USUAL, *sys.stdlib_module_names):
            self.seen.append((event, arguments[0]))
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<") and not self.generated():
            self.seen.append((event, arguments[0].co_filename))
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1] or "", arguments[2]
            if set(mode) & set("wax+") or (not mode and flags & (os.O_WRONLY | os.O_RDWR)):
                self.written(event, os.fsdecode(arguments[0]))
        elif event in WRITES:
            self.written(event, os.fsdecode(arguments[0]))

    def generated(self):
        """Dataclasses, named tuples and their like write their methods as text."""
        frame, names = sys._getframe(2), set()
        while frame is not None:
            names.add(frame.f_globals.get("__name__"))
            frame = frame.f_back
        return bool(names & {"collections", "dataclasses", "importlib._bootstrap", "typing", "enum"})

    def written(self, event, path):
        if not f"{os.path.abspath(path)}/".startswith(f"{self.folder}/") and path != os.devnull:
            self.seen.append((event, path))

    @contextmanager
    def nothing_happens(self, folder):
        """But for files in the folder."""
        self.seen, self.folder = [], Path(folder).resolve()
        try:
            yield
        finally:
            seen, self.seen = self.seen, None
        assert seen == [], seen


WATCH = Watch()
