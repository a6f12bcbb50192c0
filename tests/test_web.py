"""The HTTP server: right answers, 4xx for whatever is wrong, never a 5xx, and pages that need no other site."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_dsl import SparseRecommender
from recbole_dsl.cli import main
from tests.test_artifact import write_some

uvicorn = pytest.importorskip("uvicorn")
web = pytest.importorskip("recbole_dsl.serving.web")

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Server:
    """A server on a free port of this machine."""

    def __init__(self, folder: Path, app: Any = None, **limits: int) -> None:
        self.recommender = SparseRecommender.load(folder)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        app = app or web.application(self.recommender, web.Limits(**limits))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listening.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and body, decoded where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.headers.get("content-type", "")
            return answer.status, json.loads(content) if kind.startswith(
                "application/json"
            ) else content.decode()
        finally:
            connection.close()

    def get(self, path: str, **values: Any) -> tuple[int, Any]:
        """Status and body of a GET."""
        return self.ask("GET", f"{path}?{urlencode(values)}")

    def post(self, values: Any) -> tuple[int, Any]:
        """Status and body of a POST to /recommend."""
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        return self.ask("POST", "/recommend", body, {"content-type": "application/json"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact."""
    path = tmp_path_factory.mktemp("artifacts") / "a"
    write_some(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """It is served."""
    with Server(folder, k=50, batch=5, candidates=6) as running:
        yield running


def told(items: list[str], scores: Any) -> list[dict[str, Any]]:
    return [{"item": item, "score": float(score)} for item, score in zip(items, scores, strict=True)]


def test_answers_are_the_recommender_s(server: Server) -> None:
    """One user, several, candidates, unknown ones, similar items."""
    r = server.recommender
    assert server.get("/recommend", user="u1", k=3) == (
        200,
        {"user": "u1", "items": told(*r.recommend("u1", 3))},
    )
    _, kept = server.get("/recommend", user="u1", exclude_seen="false")
    assert kept["items"] == told(*r.recommend("u1", 10, exclude_seen=False))
    status, several = server.post(
        {"users": ["u1", "nobody"], "k": 4, "unknown": "popular", "candidates": ["a", "b"]}
    )
    found = r.recommend(["u1", "nobody"], 4, candidates=["a", "b"], unknown="popular")
    expected = [
        {"user": user, "items": told(items, scores)}
        for user, items, scores in zip(["u1", "nobody"], *found, strict=True)
    ]
    assert (status, several["recommendations"]) == (200, expected)
    assert server.get("/similar", item="b", k=2) == (
        200,
        {"item": "b", "items": told(*r.similar_items("b", 2))},
    )
    status, health = server.get("/health")
    assert status == 200 and health["status"] == "ok" and (health["users"], health["items"]) == (6, 8)


@pytest.mark.parametrize(
    "status, path, values",
    [
        (404, "/recommend", {"user": "nobody"}),
        (404, "/similar", {"item": "nothing"}),
        (422, "/recommend", {}),
        (422, "/recommend", {"user": "u1", "k": 0}),
        (422, "/recommend", {"user": "u1", "k": 51}),
        (422, "/recommend", {"user": "u1", "k": "many"}),
        (422, "/recommend", {"user": "u" * 1001}),
        (422, "/recommend", {"user": "u1", "unknown": "guess"}),
        (422, "/similar", {"item": "a", "k": -1}),
        (400, "/recommend", {"user": "u1", "kk": 3}),
        (400, "/health", {"verbose": 1}),
        (400, "/recommend", [("user", "u1"), ("user", "u2")]),
        (404, "/nothing", {}),
        (404, "/../../etc/passwd", {}),
    ],
)
def test_wrong_requests(status: int, path: str, values: Any, server: Server) -> None:
    """Their status, and what was wrong."""
    found, body = server.ask("GET", f"{path}?{urlencode(values)}")
    assert found == status and isinstance(body["detail"], str) and body["detail"]


def test_values_that_are_not_valid_are_told_in_a_sentence(server: Server) -> None:
    """Where, of how many places, and what is allowed."""
    assert server.get("/recommend", user="u1", k=51) == (
        422,
        {"detail": "The request is refused at query.k: Input should be less than or equal to 50."},
    )
    status, body = server.post({"users": ["u1", 3, 4]})
    assert status == 422
    assert body["detail"] == "The request is refused at body.users.1 (1 more): Input should be a valid string."
    _, described = server.get("/openapi.json")
    schema = described["paths"]["/similar"]["get"]["responses"]["422"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Problem"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b'{"users": []}', b'{"users": "u1"}', b'{"users": [3]}', b"\xff\xfe",
        b'{"users": ["u1"], "k": 51}', b'{"users": ["u1"], "candidates": ["a", "a", "a", "a", "a", "a", "a"]}',
        b'{"users": ["u1", "u1", "u1", "u1", "u1", "u1"]}', b'{"users": ["u1"], "what": 1}',
        b'{"users": ["u1"], "k": 1e400}', b'{"users": ["u1"], "k": true}', b"[" * 10000,
    ],
)  # fmt: skip
def test_wrong_bodies(body: bytes, server: Server) -> None:
    """422, whatever they are."""
    status, found = server.post(body)
    assert status in (400, 422) and isinstance(found["detail"], str) and found["detail"]


