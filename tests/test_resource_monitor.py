"""What `--measure` says of a sweep."""

import re
import subprocess
import sys
import time

from sweeps.run import resource_monitor
from sweeps.run.resource_monitor import Measurement

HELD = 200 << 20
CHILD = f"held = bytearray({HELD}); import time; time.sleep(1.0)"


def test_the_memory_of_descendants_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(resource_monitor, "EVERY_S", 0.05)
    (tmp_path / "result").write_bytes(bytes(1 << 20))
    with Measurement(tmp_path) as alone:
        time.sleep(0.5)
    with Measurement(tmp_path) as measured:
        subprocess.run([sys.executable, "-c", CHILD], check=True)
    assert HELD < measured.peak_bytes - alone.peak_bytes < 4 * HELD
    assert measured.wall_s > 1.0
    said = re.search(
        r"wall time (\d+) s, peak memory ([\d.]+) GiB, disk 0.00 GiB in 1 files", measured.report()
    )
    assert said and int(said[1]) >= 1 and float(said[2]) > HELD / 2**30
