"""A hub of one's own: a local HTTP server that speaks the endpoints huggingface_hub calls, serving folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

GATED = "acme/gated"


class Hub:
    """Folders by repository id; ``asked`` collects the files that were fetched."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.url = ""

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request path."""
        parts = [unquote(p) for p in urlsplit(path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        repository = f"{org}/{name}"
        if repository == GATED:
            return self.error(403, "GatedRepo", "access is restricted")
        if repository not in self.repositories:
            return self.error(401, "RepoNotFound", "no such repository")
        folder, commit = self.repositories[repository], self.commit(repository)
        verb, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        if revision not in ("main", "v1", commit):
            return self.error(404, "RevisionNotFound", "no such revision")
        files = sorted(p for p in folder.iterdir() if p.is_file())
        if api and verb == "tree":
            rows = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": digest(p)} for p in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if api:
            info = {"id": repository, "sha": commit, "siblings": [{"rfilename": p.name} for p in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = folder / rest[2]
        if not file.is_file():
            return self.error(404, "EntryNotFound", "no such file")
        self.asked.append(file.name)
        return 200, {"ETag": f'"{digest(file)}"', "X-Repo-Commit": commit}, file.read_bytes()

    @staticmethod
    def error(status: int, code: str, text: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code, "X-Error-Message": text}, b""


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def running(repositories: dict[str, Path]) -> Iterator[Hub]:
    """Serve folders on a free port of this machine."""
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
