"""Commands in child processes: output, errors and signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.errors import ColakitError
from colakit.runtime import subprocesses
from colakit.runtime.subprocesses import Child, run_side_by_side


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the package: `python -m colakit NAME` runs NAME.py of this folder."""
    package = tmp_path / "colakit"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import pathlib, runpy, sys\nrunpy.run_path(str(pathlib.Path(sys.path[0]) / (sys.argv[1] + '.py')))\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*names: str, jobs: int = 1, log: subprocesses.Log = lambda name, line: None) -> list[str]:
    return run_side_by_side(
        [Child(name, (name,)) for name in names], [dict(os.environ, WORKER=str(i)) for i in range(jobs)], log
    )


def test_outputs_keep_the_order_of_the_commands_and_workers_their_environment(scripts: Path) -> None:
    (scripts / "slow.py").write_text(
        "import os, pathlib, time\nprint('slow', os.environ['WORKER'])\n"
        "while not pathlib.Path('done').exists(): time.sleep(0.01)\n"
    )
    (scripts / "fast.py").write_text(
        "import os, pathlib\nprint('fast', os.environ['WORKER'])\npathlib.Path('done').touch()\n"
    )
    assert run("slow", "fast", jobs=2) == ["slow 0\n", "fast 1\n"]  # would never end one after the other
    assert run("fast", "fast") == ["fast 0\n"] * 2


def test_stderr_is_logged_under_the_childs_name_up_to_its_error(scripts: Path) -> None:
    (scripts / "talk.py").write_text(
        "import sys\nprint('one', file=sys.stderr)\nprint('warning: two', file=sys.stderr)\n"
        "print('error: no such thing\\nas this\\nhint: try another', file=sys.stderr)\nsys.exit(2)\n"
    )
    heard = []
    with pytest.raises(ColakitError) as caught:
        run("talk", log=lambda name, line: heard.append((name, line)))
    assert heard == [("talk", "one"), ("talk", "warning: two")]
    assert caught.value.message == "talk: no such thing\nas this"
    assert caught.value.hint == "try another"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ValueError('a slip')", "child: exited with code 1\nTraceback.*ValueError: a slip"),
        ("import os; os.kill(os.getpid(), 9)", "child: was killed by signal 9"),
    ],
)
def test_an_unexpected_exit_is_reported_with_stderr(code: str, expected: str, scripts: Path) -> None:
    (scripts / "child.py").write_text(code)
    with pytest.raises(ColakitError, match=f"(?s){expected}") as caught:
        run("child")
    assert caught.value.exit_code == 1


STOPPABLE = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(f'saved-{number}').touch()
    print('error: stopped after a step', file=sys.stderr)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
pathlib.Path('began').touch()
while True: time.sleep(0.01)
"""


def test_a_failure_stops_running_children_and_starts_no_more(scripts: Path) -> None:
    (scripts / "other.py").write_text(STOPPABLE)
    (scripts / "failing.py").write_text(
        "import pathlib, sys, time\nwhile not pathlib.Path('began').exists(): time.sleep(0.01)\n"
        "print('error: out of luck', file=sys.stderr)\nsys.exit(1)\n"
    )
    (scripts / "third.py").write_text("import pathlib\npathlib.Path('third').touch()\n")
    with pytest.raises(ColakitError, match="failing: out of luck"):
        run("other", "failing", "third", jobs=2)
    assert (scripts / f"saved-{signal.SIGTERM.value}").exists()
    assert not (scripts / "third").exists()


def send_when(there: Callable[[], bool], *numbers: int) -> None:
    def send() -> None:
        while not there():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_forwarded_once_and_awaited(number: signal.Signals, scripts: Path) -> None:
    (scripts / "child.py").write_text(STOPPABLE)
    send_when((scripts / "began").exists, number)
    with pytest.raises(ColakitError, match="by a signal") as caught:
        run("child", "child")
    assert caught.value.exit_code == 128 + number
    assert (scripts / f"saved-{number.value}").exists()


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_second_interrupt_kills_all_children(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "GRACE_SECONDS", 0.5)
    (scripts / "deaf.py").write_text(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path('pid.part').write_text(str(os.getpid()))\nos.rename('pid.part', 'pid')\n"
        "while True: time.sleep(0.01)\n"
    )
    send_when((scripts / "pid").exists, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("deaf")
    assert ends(int((scripts / "pid").read_text()))


def ends(process: int) -> bool:
    for _ in range(1000):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False