def test_limits_hold_where_nothing_is_asked_for(folder: Path) -> None:
    """The default k is at most the largest one, on the page, too; an answer is bounded as a whole."""
    with Server(folder, k=3, items=8) as server:
        for path, values in (
            ("/recommend", {"user": "u1", "exclude_seen": False}),
            ("/similar", {"item": "b"}),
        ):
            status, body = server.get(path, **values)
            assert status == 200 and len(body["items"]) == 3
        status, page = server.get("/")
        assert page.count('name="k" value="3" min="1" max="3"') == 2
        users = {"users": ["u1", "u2", "u3"], "exclude_seen": False}
        assert server.post(users) == (
            400,
            {"detail": "3 users with k=3 are 9 items: allowed are at most 8 in one answer."},
        )
        status, body = server.post({**users, "candidates": ["a", "b", "b"]})
        assert status == 200 and [len(r["items"]) for r in body["recommendations"]] == [2, 2, 2]
        status, body = server.post({**users, "k": 2})
        assert status == 200 and [len(r["items"]) for r in body["recommendations"]] == [2, 2, 2]


def answered(ask: Callable[[], int]) -> int:
    """The status, from the first of ten times that the connection lasted until it came."""
    for _ in range(9):
        with contextlib.suppress(ConnectionError):
            return ask()
    return ask()


def test_large_bodies_are_not_read(server: Server) -> None:
    """Whether they say how large they are or not.

    The connection is closed on what is still being sent, which may lose the answer on its way: then it is
    asked again.
    """
    large = b'{"users": ["' + b"u" * (1 << 20) + b'"]}'

    def in_pieces() -> int:
        pieces = (large[start : start + 65536] for start in range(0, len(large), 65536))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(connection):
            header = {"content-type": "application/json"}
            connection.request("POST", "/recommend", pieces, header, encode_chunked=True)
            return connection.getresponse().status

    assert answered(lambda: server.post(large)[0]) == 413
    assert answered(in_pieces) == 413
    wrong = {"content-length": "-5"}
    assert answered(lambda: server.ask("POST", "/recommend", b"{}", wrong)[0]) in (400, 413)


def test_the_page_takes_what_it_asks_for_from_its_address(server: Server) -> None:
    """As the documentation says; other names are refused there, too."""
    for address in ({"user": "u1", "k": 5}, {"item": "b", "k": 5}):
        status, page = server.get("/", **address)
        assert status == 200 and page.startswith("<!doctype html>")
    assert server.get("/", users="u1")[0] == 400


def test_other_methods_and_hosts(server: Server) -> None:
    """A page on another site cannot ask by a name of its own."""
    assert server.ask("DELETE", "/recommend")[0] == 405
    assert server.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 400
    for host in (f"localhost:{server.port}", "127.0.0.1"):
        assert server.ask("GET", "/health", headers={"Host": host})[0] == 200


