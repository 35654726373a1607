"""A hub on the loopback: the few calls of the real protocol that an upload of small files makes."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_this_test"


class Hub(ThreadingHTTPServer):
    """Keeps what was sent: `repositories` by name, `files` by path, `requests` in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.files, self.requests = {}, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(body)

    def answer(self, body):
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(path)
        if path == "/api/validate-yaml":  # open to everybody
            return self.reply(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self.reply(200, {"name": "somebody", "type": "user", "orgs": [{"name": "a-lab"}]})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            hub.repositories[name] = asked
            return self.reply(200, {"url": f"{hub.url}/{name}", "name": name})
        if "/preupload/" in path:
            asked = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.reply(200, {"files": [file | {"shouldIgnore": False} for file in asked]})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid, repository = "0" * 40, path.removeprefix("/api/models/").split("/commit/")[0]
            commit_url = f"{hub.url}/{repository}/commit/{oid}"
            return self.reply(200, {"commitUrl": commit_url, "commitOid": oid, "success": True})
        if path.startswith("/api/models/"):
            return self.reply(200, {"id": path.removeprefix("/api/models/"), "siblings": [], "sha": "0" * 40})
        return self.reply(404, {"error": "not found"})

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def hub_server():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
