"""A hub on this machine: the calls of the Hugging Face hub that a pull makes, with its faults to order."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 10_000  # from this size on a file is kept as an LFS object, and its bytes come from another host


@dataclass
class Repository:
    """One model repository. `sizes` overrides what is stated of a file, `spoil` names files that come with another byte."""

    files: dict[str, bytes]
    commit: str = "c0ffee" * 6 + "1234"
    license: str = "openrail++"
    gated: int = 0  # the status that a file's request is answered with, 401 or 403
    sizes: dict[str, int] = field(default_factory=dict)
    spoil: set[str] = field(default_factory=set)
    listings: int = 100  # how often the tree is told; then the hub refuses (no 5xx: its client would try for half a minute)
    cut: dict[str, list[int]] = field(default_factory=dict)  # file: after how many bytes each of the next answers ends

    @classmethod
    def of(cls, folder: Path, half: bool = False) -> Repository:
        """A folder's files; with `half` each weights file stands there as its fp16 variant as well, and the plain one is of no use."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for name in [name for name in files if half and name.endswith(".safetensors")]:
            files[name.replace(".safetensors", ".fp16.safetensors")] = files[name]
            files[name] = b"the plain weights, twice as large" * 1000
        return cls(files)

    def tree(self) -> list[dict]:
        """The listing, as the hub gives it with recursive=true."""
        folders = {str(Path(name).parent) for name in self.files} - {"."}
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in sorted(folders)] + [self._entry(name) for name in self.files]

    def _entry(self, name: str) -> dict:
        content = self.files[name]
        entry = {"type": "file", "oid": git_name(content), "size": self.sizes.get(name, len(content)), "path": name}
        if len(content) >= LARGE:
            entry["lfs"] = {"oid": sha256(content), "size": entry["size"], "pointerSize": 134}
        return entry


class Hub:
    """The server, on a thread. `asked` holds (method, path, headers) of every request, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.token = ""  # where set, requests without it are answered as for a private repository
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self, repository: str) -> set[str]:
        """The files whose bytes were asked for."""
        names = set()
        for method, path, _ in self.asked:
            if method == "GET" and path.startswith(f"/{repository}/resolve/"):
                names.add(path.split("/", 5)[5])
            if method == "GET" and path.startswith(f"/objects/{repository}/"):
                names.add(path.split("/", 4)[4])
        return names

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of each request for a file's bytes."""
        return [headers.get("range") for method, path, headers in self.asked if method == "GET" and path.endswith(f"/{name}")]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
            match path.removeprefix("/").split("/"):
                case ["objects", owner, name, *rest]:  # the store of large files, another host: it asks for no token
                    self.bytes_of(hub.repositories[f"{owner}/{name}"], "/".join(rest))
                case ["api", "models", owner, name, *rest]:
                    self.with_repository(f"{owner}/{name}", lambda repository: self.about(repository, f"{owner}/{name}", rest))
                case [owner, name, "resolve", commit, *rest]:
                    self.with_repository(f"{owner}/{name}", lambda repository: self.resolve(repository, f"{owner}/{name}", commit, "/".join(rest)))
                case _:
                    self.refuse(404, "")

        def with_repository(self, hub_id: str, go_on) -> None:
            given = self.headers.get("Authorization")
            if given is not None and given != f"Bearer {hub.token}":
                return self.refuse(401, "", "Invalid credentials in Authorization header")
            if hub_id not in hub.repositories or (hub.token and given is None):
                # the hub does not tell strangers which repositories are there
                return self.refuse(404 if given else 401, "RepoNotFound", "Repository not found")
            return go_on(hub.repositories[hub_id])

        def about(self, repository: Repository, hub_id: str, rest: list[str]) -> None:
            if rest[:1] == ["tree"]:
                repository.listings -= 1
                return self.json(repository.tree()) if repository.listings >= 0 else self.refuse(403, "")
            siblings = [{"rfilename": name} for name in repository.files]
            return self.json({"id": hub_id, "sha": repository.commit, "siblings": siblings, "cardData": {"license": repository.license}})

        def resolve(self, repository: Repository, hub_id: str, commit: str, name: str) -> None:
            if repository.gated:
                return self.refuse(repository.gated, "GatedRepo", f"Access to model {hub_id} is restricted")
            if name not in repository.files or commit != repository.commit:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            content = repository.files[name]
            if len(content) < LARGE:
                return self.bytes_of(repository, name, {"X-Repo-Commit": commit, "ETag": f'"{git_name(content)}"'})
            stated = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(repository.sizes.get(name, len(content)))}
            self.send_response(302)
            location = f"http://localhost:{hub.port}/objects/{hub_id}/{name}"
            return self.headers_of({"Location": location, "X-Repo-Commit": commit, "Content-Length": "0"} | stated)

        def bytes_of(self, repository: Repository, name: str, headers: dict[str, str] | None = None) -> None:
            content = repository.files[name]
            if name in repository.spoil:
                content = bytes([content[0] ^ 1]) + content[1:]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
            self.headers_of({"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"} | ranged | (headers or {}))
            if self.command == "HEAD":
                return
            cuts = repository.cut.get(name)
            if cuts:
                self.wfile.write(content[start : start + cuts.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])

        def json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.headers_of({"Content-Type": "application/json", "Content-Length": str(len(body))})
            self.wfile.write(body)

        def refuse(self, status: int, code: str, message: str = "") -> None:
            self.send_response(status)
            self.headers_of({"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"})

        def headers_of(self, headers: dict[str, str]) -> None:
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

    return Handler
