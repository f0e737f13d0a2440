"""The peers in other languages: built or installed for this run, or the reason why one is left out.

Owns what it takes to run them: `go build` of one file without modules, and Bun from npm by its lock file, both into a
folder of the benchmark's and nowhere else. Promises that a machine without one of the runtimes still measures the rest.
"""

import os
import shutil
import subprocess

from subjects import HERE, NGINX, Subject

PEERS = HERE / "peers"
BUILD_SECONDS = 300


class LeftOut(Exception):  # noqa: N818 - it is no error: the rest is measured
    """Why a peer cannot run here; one line."""


def peers(folder):
    """Return the peers that can run here, and for each other one a line that says why it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    found, left_out = [], []
    for title, make in (("Go net/http", _go), ("Node http", _node), ("Bun", _bun), ("nginx", _nginx)):
        try:
            found.append(make(folder))
        except LeftOut as reason:
            left_out.append(f"{title} is left out: {reason}")
    return found, left_out


def _go(folder):
    compiler = _found("go", "Debian: apt-get install golang-go")
    binary = folder / "go_http"
    environment = {**os.environ, "GOCACHE": str(folder / "go-cache"), "GOFLAGS": "", "CGO_ENABLED": "0"}
    _run([compiler, "build", "-o", binary, PEERS / "go_http.go"], folder, env=environment)
    return Subject("go", f"Go {_run([compiler, 'version'], folder).split()[2][2:]}, net/http", (str(binary), "@PORT@"))


def _node(folder):
    node = _found("node", "Debian: apt-get install nodejs")
    version = _run([node, "--version"], folder).strip().lstrip("v")
    return Subject("node", f"Node {version}, http", (node, str(PEERS / "node_http.mjs"), "@PORT@"))


def _bun(folder):
    npm = _found("npm", "Debian: apt-get install npm")
    target = folder / "bun"
    target.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PEERS / "bun" / name, target / name)
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], target)
    for binary in target.glob("node_modules/@oven/*/bin/bun"):
        try:
            version = _run([binary, "--version"], target).strip()
        except LeftOut:
            continue  # that of another C library
        return Subject("bun", f"Bun {version}", (str(binary), str(PEERS / "bun_serve.mjs"), "@PORT@"))
    raise LeftOut("npm has no build of it for this machine")


def _nginx(_folder):
    _found("nginx", "Debian: apt-get install nginx-light")
    return NGINX


def _found(command, hint):
    found = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise LeftOut(f"no {command} here ({hint})")
    return found


def _run(command, folder, **options):
    try:
        finished = subprocess.run(
            [*map(str, command)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(f"{command[0]}: {error}") from error
    if finished.returncode:
        said = (finished.stderr or finished.stdout).strip().splitlines() or [f"exit {finished.returncode}"]
        raise LeftOut(f"{command[0]}: {said[-1]}")
    return finished.stdout
