"""A small server on this machine with the endpoints of a model hub that huggingface_hub uses.

It keeps models in memory: {name: [commit, ...]}, a commit being (id, {file: bytes}). Files that are
not text go through LFS, as on the real one. No authentication but one token.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http import server

TOKEN = "hf_secret"


class Hub:
    """The content: `models`, and `add` for a commit from outside."""

    def __init__(self):
        self.models, self.blobs, self.asked = {}, {}, []

    def add(self, name: str, files: dict[str, bytes]) -> str:
        commits = self.models.setdefault(name, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        text = repr(
            (len(commits), sorted((k, hashlib.sha1(v).hexdigest()) for k, v in content.items()))
        )
        commits.append((hashlib.sha1(text.encode()).hexdigest(), content))
        return commits[-1][0]

    def find(self, name: str, revision: str):
        commits = self.models.get(name, ())
        found = [c for c in commits if c[0] == revision]
        return found[0] if found else commits[-1] if commits and revision == "main" else None


class Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        """The content of a request, of known length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def missing(self, kind):
        self.answer(404, {"error": f"{kind} not found"}, X_Error_Code=kind)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, kind, revision = found.groups()
            commit = self.hub.find(name, revision or "main")
            if name not in self.hub.models:
                return self.missing("RepoNotFound")
            if commit is None:
                return self.missing("RevisionNotFound")
            if kind == "tree":
                rows = [
                    {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for f, d in commit[1].items()
                ]
                return self.answer(200, rows)
            siblings = [{"rfilename": file} for file in commit[1]]
            return self.answer(200, {"id": name, "sha": commit[0], "siblings": siblings})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            commit = self.hub.find(name, revision)
            if commit is None or file not in commit[1]:
                return self.missing("EntryNotFound")
            data = commit[1][file]
            tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit[0]}
            return self.answer(200, data, **tag)
        return self.missing("RepoNotFound")

    def do_PUT(self):
        data = self.body()
        self.hub.blobs[self.path.rpartition("/")[2]] = data
        self.answer(200)

    def do_POST(self):
        data = self.body()
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"POST {path}")
        here = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.hub.models
            self.hub.models.setdefault(name, [])
            return self.answer(409 if known else 200, {"url": f"{here}/{name}", "name": name})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            rows = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(data)["files"]
            ]
            return self.answer(200, {"files": rows})
        if path.endswith(".git/info/lfs/objects/batch"):
            rows = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{here}/blobs/{o['oid']}", "header": {}}},
                }
                for o in json.loads(data)["objects"]
            ]
            kind = {"Content_Type": "application/vnd.git-lfs+json"}
            return self.answer(200, {"transfer": "basic", "objects": rows}, **kind)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = {}
            for line in map(json.loads, data.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
            commit = self.hub.add(found[1], files)
            url = f"{here}/{found[1]}/commit/{commit}"
            return self.answer(200, {"commitUrl": url, "commitOid": commit})
        return self.missing("RepoNotFound")


@contextlib.contextmanager
def running():
    """(the hub, its address) of a server in a thread."""
    made = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.hub = Hub()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made.hub, f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()
