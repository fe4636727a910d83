"""A Hub on loopback: serves a folder of repositories over the part of the Hub's API that the clients use.

Repositories are plain folders, `ROOT/{models,datasets}/USER/NAME/BRANCH/...`, which tests write and read; a commit's
id is a hash of what lies in the branch, so an older commit is gone. Large files travel by Git LFS, not by Xet: clients
need HF_HUB_DISABLE_XET=1. This shows that the client's path works, not that the Hub does.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
# Put before a program: a process in which this library is not installed.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "music2vec_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocker())
"""
LARGE = (".safetensors", ".bin", ".parquet", ".flac", ".wav", ".tar")


class HubError(Exception):
    """An answer other than success: status, `X-Error-Code` and `X-Error-Message`."""


class HubServer(ThreadingHTTPServer):
    """`with HubServer(root) as hub:` serves until the block ends.

    Attributes:
        private (`set[str]`): repositories that only the bearer of `TOKEN` sees.
        requests (`list[str]`): what was asked so far, as "GET /someone/model/resolve/main/config.json".
        broken (`list[tuple[str, str]]`): patterns of requests, each with what happens to the next one that it fits:
            "drop" closes the connection without an answer, "truncate" after half of the answer's body.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.private, self.requests, self.blobs, self.broken = root, set(), [], {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a client process needs, with a home of its own so that nothing is cached."""
        values = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        return {**values, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self):
        self.server.requests.append(f"{self.command} {unquote(self.path)}")
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        self.how = self.breaks()
        if self.how == "drop":
            self.close_connection = True
            return None
        path = urlsplit(self.path).path
        try:
            self.check_token()
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                    answer = action(self, **groups)
                    return answer is None or self.answer(200, json.dumps(answer).encode())
            raise HubError(404, "", f"No route for {self.command} {path}")
        except HubError as error:
            status, code, message = error.args
            headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
            self.answer(status, json.dumps({"error": message}).encode(), headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def breaks(self) -> str | None:
        for entry in self.server.broken:
            if re.search(entry[0], self.server.requests[-1]):
                self.server.broken.remove(entry)
                return entry[1]
        return None

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": len(body)}
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.how == "truncate" else body)
        self.close_connection |= self.how == "truncate"

    def log_message(self, *args):
        pass

    def check_token(self, needed: bool = False) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        if needed and given is None:
            raise HubError(401, "", "Invalid username or password.")
        return given is not None

    def branch(self, kind: str, id: str, revision: str = "main") -> Path:
        """The folder of a branch; a stranger cannot tell a private repository from a missing one."""
        known = self.check_token()
        folder = self.server.root / (kind or "models").rstrip("/") / id
        if not folder.is_dir() or (id in self.server.private and not known):
            # The Hub's 401 has no code; but then the client takes it for a missing repository over https only.
            raise HubError(404 if known else 401, "RepoNotFound", "Repository not found")
        for branch in folder.iterdir():
            if revision in (branch.name, commit_of(branch)):
                return branch
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def info(self, kind, id, revision):
        branch = self.branch(kind, id, revision or "main")
        files = [{"rfilename": entry["path"]} for entry in entries(branch) if entry["type"] == "file"]
        return {
            "id": id,
            "sha": commit_of(branch),
            "private": id in self.server.private,
            "tags": [],
            "siblings": files,
        }

    def tree(self, kind, id, revision, path):
        branch = self.branch(kind, id, revision)
        below = f"{path}/" if path else ""
        found = [entry for entry in entries(branch) if entry["path"].startswith(below)]
        if path and not found:
            raise HubError(404, "EntryNotFound", f"{path} does not exist")
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
            found = [entry for entry in found if "/" not in entry["path"][len(below) :]]
        return found

    def resolve(self, kind, id, revision, path):
        branch = self.branch(kind, id, revision)
        if not (branch / path).is_file():
            raise HubError(404, "EntryNotFound", "Entry not found")
        data = (branch / path).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit_of(branch)}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part:
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self.answer(206 if part else 200, data, {**headers, "Content-Type": "application/octet-stream"})

    def create(self):
        self.check_token(needed=True)
        wanted = json.loads(self.body)
        user = wanted.get("organization") or "someone"
        id = f"{user}/{wanted['name']}"
        if user not in ("someone", "user"):  # the second in the commands of the pages
            raise HubError(403, "", f"You don't have the rights to create a model under the namespace {user}")
        folder = self.server.root / f"{wanted.get('type') or 'model'}s" / id
        address = {"url": f"{self.server.url}/{id}", "name": id}
        if folder.exists():
            return self.answer(409, json.dumps({"error": "You already created this repository", **address}).encode())
        (folder / "main").mkdir(parents=True)
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(id)
        return address

    def create_branch(self, kind, id, revision):
        self.check_token(needed=True)
        main = self.branch(kind, id)
        if main.with_name(revision).exists():
            raise HubError(409, "", "Reference already exists")
        shutil.copytree(main, main.with_name(revision))
        return {}

    def preupload(self, kind, id, revision):
        self.check_token(needed=True)
        self.branch(kind, id, revision)
        modes = {True: "lfs", False: "regular"}
        names = [file["path"] for file in json.loads(self.body)["files"]]
        return {"files": [{"path": n, "uploadMode": modes[n.endswith(LARGE)], "shouldIgnore": False} for n in names]}

    def lfs_batch(self, kind, id):
        self.check_token(needed=True)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "", "The content does not have the SHA-256 of its name")
        self.server.blobs[oid] = self.body
        return {}

    def commit(self, kind, id, revision):
        self.check_token(needed=True)
        branch = self.branch(kind, id, revision)
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key in ("file", "lfsFile"):
                path = branch / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    base64.b64decode(value["content"]) if key == "file" else self.server.blobs[value["oid"]]
                )
            elif key == "deletedFile":
                (branch / value["path"]).unlink()
        commit = commit_of(branch)
        return {"commitUrl": f"{self.server.url}/{id}/commit/{commit}", "commitOid": commit}

    def validate_card(self):
        return {"errors": [], "warnings": []}


def entries(branch: Path) -> list[dict]:
    """What the tree of a branch lists: files and folders, in the order of their paths."""
    rows = []
    for path in sorted(branch.rglob("*")):
        row = {"path": path.relative_to(branch).as_posix(), "type": "directory", "size": 0, "oid": "0" * 40}
        if path.is_file():
            data = path.read_bytes()
            row |= {"type": "file", "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        rows.append(row)
    return rows


def commit_of(branch: Path) -> str:
    """Forty hexadecimal digits that change with any file of the branch."""
    return hashlib.sha1(json.dumps([branch.name, entries(branch)]).encode()).hexdigest()


API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("GET", rf"{API}(/revision/(?P<revision>[^/]+))?", Handler.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", Handler.tree),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"{API}/branch/(?P<revision>[^/]+)", Handler.create_branch),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("POST", r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.lfs_put),
    (
        "GET|HEAD",
        r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler.resolve,
    ),
]
