"""The part of the Hugging Face Hub that huggingface_hub needs to make repositories, commit, tag, list and download; in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE = (".onnx", ".pt", ".safetensors", ".png")
Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits from the first to the last, each an id and all files; tags name commits."""

    commits: list[tuple[str, Files]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, Files] | None:
        wanted = self.commits[-1][0] if revision == "main" else self.tags.get(revision, revision)
        return next((one for one in self.commits if one[0] == wanted), None)


@dataclass
class HubServer:
    """`faults` maps a pattern of "METHOD path" to statuses that are answered instead, one a request; `lost` is a file that every
    commit forgets; `before_commit` runs once when a commit arrives. The user `tester` may write to what is named tester/ and to what
    belongs to one of `organisations`. `requests` holds what was asked, `tokens` who asked, `sent` how many bytes of a file at a
    path went out."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)
    lost: str = ""
    before_commit: Callable[[], None] | None = None
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    objects: Files = field(default_factory=dict)
    role: str = "write"
    organisations: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.tokens.add(self.headers.get("Authorization", ""))
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                status, value, headers = hub.answer(self.command, path, body)
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted and status == 200 and isinstance(value, bytes):
                    start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(value))
                    headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(value)}"}
                    status, content = 206, value[start:end]
                    headers["Content-Length"] = str(len(content))
                if isinstance(value, bytes) and self.command == "GET":
                    hub.sent[path] += len(content)
                self.send_response(status)
                for key, one in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, one)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for pattern, statuses in self.faults.items():
            if statuses and re.search(pattern, f"{method} {path}"):
                return statuses.pop(0), {"error": "as the test wants it"}, {}
        if path == "/api/whoami-v2":
            orgs = [{"type": "org", "name": name} for name in self.organisations]
            return 200, {"name": "tester", "type": "user", "orgs": orgs, "auth": {"accessToken": {"role": self.role}}}, {}
        if asked := re.fullmatch(r"/api/models/([^/]+)/[^/]+/auth-check/write", path):
            allowed = asked.group(1) in ("tester", *self.organisations)
            return (200, {}, {}) if allowed else (403, {"error": "You don't have the rights to write to it"}, {})
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if upload := re.fullmatch(r"/lfs/(\w+)", path):
            self.objects[upload.group(1)] = body
            return 200, {}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}, {}
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*found.groups())
        found = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+)(?:/(.+))?)?)?", path)
        repository = self.repositories.get(found.group(1)) if found else None
        if found is None or repository is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        name, verb, revision, folder = found.groups()
        return self.repository(repository, name, verb or "revision", revision or "main", body, folder or "")

    def create(self, wanted: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return 409, {**answer, "error": "You already created this model repo"}, {}
        self.repositories[name] = Repository()
        self.repositories[name].commit({".gitattributes": b"*.onnx filter=lfs\n"})
        return 200, answer, {}

    def repository(
        self, one: Repository, name: str, verb: str, revision: str, body: bytes, folder: str
    ) -> tuple[int, Any, dict[str, str]]:
        state = one.at(revision)
        if verb == "refs":
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in one.tags.items()]
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": one.commits[-1][0]}]
            return 200, {"branches": branches, "tags": tags, "converts": []}, {}
        if state is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        oid, files = state
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            return (
                200,
                {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "private": True, "tags": [], "downloads": 0},
                {},
            )
        if verb == "tree":
            below = f"{folder}/" if folder else ""
            return 200, [entry(path, content) for path, content in files.items() if path.startswith(below)], {}
        if verb == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                for path in asked
            ]
            return 200, {"files": [{**mode, "oid": oid_of(mode["path"], files)} for mode in modes]}, {}
        if verb == "tag":
            tag = json.loads(body)["tag"]
            if tag in one.tags:
                return 409, {"error": "Tag reference exists already"}, {}
            one.tags[tag] = oid
            return 200, {}, {}
        return self.commit(one, name, body)

    def commit(self, one: Repository, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.before_commit:
            hook, self.before_commit = self.before_commit, None
            hook()
        lines = [json.loads(line) for line in body.splitlines() if line]
        if lines[0]["value"].get("parentCommit") not in (None, one.commits[-1][0]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(one.commits[-1][1])
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "deletedFile":
                files.pop(path)
            else:
                files[path] = self.objects[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
        files.pop(self.lost, None)
        oid = one.commit(files)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""}, {}

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        repository = self.repositories.get(name.removeprefix("datasets/"))
        state = repository.at(revision) if repository else None
        if state is None or path not in state[1]:
            return 404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"}
        content = state[1][path]
        headers = {
            "X-Repo-Commit": state[0],
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Content-Length": str(len(content)),
        }
        return 200, content, headers


def oid_of(path: str, files: Files) -> str | None:
    """What the hub knows a file by: git's own hash, or the sha256 of a large one."""
    if path not in files:
        return None
    if path.endswith(LARGE):
        return hashlib.sha256(files[path]).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(files[path]) + files[path]).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    listed: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LARGE):
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return listed
