"""The runner in docs/ is as short as docs/writing-a-client.md says, and right."""

import os
import subprocess
import sys

import pytest

from service import ERRAND, clean_environment
from wire import REPOSITORY, stubs

# The kit starts services of its own.
pytestmark = pytest.mark.topology("embedded")

FOLDER = REPOSITORY / "docs" / "minimal_runner"
LINES_MAX = 150


def is_code(line):
    return line.strip() and not line.lstrip().startswith(("#", '"""', "import ", "from "))


def test_the_protocol_takes_less_than_150_lines():
    lines = (FOLDER / "protocol.py").read_text().splitlines()
    assert len([line for line in lines if is_code(line)]) < LINES_MAX
    assert max(map(len, lines)) <= 120


@pytest.mark.timeout(900)
def test_it_passes_the_whole_kit():
    env = {**clean_environment(), "PYTHONPATH": stubs(), "PYTHONDONTWRITEBYTECODE": "1"}
    kit = [ERRAND, "conformance", "--parallel", str(2 * (os.cpu_count() or 1)), "--"]
    played = subprocess.run([*kit, sys.executable, str(FOLDER / "runner.py")], env=env, capture_output=True, text=True)
    assert played.returncode == 0, played.stdout + played.stderr
