"""A stand-in for the Hub on loopback, over real HTTP: what creating, uploading to and reading model repositories takes.

It keeps repositories in memory, asks for the token as the Hub does, and checks what it is sent (hashes and sizes of
large files, that a commit names only objects that were uploaded). It remembers each request.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_planted0token0that0must0not0show"
USER = "tester"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`; `repositories` and `requests` tell what happened."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return action(self, *match.groups())
        return self.reply(404, {"error": f"the stand-in does not know {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = do

    def reply(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after an answer as the Hub gives it to those who may not know of it."""
        found = self.server.repositories.get(name)
        if found is None or ((found.private or write) and not self.has_token()):
            self.reply(
                401 if not self.has_token() else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
            )
            return None
        return found

    def whoami(self) -> None:
        self.reply(*((200, {"name": USER, "type": "user"}) if self.has_token() else (401, {"error": "Unauthorized"})))

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not self.has_token():
            return self.reply(401, {"error": "Invalid username or password."})
        if name in self.server.repositories:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        self.server.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return self.reply(200, {"url": f"{self.server.url}/{name}", "name": name})

    def info(self, name: str, _: str | None = None) -> None:
        if repository := self.repository(name):
            files = [{"rfilename": path} for path in repository.files]
            info = {"id": name, "modelId": name, "private": repository.private, "sha": repository.sha}
            self.reply(200, info | {"siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def validate_yaml(self) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, name: str) -> None:
        if self.repository(name, write=True) is None:
            return
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
        self.reply(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, name: str) -> None:
        if self.repository(name, write=True) is None:
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/objects/{item['oid']}/{item['size']}"}
            known = item["oid"] in self.server.objects
            objects.append({**item, **({} if known else {"actions": {"upload": upload}})})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid: str, size: str) -> None:
        if len(self.body) != int(size) or hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply(400, {"error": "not the object that was announced"})
        self.server.objects[oid] = self.body
        return self.reply(200, {})

    def commit(self, name: str) -> None:
        repository = self.repository(name, write=True)
        if repository is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        new = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.reply(400, {"error": f"no object {value['oid']}"})
                new[value["path"]] = self.server.objects[value["oid"]]
        repository.files |= new
        repository.commits += 1
        url = f"{self.server.url}/{name}/commit/{repository.sha}"
        return self.reply(200, {"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name: str, _: str, path: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        headers = {"X_Repo_Commit": repository.sha}
        if path in repository.files:
            content = repository.files[path]
            self.reply(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **headers)
        else:
            self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)

    def tree(self, name: str, _: str) -> None:
        if repository := self.repository(name):
            files = repository.files.items()
            found = [{"type": "file", "oid": "0" * 40, "path": path, "size": len(data)} for path, data in files]
            self.reply(200, found)


_NAME = r"([^/]+/[^/]+)"
_ROUTES = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), f"/api/models/{_NAME}", _Handler.info),
    (("GET",), f"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    (("GET",), f"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (("POST",), f"/api/models/{_NAME}/preupload/main", _Handler.preupload),
    (("POST",), f"/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/objects/(\w+)/(\d+)", _Handler.put_object),
    (("POST",), f"/api/models/{_NAME}/commit/main", _Handler.commit),
    (("GET", "HEAD"), f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
