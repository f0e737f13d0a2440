"""How pip is configured here, for a pip in a root: the same index, the same certificates.

Owns the translation into variables, and the files and folders of this machine that they name.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

LENT = "/lent"
PASSED = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def configured() -> tuple[dict[str, str], dict[str, Path]]:
    """Variables, and what they speak of: to be lent to the root, below `LENT`, where it hides nothing of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    env = {}
    for line in told.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith(("global.", "install.", "env.", ":env:.")):
            option = name.rpartition(".")[2]
            env[f"PIP_{option.upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    env |= {name: os.environ[name] for name in PASSED if name in os.environ}
    lent: dict[str, Path] = {}
    return {name: " ".join(moved(word, lent) for word in value.split()) for name, value in env.items()}, lent


def moved(word: str, lent: dict[str, Path]) -> str:
    """A path or `file:` URL of this machine as the root has it; with a folder `simple` comes what is beside it."""
    parts = urlsplit(word)
    path = Path(unquote(parts.path))
    if parts.scheme not in {"", "file"} or not path.is_absolute() or not path.exists():
        return word
    place = path.parent if parts.scheme == "file" and path.name == "simple" else path
    lent[f"{LENT}{place}"] = place
    return f"{parts.scheme}://{LENT}{path}" if parts.scheme else f"{LENT}{path}"
