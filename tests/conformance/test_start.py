"""The program starts anywhere, says what it serves, refuses what nobody could want, and ends in order."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultUpstream
from tests.money.workers import workers_of
from tests.support import Reply, Served, ask, events_of, gateway_command, key_policy, serve, spawn, write_policies

SHIPPED = Path(__file__).parents[2] / "policies"
SCRIPT = Path(sys.executable).with_name("gateway")
BACKEND = {"up": {"base_url": "http://127.0.0.1:9/v1"}}


def run(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the gateway that is expected to end by itself."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        gateway_command(*arguments),
        cwd=folder,
        env={**kept, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def started(folder: Path, *arguments: str) -> Served:
    """A gateway that serves; the caller stops it."""
    served = spawn("serve", "--port", "0", *arguments, folder=folder)
    served.until_ready()
    return served


def test_the_shipped_policies_start_in_an_empty_environment(tmp_path: Path) -> None:
    """One line names the address and every backend that is off, with the variable that would switch it on."""
    served = started(tmp_path, "--policies", str(SHIPPED))
    first = served.output.splitlines()[0]
    ready = served.request("GET", "/readyz").json["backends"]
    assert served.stop() == 0
    assert f"http://127.0.0.1:{served.port}/v1" in first
    assert str(SHIPPED) in first
    off = [name for name, state in ready.items() if not state["usable"]]
    assert set(off) >= {"openai", "anthropic", "gemini", "openrouter", "zai"}
    for name in off:
        assert re.search(rf"\b{name} \([^)]*{name.upper()}_API_KEY", first), first
    assert served.errors == ""


def test_a_variable_switches_its_backend_on(tmp_path: Path) -> None:
    """And its value is printed nowhere."""
    served = spawn(
        *("serve", "--port", "0", "--policies", str(SHIPPED)), folder=tmp_path, env={"OPENAI_API_KEY": "sk-secret-1"}
    )
    served.until_ready()
    ready = served.request("GET", "/readyz")
    models = served.request("GET", "/v1/models")
    metrics = served.request("GET", "/metrics")
    assert served.stop() == 0
    assert ready.json["backends"]["openai"] == {"usable": True}
    assert "openai (" not in served.output.splitlines()[0]
    for said in (served.output, served.errors, ready.body.decode(), models.body.decode(), metrics.body.decode()):
        assert "sk-secret-1" not in said


def test_without_a_directory_the_shipped_policies_are_served(tmp_path: Path) -> None:
    """`./policies` is looked for first, and there is none here; the console script is the same program."""
    process = subprocess.Popen(
        ["env", "-i", f"PATH={os.environ['PATH']}", str(SCRIPT), "serve", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    served = Served(process)
    served.until_ready()
    assert "gpt-mini" in {model["id"] for model in served.request("GET", "/v1/models").json["data"]}
    assert served.stop() == 0


def test_a_gateway_without_a_usable_backend_serves_and_says_so(tmp_path: Path) -> None:
    """It starts, is alive and not ready, and a request is told which variable is missing."""
    backends = {"off": {"base_url": "http://127.0.0.1:9/v1", "api_keys": ["${NOT_SET?}"]}}
    models = {"m": {"backend": "off", "model": "x"}}
    with serve(tmp_path, {"server": {"auth": "none"}, "backends": backends, "models": models}) as served:
        ready = served.request("GET", "/readyz")
        reply = served.chat(ask("m"))
    assert (ready.status, ready.json["backends"]["off"]["usable"]) == (503, False)
    assert (reply.status, reply.error["code"]) == (503, "no_backend_available")
    assert "NOT_SET" in reply.error["message"]
    assert "NOT_SET" in served.output.splitlines()[0]


def test_policies_of_the_working_directory_come_first(tmp_path: Path) -> None:
    """`--policies` defaults to `./policies`."""
    write_policies(tmp_path, {"server": {"auth": "none"}, "backends": BACKEND, "aliases": {}})
    served = started(tmp_path)
    assert served.stop() == 0
    assert "1 of 1 backends" in served.output


def test_flags_have_variables_of_the_same_name(tmp_path: Path) -> None:
    """GATEWAY_POLICIES and GATEWAY_PORT."""
    directory = write_policies(tmp_path, {"server": {"auth": "none"}, "backends": BACKEND})
    (tmp_path / "elsewhere").mkdir()
    env = {"GATEWAY_POLICIES": str(directory), "GATEWAY_PORT": "0"}
    served = spawn("serve", folder=tmp_path / "elsewhere", env=env)
    served.until_ready()
    assert served.stop() == 0


OPEN = {"server": {"auth": "none"}, "backends": BACKEND}
REFUSALS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "open to the world": (OPEN, ("--host", "0.0.0.0"), ("auth", "none", "0.0.0.0", "keys", "127.0.0.1")),
    "open to the world by IPv6": (OPEN, ("--host", "::"), ("auth", "none", "::", "keys")),
    "open by a name": (OPEN, ("--host", "gateway.internal"), ("auth", "none", "gateway.internal")),
    "keys without a key": ({"backends": BACKEND}, (), ("keys", "hash: sha256", "auth: none")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_nobody_could_want_is_refused(tmp_path: Path, name: str) -> None:
    """Exit 2, nothing served, and on stderr why and what to write instead."""
    policies, arguments, says = REFUSALS[name]
    ended = run(tmp_path, "serve", "--port", "0", "--policies", str(write_policies(tmp_path, policies)), *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    for words in says:
        assert words in ended.stderr


def test_keys_may_be_served_to_the_world(tmp_path: Path) -> None:
    """With keys any address will do."""
    policies = {"backends": BACKEND, "keys": {"a": key_policy("sk-a")}}
    process = spawn(
        *("serve", "--host", "0.0.0.0", "--port", "0", "--policies", str(write_policies(tmp_path, policies))),
        folder=tmp_path,
    )
    process.until("gateway serves http://0.0.0.0:")
    assert process.stop() == 0


@pytest.mark.parametrize("command", ["serve", "check"])
def test_broken_policies_end_with_2_and_every_error_at_its_place(tmp_path: Path, command: str) -> None:
    """file:line:column, what is wrong, what to write."""
    directory = tmp_path / "policies"
    directory.mkdir()
    text = "version: 1\nbackends:\n  up: {base_url: nonsense}\n  two: {base_url: http://a/v1, slot: 3}\n"
    (directory / "a.yaml").write_text(text)
    ended = run(tmp_path, command, *(("--port", "0") if command == "serve" else ()), "--policies", str(directory))
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [re.search(r"a\.yaml:(\d+):\d+: .+; .+", line)[1] for line in lines] == ["3", "4"]  # type: ignore[index]
    assert "slots" in lines[1]


def test_an_unknown_variable_ends_with_2_and_the_near_one(tmp_path: Path) -> None:
    """A setting that nobody reads is a mistake, whatever the command."""
    for command in (("serve", "--port", "0"), ("check",)):
        ended = run(tmp_path, *command, env={"GATEWAY_POLICES": "x", "GATEWAY_FOO": "1"})
        assert ended.returncode == 2
        assert "GATEWAY_FOO" in ended.stderr
        assert "did you mean GATEWAY_POLICIES?" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_directory_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    """With its name."""
    ended = run(tmp_path, "serve", "--port", "0", "--policies", str(tmp_path / "nothing"))
    assert ended.returncode == 2
    assert "nothing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_ends_with_2_and_says_so(tmp_path: Path) -> None:
    """Not a traceback, and not another port."""
    directory = str(write_policies(tmp_path, OPEN))
    first = started(tmp_path, "--policies", directory)
    ended = run(tmp_path, "serve", "--policies", directory, "--port", str(first.port))
    assert first.stop() == 0
    assert ended.returncode == 2
    assert str(first.port) in ended.stderr
    assert "--port" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`gateway serve --demo`, in an empty folder and environment."""
    served = spawn("serve", "--demo", "--port", "0", folder=tmp_path_factory.mktemp("demo"))
    served.until_ready()
    yield served
    assert served.stop() == 0
    assert served.errors == ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_the_printed_curl_line_works_as_pasted(demo: Served, tmp_path: Path) -> None:
    """It is run by bash, as it stands, and answers."""
    line = next(line for line in demo.output.splitlines() if line.startswith("curl "))
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["choices"][0]["message"]["content"]


