"""`make try` shows what it promises, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent


def test_try_stores_a_thousand_events_shows_them_and_leaves_nothing(tmp_path):
    callers = {
        "RAW_BUCKET": "of-the-caller",
        "AWS_REGION": "eu-central-1",
        "WRITE_KEYS": "web:secret",
        "ADMIN_ADDR": "unix:/none/admin.sock",
        "WORKERS": "2",
        "BODY_FORMAT": "xml",
        "TLS_CERT": "/none/cert.pem",
        "TLS_KEY": "/none/key.pem",
    }
    env = {**os.environ, "TMPDIR": str(tmp_path), **callers}
    command = [sys.executable, str(REPOSITORY / "examples/try.py")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 of 1000 events answered with 200" in done.stdout
    assert "1000 events in 3 objects" in done.stdout
    assert done.stdout.count(".jsonl.gz  ") == 3
    assert list(tmp_path.iterdir()) == []
