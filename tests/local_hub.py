"""A hub on this machine: what huggingface_hub asks of the real one, to make a repository and upload a folder."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_ThisIsTheSecretOfATestAndNothingElse"


@dataclass
class Repository:
    """What was committed to it.

    Attributes:
        visibility: As asked for when it was made.
        files: Path -> bytes.
        oids: Path -> what tells the client that a file has not changed.
        commits: Their first lines.
    """

    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)
    oids: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class LocalHub(ThreadingHTTPServer):
    """Takes uploads of those who have the token, and keeps a list of who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, authorization

    def count(self, method: str, part: str) -> int:
        """How often something was asked for."""
        return sum(one == method and part in path for one, path, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_PUT(self) -> None:
        self._serve(self._body())

    def do_POST(self) -> None:
        self._serve(self._body())

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _serve(self, body: bytes) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("authorization")))
        if match := re.fullmatch(r"/storage/(\w+)", path):  # a signed address, which takes no token
            hub.large[match[1]] = body
            self._answer(200, {})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        else:
            self._answer(*self._told(path, body))

    def _told(self, path: str, body: bytes) -> tuple[int, object]:
        hub = self.server
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            if name in hub.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"}
            hub.repositories[name] = Repository(told.get("visibility", "public"))
            return 200, {"url": f"{hub.address}/{name}", "name": name, "id": name}
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w-]+)(?:\.git)?(|/[a-z/-]+)", path)
        if match is None or match[1] not in hub.repositories:
            return 404, {"error": f"nothing at {path}"}
        repository = hub.repositories[match[1]]
        if match[2] == "/preupload/main":
            files = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [_mode(name, repository.oids.get(name)) for name in files]}
        if match[2] == "/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]}
        if match[2] == "/commit/main":
            _commit(repository, hub.large, [json.loads(line) for line in body.splitlines()])
            oid = f"{len(repository.commits):040x}"
            return 200, {"commitUrl": f"{hub.address}/{match[1]}/commit/{oid}", "commitOid": oid, "success": True}
        if match[2] in ("", "/revision/main"):
            return 200, {"id": match[1], "sha": f"{len(repository.commits):040x}", "siblings": [], "tags": []}
        return 404, {"error": f"nothing at {path}"}

    def _place(self, one: dict) -> dict:
        """Where a large file goes; nowhere, if it is here already."""
        upload = {"upload": {"href": f"{self.server.address}/storage/{one['oid']}"}}
        return {**one, **({} if one["oid"] in self.server.large else {"actions": upload})}

    def _answer(self, status: int, said: object) -> None:
        made = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(made)))
        self.end_headers()
        self.wfile.write(made)


def _mode(path: str, oid: str | None) -> dict:
    large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def _commit(repository: Repository, large: dict[str, bytes], lines: list[dict]) -> None:
    header, *rest = lines
    repository.commits.append(header["value"]["summary"])
    for line in rest:
        value = line["value"]
        if line["key"] == "lfsFile":
            content, oid = large[value["oid"]], hashlib.sha256(large[value["oid"]]).hexdigest()
            assert oid == value["oid"]
        else:
            content = base64.b64decode(value["content"])
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        repository.files[value["path"]], repository.oids[value["path"]] = content, oid


@contextlib.contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Run one."""
    hub = LocalHub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
