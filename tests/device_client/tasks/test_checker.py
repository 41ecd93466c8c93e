"""A person's own checker: what it reads, what it may print, and how it fails."""

from __future__ import annotations

import errno
import os
import select
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from device_client.tasks.checker import Checker, checker_command, checker_of_run
from shared.errors import Conflict, DataError, InvalidRequest
from shared.tasks.examples import Example

ROW = Example((1, 2), (), 0, "rows.jsonl line 7", row={"prompt": "Name a colour", "wanted": ["red", "rot"]})
READ = "import json, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n"


def script(folder: Path, body: str, name: str = "checker.py") -> str:
    path = folder / name
    path.write_text(body)
    return shlex.join([sys.executable, str(path)])


def ask(command: str, *answers: str, timeout_seconds: float = 20.0) -> list[float]:
    with Checker(checker_command(command), timeout_seconds=timeout_seconds) as checker:
        return [checker(ROW, "Name a colour", answer) for answer in answers]


def test_one_process_reads_prompt_answer_and_row_and_prints_a_number_for_each(tmp_path: Path) -> None:
    body = READ + "    print(asked['row']['wanted'].index(asked['answer']) + len(asked['prompt']), flush=True)\n"
    assert ask(script(tmp_path, "import os\n" + body), "red", "rot", "red") == [13, 14, 13]


def test_a_line_longer_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    assert ask(script(tmp_path, READ + "    print(len(asked['answer']), flush=True)\n"), "x" * 300_000) == [300_000]


def test_it_runs_once_for_all_answers(tmp_path: Path) -> None:
    body = "number = 0\n" + READ + "    number += 1\n    print(number, flush=True)\n"
    assert ask(script(tmp_path, body), "a", "b", "c") == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (READ + "    print('good', flush=True)\n", "printed 'good'"),
        (READ + "    print('nan', flush=True)\n", "printed 'nan'"),
        (READ + "    print('-inf', flush=True)\n", "printed '-inf'"),
        (READ + "    print(1e7, flush=True)\n", "printed '10000000.0'"),
        (READ + "    print(flush=True)\n", "printed ''"),
        (READ + "    print('1' * 2000, flush=True)\n", "printed more than 1000 bytes"),
        (READ + "    sys.exit(3)\n", "ended with status 3"),
        ("import sys\nsys.exit(4)\n", "ended with status 4"),
        (READ + "    raise KeyError('wanted')\n", "it wrote to stderr: Traceback"),
    ],
)
def test_what_is_not_one_number_a_line_is_an_error_that_names_row_and_checker(
    tmp_path: Path, body: str, found: str
) -> None:
    with pytest.raises(DataError) as caught:
        ask(script(tmp_path, body), "red")
    assert found in caught.value.found
    assert "rows.jsonl line 7: the checker" in caught.value.found
    assert caught.value.needed
    assert "flush=True" in caught.value.next_step
    assert "Name a colour" not in str(caught.value)


def test_two_lines_for_one_answer_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than one line"):
        ask(script(tmp_path, READ + "    sys.stdout.write('1\\n2\\n')\n    sys.stdout.flush()\n"), "red", "rot")


def test_a_checker_that_is_silent_for_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"printed no line within 0\.2 s"):
        ask(script(tmp_path, READ + "    sys.stdin.read()\n"), "red", timeout_seconds=0.2)


def test_it_has_no_network_unless_it_may_have_one(tmp_path: Path) -> None:
    body = READ + "    import socket\n    print(len(socket.if_nameindex()), flush=True)\n"
    reached = (
        READ + "    import socket\n    with socket.socket() as s:\n"
        "        print(s.connect_ex(('127.0.0.1', int(asked['answer']))), flush=True)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = checker_command(script(tmp_path, reached))
        with Checker(command) as checker:
            assert checker(ROW, "", port) == errno.ENETUNREACH
        with Checker(command, may_connect=True) as checker:
            assert checker(ROW, "", port) == 0
    assert ask(script(tmp_path, body, "interfaces.py"), "") == [1]  # a loopback that is down


def test_it_ends_with_its_block_and_so_does_what_it_has_started(tmp_path: Path) -> None:
    body = "import subprocess\n" + READ
    body += "    print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
    with Checker(checker_command(script(tmp_path, body))) as checker:
        child = os.pidfd_open(int(checker(ROW, "", "")))
        assert select.select([child], [], [], 0) == ([], [], [])  # it runs
    with os.fdopen(child):
        assert select.select([child], [], [], 60)[0] == [child]  # it has ended


@pytest.mark.parametrize("command", ["", "no-such-command-here", '"unfinished'])
def test_a_command_that_is_not_there_is_refused_before_anything_runs(command: str) -> None:
    with pytest.raises(InvalidRequest, match="--checker") as caught:
        checker_command(command)
    assert caught.value.param == "checker"


def test_the_digest_is_of_the_files_that_the_command_names(tmp_path: Path) -> None:
    command = script(tmp_path, "print(1)\n")
    before = checker_command(command)
    assert checker_of_run(command, before.digest, "a-run") == before
    assert checker_command(command + " --strict").digest != before.digest
    script(tmp_path, "print(2)\n")
    with pytest.raises(Conflict, match=r"the run a-run was tuned with the checker .* whose files have changed"):
        checker_of_run(command, before.digest, "a-run")


ASK_ONCE = """
import sys
from device_client.tasks.checker import Checker, checker_command
from shared.errors import ZoError
from shared.tasks.examples import Example

try:
    with Checker(checker_command(sys.argv[1])) as checker:
        print(checker(Example((1,), (), 0, "a row"), "", ""))
except ZoError as error:
    print(type(error).__name__, error)
"""


def asked_in_a_namespace(command: str, *unshare: str, before: str = "true") -> str:
    """Ask in a user namespace: what a person without root's rights, or a stricter system, would see."""
    words = ["unshare", *unshare, "sh", "-c", f'{before} && exec "$@"', "sh", sys.executable, "-c", ASK_ONCE, command]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout


def test_a_person_without_rights_takes_the_network_away_too(tmp_path: Path) -> None:
    command = script(tmp_path, READ + "    import socket\n    print(len(socket.if_nameindex()), flush=True)\n")
    assert asked_in_a_namespace(command, "--map-user=1000", "--map-group=1000") == "1.0\n"


def test_where_the_network_cannot_be_taken_away_the_checker_does_not_run(tmp_path: Path) -> None:
    command = script(tmp_path, READ + "    print(1, flush=True)\n")
    said = asked_in_a_namespace(
        command, "--user", "--map-root-user", before="echo 0 > /proc/sys/user/max_net_namespaces"
    )
    assert said.startswith("ResourceError the checker")
    assert "would see your rows with a network: the network cannot be taken away" in said
    assert "Next: --checker-may-connect" in said
