"""A Hub on 127.0.0.1 for the real huggingface_hub client: repositories, LFS and Xet, and faults.

It keeps what is uploaded below a folder, speaks the requests that the client makes and no others,
and fails on demand. Which transport is used is the client's choice (HF_HUB_DISABLE_XET).

    with Hub(tmp_path) as hub:
        hub.fail("PUT", "/lfs/", drop=1000)      # the next one breaks off after 1,000 bytes
        subprocess.run([...], env={**os.environ, **hub.environment(home)})
        assert hub.repos["org/name"].files()["config.json"].size == 600
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_cas import Store

WRITE, READ = "hf_loopbackWriteToken0000000000", "hf_loopbackReadToken00000000000"
SMALL = 10_000  # bytes; a smaller file that is no weights is in git itself
PART = 200_000  # bytes of one part of a larger upload


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    size: int
    oid: str  # git's sha1 of the content, or of the pointer
    path: Path  # where its bytes are
    sha256: str | None = None  # where it is outside of git

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass
class Repository:
    """Branches and commits of one model."""

    private: bool = True
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # name → commit
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    pulls: int = 0

    def commit(self, branch: str, files: Mapping[str, File], title: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {title}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        self.titles.append(title)
        return oid

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    method: str
    pattern: str
    times: int = 1
    status: int = 0  # answer with this status
    code: str = ""  # and this X-Error-Code
    drop: int | None = None  # break off after reading so many bytes of the request's body
    keep: int | None = None  # send only so many bytes of the answer's body, as if it were all
    cut: int | None = None  # send so many bytes of the answer's body and break off


class Hub:
    """The server and what it holds."""

    def __init__(self, folder: Path) -> None:
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.store = Store(folder / "xorbs")
        self.repos: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.lost: dict[str, str] = {}  # files that came to harm on the way: a size, hash or name
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.lock = threading.RLock()
        bound = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(
        self, home: Path, *, token: str | None = WRITE, xet: bool = False
    ) -> dict[str, str]:
        """Environment variables that lead the client here."""
        env = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_XET_XORB_COMPRESSION_POLICY": "none",
            "HF_XET_TELEMETRY_ENABLED": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {**env, "HF_TOKEN": token} if token else env

    def fail(self, method: str, pattern: str, **what: Any) -> None:
        """Let the next request that matches go wrong, or as many as `times` says."""
        self.faults.append(Fault(method, pattern, **what))

    def asked(self, method: str, pattern: str) -> list[tuple[str, str, str]]:
        """The requests so far that match."""
        return [r for r in self.requests if r[0] == method and re.search(pattern, r[1])]

    def add(self, repo: str, folder: Path, *, private: bool = False, **more: Any) -> Repository:
        """A model that is there from the beginning: everything in the folder."""
        made = self.repos[repo] = Repository(private, **more)
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        files = {str(p.relative_to(folder)): self.keep(p.name, p.read_bytes()) for p in paths}
        made.commit("main", files, "files")
        return made

    def keep(self, name: str, data: bytes) -> File:
        """Store a file in git or outside of it, as its name and size ask for."""
        large = is_large(name, len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        oid = sha256 if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (self.objects / oid).write_bytes(data)
        return self.pointer(oid) if large else File(len(data), oid, self.objects / oid)

    def pointer(self, sha256: str) -> File:
        """A file outside of git whose bytes are here."""
        path = self.objects / sha256
        size = path.stat().st_size
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        oid = hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()
        return File(size, oid, path, sha256)


def is_large(name: str, size: int) -> bool:
    """Whether the Hub keeps a file outside of git."""
    return name.endswith(".safetensors") or size > SMALL


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Dropped(Exception):
    """The connection is broken off, by a fault."""


class Handler(BaseHTTPRequestHandler):
    """One request. Routes are methods, in the order of the table at the end."""

    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None
    body_read = False

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """Every method takes the same way."""
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        self.body_read, self.fault = False, None
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.pattern, path):
                    fault.times -= 1
                    self.fault = fault
                    break
        try:
            if self.fault and self.fault.drop is not None:
                self.rfile.read(self.fault.drop)
                raise _Dropped
            if self.fault and self.fault.status:
                raise Refused(self.fault.status, self.fault.code, "as the test asked for")
            for method, pattern, route in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split():
                    route(self, **found.groupdict())
                    return
            raise Refused(404, "", f"no route for {self.command} {path}")
        except Refused as error:
            self.answer({"error": error.message}, status=error.status, code=error.code)
        except (_Dropped, ConnectionError):
            self.close_connection = True
            self.connection.close()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # -- bodies ----------------------------------------------------------------------------------

    def body(self) -> bytes:
        """The request's body."""
        self.body_read = True
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def json(self) -> Any:
        return json.loads(self.body() or b"{}")

    def answer(
        self, value: Any = None, *, status: int = 200, code: str = "", **headers: str
    ) -> None:
        """Answer in JSON."""
        if code:
            headers["X-Error-Code"] = code
        data = b"" if value is None else json.dumps(value).encode()
        self.send(data, status, {"Content-Type": "application/json", **headers})

    def send(self, data: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Answer in bytes."""
        if not self.body_read:
            self.body()
        fault = self.fault
        if fault and fault.keep is not None:
            data = data[: fault.keep]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(data[: fault.cut])
            self.wfile.flush()
            raise _Dropped
        self.wfile.write(data)

    # -- who may do what -------------------------------------------------------------------------

    def token(self) -> str | None:
        """The token of a request: a bearer's, or the password in the address."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            value = base64.b64decode(value).decode().partition(":")[2]
        return value or None

    def may_write(self) -> None:
        token = self.token()
        if token is None or token not in (READ, WRITE):
            raise Refused(401, "", "Invalid username or password.")
        if token != WRITE:
            raise Refused(403, "", "this token may only read")

    def repo(self, name: str) -> Repository:
        """A repository that the asker may see."""
        token, found = self.token(), self.hub.repos.get(name)
        if token is not None and token not in (READ, WRITE):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if found is None or (found.private and token is None):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def commit_of(self, repo: Repository, revision: str) -> str:
        found = repo.branches.get(revision, revision)
        if found not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # -- repositories ----------------------------------------------------------------------------

    def create(self) -> None:
        self.may_write()
        asked = self.json()
        name = f"{asked['organization']}/{asked['name']}"
        told = {"url": f"{self.hub.url}/{name}", "name": name}
        with self.hub.lock:
            if name in self.hub.repos:
                self.answer({**told, "error": "You already created this model repo"}, status=409)
                return
            made = self.hub.repos[name] = Repository(asked.get("visibility") != "public")
            attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            files = {".gitattributes": self.hub.keep(".gitattributes", attributes)}
            made.commit("main", files, "initial commit")
        self.answer(told)

    def branch(self, name: str, branch: str) -> None:
        self.may_write()
        repo = self.repo(name)
        if branch in repo.branches:
            raise Refused(409, "", "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.answer({})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self.repo(name)
        commit = self.commit_of(repo, revision or "main")
        siblings: list[dict[str, Any]] = []
        for path, file in repo.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.query:
                entry |= {"size": file.size, "blobId": file.oid}
            if "blobs" in self.query and file.sha256:
                entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
            harm = self.hub.lost.get(path)
            if harm == "size":
                entry["size"] = 1
            elif harm == "hash" and file.sha256:
                entry["lfs"]["sha256"] = "0" * 64
            elif harm == "hash":
                entry["blobId"] = "0" * 40
            if harm != "name":
                siblings.append(entry)
        self.answer(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, name: str, revision: str, below: str = "") -> None:
        repo = self.repo(name)
        files = repo.commits[self.commit_of(repo, revision)]
        self.answer([self.entry(p, f) for p, f in files.items()])

    def paths(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        files = repo.commits[self.commit_of(repo, revision)]
        data = self.body()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(data)["paths"]
        else:
            wanted = parse_qs(data.decode())["paths"]
        self.answer([self.entry(p, files[p]) for p in wanted if p in files])

    def entry(self, path: str, file: File) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.sha256:
            out["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
            if file.sha256 in self.hub.store.hashes:
                out["xetHash"] = self.hub.store.hashes[file.sha256]
        return out

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        commit = self.commit_of(repo, revision)
        if repo.gated and self.token() != WRITE:
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        file = repo.commits[commit].get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            if xet := self.hub.store.hashes.get(file.sha256):
                link = f"{self.hub.url}/api/models/{name}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": xet, "Link": f'<{link}>; rel="xet-auth"'}
        self.ranged(file.path, headers)

    def ranged(self, path: Path, headers: Mapping[str, str]) -> None:
        """A file, or the part of it that is asked for."""
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.command == "HEAD":
            if self.command == "HEAD":
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(size)}.items():
                    self.send_header(key, value)
                self.end_headers()
                return
            self.send(path.read_bytes(), 200, headers)
            return
        start, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        if start >= size:
            raise Refused(416, "", f"{size} bytes only")
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(last + 1 - start)
        self.send(data, 206, {**headers, "Content-Range": f"bytes {start}-{last}/{size}"})

    # -- uploads ---------------------------------------------------------------------------------

    def preupload(self, name: str, revision: str) -> None:
        self.may_write()
        repo = self.repo(name)
        files = repo.commits[self.commit_of(repo, revision)]
        told = []
        for asked in self.json()["files"]:
            path = asked["path"]
            mode = "lfs" if is_large(path, asked["size"]) else "regular"
            oid = files[path].etag if path in files else None
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": told})

    def batch(self, name: str) -> None:
        self.may_write()
        self.repo(name)
        told = []
        for asked in self.json()["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if not (self.hub.objects / asked["oid"]).exists():
                entry["actions"] = self.actions(asked["oid"], asked["size"])
            told.append(entry)
        large = any(o["size"] > PART for o in told)
        self.answer({"transfer": "multipart" if large else "basic", "objects": told})

    def actions(self, oid: str, size: int) -> dict[str, Any]:
        """Where to put the bytes: in one part, or in several."""
        place = f"{self.hub.url}/lfs/{oid}"
        header = {}
        if size > PART:
            count = -(-size // PART)
            header = {"chunk_size": str(PART)}
            header |= {f"{n + 1:05d}": f"{place}/{n}" for n in range(count)}
        return {
            "upload": {"href": place, "header": header},
            "verify": {"href": f"{self.hub.url}/lfs-verify/{oid}"},
        }

    def put(self, oid: str, part: str = "") -> None:
        name = f"{oid}.{int(part):05d}" if part else oid
        (self.hub.objects / name).write_bytes(self.body())
        self.answer({}, ETag=f'"{part or oid}"')

    def join(self, oid: str) -> None:
        """All parts are here: they become one object."""
        count = len(self.json()["parts"])
        parts = [self.hub.objects / f"{oid}.{n:05d}" for n in range(count)]
        data = b"".join(p.read_bytes() for p in parts)
        assert hashlib.sha256(data).hexdigest() == oid
        (self.hub.objects / oid).write_bytes(data)
        self.answer({})

    def verified(self, oid: str) -> None:
        if not (self.hub.objects / oid).exists():
            raise Refused(404, "", "no such object")
        self.answer({})

    def send_commit(self, name: str, revision: str) -> None:
        self.may_write()
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        with self.hub.lock:
            repo = self.repo(name)
            parent = self.commit_of(repo, revision)
            header = lines[0]["value"]
            if header.get("parentCommit", parent) != parent:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    content = base64.b64decode(value["content"])
                    files[value["path"]] = self.hub.keep("in git", content)
                elif line["key"] == "lfsFile":
                    if not (self.hub.objects / value["oid"]).exists():
                        raise Refused(400, "", f"{value['oid']} was never uploaded")
                    files[value["path"]] = self.hub.pointer(value["oid"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            told: dict[str, Any] = {"success": True}
            if "create_pr" in self.query:
                repo.pulls += 1
                revision = f"refs/pr/{repo.pulls}"
                told["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{repo.pulls}"
            oid = repo.commit(revision, files, header["summary"])
        self.answer({**told, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def accept(self) -> None:
        """The front matter of a card is fine."""
        self.answer({"errors": [], "warnings": []})

    # -- Xet -------------------------------------------------------------------------------------

    def xet_token(self, name: str, kind: str, revision: str) -> None:
        if kind == "write":
            self.may_write()
        self.repo(name)
        expires = int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": self.hub.url,
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(expires),
        }
        told = {"casUrl": self.hub.url, "accessToken": "xet-token", "exp": expires}
        self.answer(told, **headers)

    def known_chunk(self, chunk: str) -> None:
        raise Refused(404, "", "no other file has this chunk")

    def add_xorb(self, xorb: str) -> None:
        self.hub.store.add_xorb(xorb, self.body())
        self.answer({"was_inserted": True})

    def read_xorb(self, xorb: str) -> None:
        self.ranged(self.hub.store.folder / xorb, {})

    def add_shard(self) -> None:
        with self.hub.lock:
            for sha256, content in self.hub.store.add_shard(self.body()):
                assert hashlib.sha256(content).hexdigest() == sha256
                (self.hub.objects / sha256).write_bytes(content)
        self.answer({"result": 1})

    def reconstruction(self, file: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        reach = (int(asked[1]), int(asked[2]) + 1) if asked else None
        if file not in self.hub.store.files:
            raise Refused(404, "", "no such file")
        told = self.hub.store.reconstruction(file, f"{self.hub.url}/xorbs", reach)
        if told is None:
            raise Refused(416, "", "past the end")
        self.answer(told)


_REPO = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = f"/api/models/{_REPO}"
ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.accept),
    ("GET", _API, Handler.info),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?P<below>/.*)?", Handler.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", Handler.paths),
    ("POST", rf"{_API}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", Handler.send_commit),
    ("GET", rf"{_API}/xet-(?P<kind>read|write)-token/(?P<revision>.+)", Handler.xet_token),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)(?:/(?P<part>\d+))?", Handler.put),
    ("POST", r"/lfs/(?P<oid>\w+)", Handler.join),
    ("POST", r"/lfs-verify/(?P<oid>\w+)", Handler.verified),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", r"/v1/chunks/[\w-]+/(?P<chunk>\w+)", Handler.known_chunk),
    ("POST", r"/v1/xorbs/[\w-]+/(?P<xorb>\w+)", Handler.add_xorb),
    ("GET", r"/xorbs/(?P<xorb>\w+)", Handler.read_xorb),
    ("POST", r"/v1/shards", Handler.add_shard),
    ("GET", r"/v1/reconstructions/(?P<file>\w+)", Handler.reconstruction),
)
