"""The peak is this program's, its children's included, and nobody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raml_ray import memory
from raml_ray.memory import PeakMemory

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")

MIB = 2**20
HOLDS = "import sys; held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096]); print('ready', flush=True); sys.stdin.read()"


def holder(**how: bool) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True, **how)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


CHILD_COMES_AND_GOES = """
import time
from raml_ray.memory import PeakMemory
from tests.test_memory import holder
with PeakMemory() as before:
    pass
with PeakMemory(period_s=0.05) as peak:
    child = holder()
    time.sleep(0.3)
    child.communicate()
    time.sleep(0.2)
    held = peak.gib
assert peak.gib == held
print((held - before.gib) * 1024)
"""


def test_what_a_child_holds_is_counted_and_stays_the_peak_when_it_has_gone() -> None:
    # In a process of its own: other tests' Ray is a child of this one, and grows and shrinks.
    done = subprocess.run([sys.executable, "-c", CHILD_COMES_AND_GOES], stdout=-1, text=True, check=True)
    assert 195 < float(done.stdout) < 260


def test_the_peak_is_that_of_the_block_not_of_the_process_so_far() -> None:
    with PeakMemory() as first:
        held = bytearray(100 * MIB)
        held[::4096] = b"x" * len(held[::4096])
    del held
    with PeakMemory() as second:
        pass
    assert (first.gib - second.gib) * 1024 > 80


def test_a_grandchild_whose_parent_has_died_is_found_by_its_session() -> None:
    leads = (
        "import subprocess, sys\n"
        "middle = subprocess.Popen([sys.executable, '-c', \"import subprocess, sys;"
        " print(subprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL).pid, flush=True)\"], stdout=-1, text=True)\n"
        "print(middle.communicate()[0].strip(), flush=True)\n"
        "sys.stdin.read()"
    )
    leader = subprocess.Popen([sys.executable, "-c", leads], stdin=-1, stdout=-1, text=True, start_new_session=True)
    assert leader.stdout is not None
    orphan = int(leader.stdout.readline())
    try:
        assert Path(f"/proc/{orphan}/stat").read_text().split()[3] != str(leader.pid)
        assert {leader.pid, orphan} <= memory.family()
    finally:
        os.kill(orphan, 9)
        leader.communicate()


def test_processes_beside_this_one_are_not_its_family() -> None:
    found = memory.family()
    assert os.getpid() in found and os.getppid() not in found and 1 not in found