def test_the_printed_example_works_as_pasted(demo: Served, tmp_path: Path) -> None:
    """Three lines of Python with the OpenAI SDK print an answer."""
    lines = demo.output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("from openai import OpenAI"))
    example = lines[start : start + 3]
    assert lines[start + 3 : start + 4] in ([], [""]) or lines[start + 3].startswith("{")
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(example)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_the_demo_falls_back_from_its_flaky_backend(demo: Served) -> None:
    """Of some requests each is answered, streamed or not, and both backends have answered some."""
    seen: set[str] = set()
    for number in range(200):
        stream = number % 4 == 0
        reply = demo.chat(ask("fast", f"number {number}", stream=stream, max_tokens=4), key="demo-key")
        assert reply.status == 200, reply.body
        assert not stream or events_of(reply.body)[-1] == "[DONE]"
        seen.add(reply.headers["x-gateway-backend"])
        if number > 12 and len(seen) == 2:
            return
    pytest.fail(f"only {seen} answered")


def test_sigterm_and_sigint_end_with_0(tmp_path: Path) -> None:
    """At once when nothing runs."""
    directory = str(write_policies(tmp_path, OPEN))
    for number in (signal.SIGTERM, signal.SIGINT):
        served = started(tmp_path, "--policies", directory)
        with served.connect():  # an idle connection holds nobody up
            served.end(number)
            assert served.wait() == 0
        assert "Traceback" not in served.errors


