"""Servers on loopback in W&B's place: one that answers and then dies or falls silent, and ones that never answer."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers just enough for a run to be online; `uploads` has (path, content) of what it was given."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.uploads, self.silent = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def die(self):
        self.shutdown()
        self.server_close()

    def fall_silent(self):
        self.silent.set()

    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.silent.is_set():
            threading.Event().wait()
        content = {"data": {}}
        if self.path == "/graphql":
            request = json.loads(body)
            if request["operationName"] == "CreateRunFiles":
                names = request["variables"]["files"]
                files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in names]
                content = {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        else:
            self.server.uploads.append((self.path, body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *args):
        """Nobody reads it."""


@contextlib.contextmanager
def answering():
    server = Server()
    try:
        yield server
    finally:
        server.die()


@contextlib.contextmanager
def nobody(backlog):
    """The URL of a port whose connections nobody accepts: None refuses, 0 is full, with more they are kept waiting."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        if backlog is not None:
            listener.listen(backlog)
        for _ in range(8 if backlog == 0 else 0):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
