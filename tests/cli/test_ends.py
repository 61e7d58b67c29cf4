"""How commands end: exit codes, words, tracebacks of the user's own code; and how SIGTERM ends a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from gworker import termination
from gworker.cli import diagnose, exits, output
from gworker.cli.exits import Code, Failed
from gworker.errors import InvalidDefinition, NotFound, PoolUnavailable, RemoteTraceback

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("the method's"), Code.FAILED),
        (PoolUnavailable("none"), Code.FAILED),
        (InvalidDefinition("wrong"), Code.USAGE),
        (Failed("what to write"), Code.USAGE),
        (NotFound("no such app"), Code.NOT_FOUND),
        (KeyboardInterrupt(), Code.INTERRUPTED),
    ],
)
def test_each_error_has_its_exit_code(error: BaseException, code: Code, capfd: pytest.CaptureFixture[str]) -> None:
    @exits.command
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        fail()
    assert ended.value.exit_code == code
    assert str(error) in capfd.readouterr().err


def test_what_a_method_raised_is_shown_as_the_worker_saw_it_without_gworkers_frames() -> None:
    error = ValueError("no")
    error.__cause__ = RemoteTraceback(
        "Traceback (most recent call last):\n"
        '  File "/elsewhere/site-packages/gworker/worker/execution.py", line 93, in run\n    call()\n'
        '  File "/usr/lib/python3.11/concurrent/futures/thread.py", line 58, in run\n    self.fn()\n    ^^^^^^^^^\n'
        '  File "/home/me/app.py", line 3, in embed\n    helper()\n'
        '  File "/home/me/threading.py", line 4, in helper\n    raise ValueError("no")\n'
        "ValueError: no\n"
    )
    assert exits.described(error).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/home/me/app.py", line 3, in embed',
        "    helper()",
        '  File "/home/me/threading.py", line 4, in helper',
        '    raise ValueError("no")',
        "ValueError: no",
    ]


def test_results_are_json_and_what_json_cannot_hold_is_an_error() -> None:
    import numpy as np

    assert output.to_json({"a": np.arange(3), "b": float("nan"), "c": b"hi"}) == (
        '{"a":[0,1,2],"b":null,"c":{"base64":"aGk="}}'
    )
    with pytest.raises(Failed, match="cannot be written as JSON"):
        output.to_json([object()])


@pytest.mark.slow
def test_the_command_answers_before_ray_could_be_imported_and_the_library_does_not_import_it() -> None:
    code = (
        "import sys, gworker.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'ray' not in sys.modules and 'pydantic' not in sys.modules, 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "130 interrupted" in " ".join(done.stdout.split())
    code = "import sys, gworker; gworker.App; assert not any('gworker.cli' in m or m == 'typer' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.slow
def test_every_command_explains_itself_with_an_example() -> None:
    code = (
        "import gworker.cli.main as m, io, contextlib\n"
        "for name in sorted(c.callback.__name__ for c in m.cli.registered_commands):\n"
        "    print('==', name)\n"
        "    try: m.main([name, '--help'])\n"
        "    except SystemExit as e: assert not e.code\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    for shown in done.stdout.split("== ")[1:]:
        name = shown.split()[0]
        assert "Example: " in shown and f"gworker {name}" in shown.split("Example: ")[1]


# --- the doctor --------------------------------------------------------------------------------------------------


def test_the_doctor_knows_who_listens_beyond_this_machine(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(
        head
        + "   0: 0100007F:18EB 00000000:0000 0A\n"  # 127.0.0.1:6379
        + "   1: 00000000:2711 00000000:0000 0A\n"  # 0.0.0.0:10001
        + "   2: 00000000:18EB 00000000:0000 01\n"  # a connection, nobody listens
    )
    (tmp_path / "tcp6").write_text(head + "   0: 00000000000000000000000001000000:2711 0:0 0A\n")  # [::1]:10001
    assert diagnose.listening(6379, tmp_path) == {"127.0.0.1"}
    assert diagnose.listening(10001, tmp_path) == {"0.0.0.0", "::1"}
    assert [diagnose._is_loopback(a) for a in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_open_ports_without_a_token_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "_ports", lambda address: {"GCS": 6379, "dashboard": 8265})
    monkeypatch.setattr(diagnose, "listening", lambda port: {"0.0.0.0"} if port == 6379 else {"127.0.0.1"})
    for guarded, verdicts in ((False, ["note", "wrong", "ok"]), (True, ["ok", "ok", "ok"])):
        monkeypatch.setattr(diagnose, "_token_mode", lambda environment, guarded=guarded: guarded)
        assert [f.verdict for f in diagnose._doors("127.0.0.1:6379", {})] == verdicts


# --- SIGTERM -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sigterm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(termination, "_asked_at", None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_the_process_in_order_where_nobody_else_handles_it(sigterm: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    termination.obey()
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert termination.asked()
    with termination.undisturbed():
        signal.raise_signal(signal.SIGTERM)  # the drain that the first one asked for goes on


def test_a_handler_of_the_programs_own_stays_also_where_ray_would_replace_it(sigterm: None) -> None:
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    termination.obey()
    with termination.kept_from_ray():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does, with its own
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("environment", "grace_s"),
    [
        ({}, None),
        ({"RAY_JOB_STOP_WAIT_TIME_S": "30"}, None),  # not a job
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 3.0),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_JOB_STOP_WAIT_TIME_S": "30"}, 30.0),
        ({"GWORKER_STOP_GRACE_S": "20"}, 20.0),
        ({"GWORKER_STOP_GRACE_S": "soon"}, 3.0),
    ],
)
def test_the_grace_is_a_jobs_or_what_the_environment_says(environment: dict[str, str], grace_s: float | None) -> None:
    assert termination._grace_s(environment) == grace_s


def test_running_inputs_get_half_of_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORKER_STOP_GRACE_S", "10")
    monkeypatch.setattr(termination, "_asked_at", None)
    assert termination.left_for_inputs_s() is None
    monkeypatch.setattr(termination, "_asked_at", time.monotonic() - 1.0)
    assert termination.left_for_inputs_s() == pytest.approx(4.0, abs=0.2)
    monkeypatch.setattr(termination, "_asked_at", time.monotonic() - 60.0)
    assert termination.left_for_inputs_s() == 0.0
