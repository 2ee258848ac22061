"""The part of a Hugging Face Hub that runs jobs, on the loopback interface: buckets, uploads to them, jobs and their stages.

    with FakeJobs(stages={2: "ERROR"}) as hub:
        run(SUBMIT, ..., **hub.environment)
        hub.jobs        # the request bodies of the jobs, in order

It takes what huggingface_hub sends and keeps it; nothing is executed. A job is RUNNING when first looked at, then has its
final stage. `faults` maps a path's beginning to status codes to answer first, one a request.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeJobs:
    """`stages`: the final stage of the n-th job, where it is not COMPLETED."""

    def __init__(self, stages: dict[int, str] | None = None, token: str = "hf_right") -> None:
        self.stages, self.token = stages or {}, token
        self.jobs: list[dict] = []
        self.uploads: list[dict] = []
        self.looks: dict[int, int] = {}
        self.faults: dict[str, list[int]] = {}
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.environment = {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1,localhost"}

    def __enter__(self) -> "FakeJobs":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def job(self, number: int, stage: str) -> dict:
        spec = self.jobs[number]
        return {
            "id": f"job{number}",
            "owner": {"id": "1", "name": "me", "type": "user"},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "status": {"stage": stage, "message": None},
            **{key: spec[key] for key in ("dockerImage", "command", "arguments", "environment", "flavor")},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeJobs

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is not a server log."""

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.body())

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, body: bytes) -> None:
        status, reply = self.reply(body)
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def reply(self, body: bytes) -> tuple[int, object]:
        hub, path = self.hub, self.path.partition("?")[0]
        for start, codes in hub.faults.items():
            if path.startswith(start) and codes:
                return codes.pop(0), {"error": "ordered fault"}
        parts = path.strip("/").split("/")
        if parts[0] == "cas":  # the content store: chunks, xorbs and shards of the upload
            if parts[1:3] == ["v2", "shards"]:
                return 200, {"type": "result", "result": 1}
            return {"chunks": (404, {}), "xorbs": (200, {"was_inserted": True})}.get(parts[2], (404, {}))
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "auth": {}}
        if path.startswith("/api/buckets/") and path.endswith("/xet-write-token"):
            return 200, {"accessToken": "cas", "exp": int(time.time()) + 3600, "casUrl": f"{hub.url}/cas"}
        if path.startswith("/api/buckets/") and path.endswith("/batch"):
            hub.uploads += [json.loads(line) for line in body.splitlines()]
            return 200, {"failed": []}
        if path.startswith("/api/buckets/"):
            return 200, {"url": f"{hub.url}/buckets/{'/'.join(parts[2:])}"}
        if path == "/api/jobs/me" and self.command == "POST":
            hub.jobs.append(json.loads(body))
            return 200, hub.job(len(hub.jobs) - 1, "SCHEDULING")
        if path.startswith("/api/jobs/me/job"):
            number = int(path.removeprefix("/api/jobs/me/job"))
            hub.looks[number] = hub.looks.get(number, 0) + 1
            final = hub.stages.get(number, "COMPLETED")
            return 200, hub.job(number, "RUNNING" if hub.looks[number] == 1 else final)
        return 404, {"error": f"no such path {path}"}