@relaxed
@given(st.data())
def test_no_request_breaks_it(server: Server, data: st.DataObject) -> None:
    """Any JSON, any query: an answer or a 4xx."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=5,
    )
    keys = st.sampled_from(["users", "k", "exclude_seen", "candidates", "unknown", "x"])
    status, _ = server.post(data.draw(st.dictionaries(keys, anything, max_size=5)))
    assert status in (200, 400, 404, 422)
    word = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    query = data.draw(st.dictionaries(st.sampled_from(["user", "item", "k", "exclude_seen"]), word))
    for path in ("/recommend", "/similar"):
        assert server.get(path, **query)[0] in (200, 400, 404, 422)


def test_load(server: Server) -> None:
    """Six hundred requests by twelve at once: all answered, all right."""
    users = list(server.recommender.users)
    expected = {user: told(*server.recommender.recommend(user, 5)) for user in users}

    def ask(number: int) -> bool:
        user = users[number % len(users)]
        return server.get("/recommend", user=user, k=5) == (200, {"user": user, "items": expected[user]})

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(600)))


def test_names_in_a_manifest_are_text_on_the_page_of_requests(folder: Path) -> None:
    """Whoever has made the artifact may have chosen them."""
    recommender = SparseRecommender.load(folder)
    name = "</title><script>alert(1)</script>"
    recommender.manifest = replace(recommender.manifest, dataset=name)
    with Server(folder, web.application(recommender)) as running:
        status, page = running.get("/docs")
    assert status == 200 and "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("host, foreign", [("127.0.0.2", 400), ("localhost", 400), ("0.0.0.0", 200)])
def test_other_names_are_answered_beyond_this_machine_only(
    host: str, foreign: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However its own address is written."""
    try:
        socket.create_server((host, 0)).close()
    except OSError:
        pytest.skip("this machine has no such address")
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(uvicorn.Server, "run", lambda self, sockets: found.append((self.config.app, sockets[0])))
        assert main(["serve", str(folder), "--port=0", f"--host={host}"]) == 0
    ((app, listening),) = found
    address = listening.getsockname()[0]
    address = f"[{address}]" if ":" in address else address
    listening.close()
    assert f"on http://{address}:" in capsys.readouterr().out
    with Server(folder, app) as running:
        for name, status in ((address, 200), ("localhost", 200), ("evil.example", foreign)):
            assert running.ask("GET", "/health", headers={"Host": name})[0] == status


def test_pages_need_no_other_site(server: Server) -> None:
    """Neither the page to try it nor the OpenAPI page, whose files are served here."""
    for path in ("/", "/docs"):
        status, page = server.get(path)
        assert status == 200 and not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    for file in re.findall(r"[\"'](/[\w./-]+\.(?:js|css))[\"']", page):
        assert server.get(file)[0] == 200
    assert re.search(r"swagger-ui-bundle\.js", page)
    _, schema = server.get("/openapi.json")
    assert set(schema["paths"]) == {"/health", "/recommend", "/similar"}
    assert schema["components"]["schemas"]["Ask"]["properties"]["k"]["maximum"] == 50


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_the_page_in_a_browser(server: Server, tmp_path: Path) -> None:
    """It asks and shows what it was told; markup in a token is text."""

    def page(query: str) -> str:
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000", "--dump-dom",
        ]  # fmt: skip
        command = ["chromium", *flags, f"http://localhost:{server.port}/?{query}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    items, _ = server.recommender.recommend("u1", 3)
    shown = re.findall(r"<td>\d</td><td>(\w)</td>", page("user=u1&k=3"))
    assert shown == items
    wrong = page("user=%3Cimg+src%3Dx%3E")
    assert "&lt;img src=x&gt;" in wrong and "is not in the data" in wrong and "<img" not in wrong


def test_the_command(folder: Path, tmp_path: Path) -> None:
    """Says where it listens, on this machine only, answers, and ends when told to."""
    code = "import sys; from recbole_dsl.cli import main; sys.exit(main(sys.argv[1:]))"
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(folder), "--port=0", "--max-k=3"],
        stdout=subprocess.PIPE, text=True, cwd=root,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.fullmatch(r"BPR on http://127\.0\.0\.1:(\d+)/\n", line)[1])  # type: ignore[index]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(100):
            try:
                connection.request("GET", "/recommend?user=u1&k=4")
                break
            except OSError:
                time.sleep(0.1)
        assert connection.getresponse().status == 422
        slow = socket.create_connection(("127.0.0.1", port))  # it never sends the rest, and holds up no end
        slow.sendall(b"POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        with pytest.raises(OSError):
            socket.create_connection((socket.gethostbyname(socket.gethostname()), port), timeout=2).close()
            if socket.gethostbyname(socket.gethostname()).startswith("127."):
                raise OSError  # this machine has no other address to try
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_port_that_is_taken(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence."""
    assert main(["serve", str(folder), f"--port={server.port}"]) == 2
    assert "cannot be listened at" in capsys.readouterr().err
