"""An HTTP server in OpenRLHF's remote-reward protocol, for other frameworks; loopback by default.

    python -m openrlhf_orz.reward.server --port 5000

``POST /get_reward`` with ``{"query": [...], "prompts": [...], "labels": [...]}``, where a query is
prompt and response, answers ``{"rewards": [...], "scores": [...], "extra_logs": {...}}``. Without
``prompts`` the queries are responses alone. ``GET /health`` answers ``{"status": "ok"}``.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openrlhf_orz.reward.reward_func import response_of
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import VERIFIERS, Verifier, make_verifier

MAX_BODY_BYTES = 256 << 20  # 8,192 responses of 32 KB


class RewardServer(ThreadingHTTPServer):
    """Serves one verifier. ``port`` 0 takes a free one; ``server_address`` tells which."""

    daemon_threads = True

    def __init__(self, verifier: Verifier, host: str = "127.0.0.1", port: int = 5000, threads: int = 64):
        super().__init__((host, port), _Handler)
        self.verifier = verifier
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="grade")

    def rewards(self, request: dict) -> dict:
        """The answer to one request's JSON.

        Raises:
            ValueError: the request does not fit the protocol; the message says how.
        """
        queries, labels = request.get("query"), request.get("labels")
        if not _strings(queries) or not _strings(labels) or len(labels) != len(queries):
            raise ValueError("query and labels must be lists of strings of one length")
        prompts = request.get("prompts") or [""] * len(queries)
        if not _strings(prompts) or len(prompts) != len(queries):
            raise ValueError("prompts must be a list of strings as long as query")
        responses = [response_of(query, prompt) if prompt else query for query, prompt in zip(queries, prompts)]
        grades = list(self.threads.map(self.verifier.grade, responses, labels))
        rewards = [grade.reward for grade in grades]
        logs = {f"verdict_{v.label}": [float(grade.verdict is v) for grade in grades] for v in Verdict}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def _strings(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(200 if self.path == "/health" else 404, {"status": "ok" if self.path == "/health" else "unknown"})

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            self._answer(413, {"error": "a Content-Length within bounds is needed"})
            return
        body = self.rfile.read(length)
        if self.path.rstrip("/") not in ("/get_reward", ""):
            self._answer(404, {"error": "POST /get_reward"})
            return
        try:
            request = json.loads(body)
            if not isinstance(request, dict):
                raise ValueError("the request must be a JSON object")
            self._answer(200, self.server.rewards(request))
        except (ValueError, RecursionError) as error:
            self._answer(400, {"error": str(error)})
        except RuntimeError as error:  # workers cannot start
            self._answer(503, {"error": str(error)})

    def _answer(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # one line per response would drown the trainer's log


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others can then spend your cores")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--verifier", default="math", choices=sorted(VERIFIERS))
    parser.add_argument("--workers", type=int, default=None, help="answers parsed at a time; default: usable cores")
    options = parser.parse_args(arguments)
    verifier = make_verifier(options.verifier, workers=options.workers)
    with RewardServer(verifier, options.host, options.port) as server:
        print(f"grading at http://{server.server_address[0]}:{server.server_address[1]}/get_reward", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            verifier.close()


if __name__ == "__main__":
    main()
