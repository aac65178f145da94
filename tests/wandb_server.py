"""A Weights & Biases server on loopback, for tests: real HTTP, what wandb 0.31 asks, and moods of a real network.

It holds runs as the service does: history by line of the uploaded stream, so that a line that is sent again replaces
itself and one that is sent to a taken place with other content is seen (`Run.overwritten`).

    with WandbServer() as server:
        … wandb with server.environment() …
        server.stall(); server.die(); server.come_back()
"""

import gzip
import json
import re
import socket
import threading
from base64 import b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
_HISTORY, _EVENTS, _SUMMARY, _OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"
_ENTITY = "loopback"


def _id(name: str) -> str:
    """Return an opaque id, as the service gives them."""
    return b64encode(name.encode()).decode()


@dataclass(kw_only=True)
class Run:
    """One run as the server holds it."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """wandb's form: key -> {"value": …}."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    """Stream (history, events, summary, output) -> line number -> text."""
    overwritten: list[tuple[int, str, str]] = field(default_factory=list)
    """History lines that were sent again with another content: number, old, new."""
    alerts: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their lines."""
        rows = self.lines.get(_HISTORY, {})
        return [json.loads(rows[number]) for number in sorted(rows)]

    def events(self) -> list[dict[str, Any]]:
        """Samples of the system."""
        rows = self.lines.get(_EVENTS, {})
        return [json.loads(rows[number]) for number in sorted(rows)]

    def summary(self) -> dict[str, Any]:
        """The last value of everything."""
        rows = self.lines.get(_SUMMARY, {})
        return json.loads(rows[max(rows)]) if rows else {}

    def values(self) -> dict[str, Any]:
        """The config as it was given to wandb."""
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}


class WandbServer:
    """Answers until it is told otherwise; keeps what it has over `die` and `come_back`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        """Name -> run."""
        self.starts: list[str] = []
        """Name of the run of each `wandb.init`: each asks first whether it goes on with one."""
        self.artifacts: dict[str, dict[str, Any]] = {}
        """Id -> what CreateArtifact asked for, and `manifest`, `committed`."""
        self.views: dict[str, dict[str, Any]] = {}
        """Id -> saved view of a project."""
        self.unknown: list[str] = []
        """Operations that nobody here knows: a test's first suspect when wandb behaves oddly."""
        self._answers = threading.Event()
        self._answers.set()
        self.lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.come_back()

    @property
    def address(self) -> str:
        """What WANDB_BASE_URL is."""
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to use this server."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}

    def stall(self) -> None:
        """From now on take every request and answer none."""
        self._answers.clear()

    def answer(self) -> None:
        """Answer again, those that wait too."""
        self._answers.set()

    def die(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._answers.clear()
        server.shutdown()
        server.server_close()
        with self.lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client closed it
            self._connections.clear()

    def come_back(self) -> None:
        """Listen again on the same port."""
        assert self._server is None
        owner = self

        class Handler(_Handler):
            wandb = owner

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self._answers.set()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def only_run(self) -> Run:
        """Return the one run that there is."""
        (run,) = self.runs.values()
        return run

    def only_view(self) -> dict[str, Any]:
        """Return the one saved view that there is."""
        (view,) = self.views.values()
        return view

    # -- for the handler --------------------------------------------------------------------------------------------

    def may_answer(self, connection: socket.socket) -> bool:
        """Wait while stalled; return whether the connection still lives."""
        while not self._answers.wait(0.05):
            with self.lock:
                if connection not in self._connections:
                    return False
        return self._server is not None

    def opened(self, connection: socket.socket) -> None:
        """Note a connection, to cut it in `die`."""
        with self.lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self.lock:
            self._connections.discard(connection)

    def run(self, project: str, name: str) -> Run:
        """Return a run, which is made if need be."""
        return self.runs.setdefault(name, Run(entity=_ENTITY, project=project, name=name))

    def stream(self, project: str, name: str, body: dict[str, Any]) -> None:
        """Take lines of a run's streams."""
        run = self.run(project, name)
        for stream, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(stream, {})
            for number, text in enumerate(chunk["content"], start=chunk["offset"]):
                if stream == _HISTORY and lines.get(number, text) != text:
                    run.overwritten.append((number, lines[number], text))
                lines[number] = text
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of an operation, None if nobody knows it."""
        match operation:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Viewer":
                return {
                    "viewer": {
                        "id": "viewer",
                        "entity": _ENTITY,
                        "username": _ENTITY,
                        "email": "nobody@localhost",
                        "flags": "{}",
                        "teams": {"edges": [{"node": {"name": _ENTITY}}]},
                    }
                }
            case "UpsertBucket":
                return self._upsert(variables)
            case "RunResumeStatus":
                return self._resume_status(variables)
            case "CreateRunFiles":
                project, run = variables["project"], variables["run"]
                urls = [
                    {"name": name, "uploadUrl": f"{self.address}/put/{_quoted(project)}/{_quoted(run)}/{_quoted(name)}"}
                    for name in variables["files"]
                ]
                return {"createRunFiles": {"runID": _id(run), "uploadHeaders": [], "files": urls}}
            case "NotifyScriptableRunAlert":
                alert = {key: variables[key] for key in ("title", "text", "severity")}
                self.runs[variables["runName"]].alerts.append(alert)
                return {"notifyScriptableRunAlert": {"success": True}}
            case "UpsertView2":
                number = variables.get("id") or _id(variables["name"])
                is_new = number not in self.views
                self.views[number] = {key: value for key, value in variables.items() if key != "id"}
                return {"upsertView": {"view": {"id": number, "name": variables["name"]}, "inserted": is_new}}
            case "View":
                nodes = [
                    {"id": number, "displayName": view["displayName"], "spec": view["spec"]}
                    for number, view in self.views.items()
                    if view["name"] == variables["viewName"]
                ]
                return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}
        return self._artifact(operation, variables)

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"]
        inserted = name not in self.runs
        run = self.run(asked["project"], name)
        run.display_name = asked.get("displayName") or run.display_name
        run.group = asked.get("groupName") or run.group
        run.tags = asked.get("tags") or run.tags
        if asked.get("config"):
            run.config = json.loads(asked["config"])
        bucket = {
            "id": _id(name),
            "name": name,
            "displayName": run.display_name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": run.project, "name": run.project, "entity": {"id": run.entity, "name": run.entity}},
            "historyLineCount": len(run.lines.get(_HISTORY, {})),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.starts.append(asked["name"])
        run, bucket = self.runs.get(asked["name"]), None
        if run is not None:
            history, events = run.lines.get(_HISTORY, {}), run.lines.get(_EVENTS, {})
            bucket = {
                "id": _id(run.name),
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary()),
                "displayName": run.display_name,
                "logLineCount": len(run.lines.get(_OUTPUT, {})),
                "historyLineCount": len(history),
                "eventsLineCount": len(events),
                "historyTail": json.dumps([history[max(history)]] if history else []),
                "eventsTail": json.dumps([events[max(events)]] if events else []),
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": "",
                "wandbConfig": json.dumps({"t": run.config.get("_wandb", {}).get("value", {}).get("t", {})}),
            }
        return {"model": {"name": asked["project"], "entity": {"id": _ENTITY, "name": _ENTITY}, "bucket": bucket}}

    def _artifact(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        asked = variables.get("input", variables)
        match operation:
            case "CreateArtifact":
                number = _id(f"artifact-{len(self.artifacts)}")
                self.artifacts[number] = {**asked, "committed": False}
                artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"__typename": "CreateArtifactPayload", "artifact": artifact}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                number = asked.get("artifactID") or asked["artifactManifestID"]
                upload = {"uploadUrl": f"{self.address}/manifest/{_quoted(number)}", "uploadHeaders": []}
                manifest = {"id": number, "file": {"id": number, **upload}}
                name = operation[0].lower() + operation[1:]
                return {name: {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "storagePath": f"{one['artifactID']}/{one['name']}",
                        "uploadUrl": f"{self.address}/artifact/{_quoted(one['artifactID'])}/{_quoted(one['name'])}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": one["artifactID"]},
                    }
                    for one in asked["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                self.artifacts[asked["artifactID"]]["committed"] = True
                return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "digest"}}}
            case "UpdateArtifact":
                return {"updateArtifact": {"artifact": {"id": asked["artifactID"]}}}
            case "ArtifactType":  # is asked for what is about to be made
                return {"project": {"artifact": None}}
            case "ClientIDMapping":
                found = [key for key, one in self.artifacts.items() if one.get("clientID") == asked["clientID"]]
                return {"clientIDMapping": {"serverID": found[0]} if found else None}
        return None


def _quoted(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.wandb.opened(self.request)
        super().setup()

    def finish(self) -> None:
        self.wandb.closed(self.request)
        try:
            super().finish()
        except OSError:
            return  # the client went away

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if not self.wandb.may_answer(self.request):
            self.close_connection = True
            return
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            operation = asked.get("operationName") or (_OPERATION.findall(asked["query"]) or ["?"])[0]
            with self.wandb.lock:
                data = self.wandb.graphql(operation, asked.get("variables") or {})
            if data is None:
                self.wandb.unknown.append(operation)
                self._answer({"errors": [{"message": f"{operation} is not known here"}]})
            else:
                self._answer({"data": data})
        elif stream := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path):
            project, name = map(unquote, stream.groups())
            with self.wandb.lock:
                self.wandb.stream(project, name, json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})  # telemetry

    def do_PUT(self) -> None:
        body = self._body()
        if not self.wandb.may_answer(self.request):
            self.close_connection = True
            return
        kind, *names = [unquote(part) for part in self.path.lstrip("/").split("/")]
        with self.wandb.lock:
            match kind, names:
                case "put", [project, run, name]:
                    self.wandb.run(project, run).files[name] = body
                case "manifest", [number]:
                    self.wandb.artifacts[number]["manifest"] = json.loads(body)
                case "artifact", [number, name]:
                    self.wandb.artifacts[number].setdefault("files", {})[name] = body
        self._answer({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Say nothing."""