def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    """A stream and a plain answer come whole; whoever comes meanwhile gets 503 `draining` or no connection."""
    with FaultUpstream.in_thread("ok:gap=0.05,tokens=30") as upstream:
        policies = {**OPEN, "backends": {"up": {"base_url": upstream.url, "passthrough": ["m"]}}}
        with serve(tmp_path, policies) as served, served.connect() as late:
            replies: dict[bool, Reply] = {}

            def request(stream: bool) -> None:
                fields = {"stream": True} if stream else {"fault": "ok:delay=1"}
                replies[stream] = served.chat(ask("m", **fields))

            threads = [threading.Thread(target=request, args=(stream,)) for stream in (True, False)]
            for thread in threads:
                thread.start()
            upstream.wait(lambda: upstream.running == 2 and upstream.produced() > 0)
            served.end()
            refused = _ask_until_refused(late)
            for thread in threads:
                thread.join(30)
            assert served.wait() == 0
    assert refused is None or (refused.status, refused.error["code"]) == (503, "draining")
    assert events_of(replies[True].body)[-1] == "[DONE]"
    assert sum("content" in event["choices"][0]["delta"] for event in events_of(replies[True].body)[:-1]) == 31
    assert replies[False].json["choices"][0]["finish_reason"] == "stop"


def test_sigterm_waits_no_longer_than_drain(tmp_path: Path) -> None:
    """`server.drain` is the bound; what still runs then is cut, and the exit status is 0 all the same."""
    with FaultUpstream.in_thread("silence") as upstream:
        policies = {
            "server": {"auth": "none", "drain": "300ms"},
            "backends": {"up": {"base_url": upstream.url, "passthrough": ["m"]}},
        }
        with serve(tmp_path, policies) as served, served.connect() as connection:
            body = json.dumps(ask("m")).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            upstream.wait(lambda: upstream.running == 1)
            assert served.stop() == 0
            upstream.wait(lambda: upstream.log[0].closed_at is not None)


def test_readyz_says_that_it_drains(tmp_path: Path) -> None:
    """503 while running requests finish, so that a load balancer sends nothing more."""
    with FaultUpstream.in_thread("ok:delay=1") as upstream:
        policies = {**OPEN, "backends": {"up": {"base_url": upstream.url, "passthrough": ["m"]}}}
        with serve(tmp_path, policies) as served, served.connect() as watcher, served.connect() as client:
            body = json.dumps(ask("m")).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            client.sendall(head + body)
            upstream.wait(lambda: upstream.running == 1)
            served.end()
            while True:
                watcher.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
                ready = Reply.read(watcher)
                if ready.status != 200:
                    break
            assert (ready.status, ready.json["status"]) == (503, "draining")
            assert Reply.read(client, "POST").status == 200


def _ask_until_refused(connection: Any) -> Reply | None:
    """On a connection that was there before; None when it was closed instead."""
    body = json.dumps(ask("m", fault="status_400")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    try:
        while True:
            connection.sendall(head + body)
            reply = Reply.read(connection, "POST")
            if reply.status != 400:
                return reply
    except (ConnectionError, OSError):
        return None


@pytest.mark.parametrize("workers", [1, 2])
def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path, workers: int) -> None:
    """A request takes two, and the soft limit of many systems would end with some hundred requests at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        gateway = started(tmp_path, "--demo", "--workers", str(workers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = {resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in (gateway.process.pid, *workers_of(gateway))}
    assert gateway.stop() == 0
    assert found == {(65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536), hard)}
