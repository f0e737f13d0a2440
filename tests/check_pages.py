"""What `make pages-check` runs: the commands of the pages, as they stand there, on a Debian that has nothing else.

Owns the reading of fenced `sh` and `console` blocks, and the root of Debian in which they run: with Python, make and
curl, as a user of its own, on a network that is loopback alone. What a block needs besides, or why it is not run,
stands above it in a comment of the page:

    <!-- needs: jq -->             a package more, there from the start; or `network`, or `root`
    <!-- after: make install -->   first that, with a network
    <!-- serves: make run-local -->   goes on in the background, in place of the server before it
    <!-- with: dead letters -->    first that is made so (`STATES`)
    <!-- not run: make test: it takes minutes -->

`serves` and `not run` name the beginning of a line; `not run: all: …` is the whole block. A comment that names no line
of its block is an error, and so is a block that cannot be run and says nothing. Ends with 1 if a command fails, or an
answer to curl is none of success; with 2 where roots of Debian cannot be laid out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.roots import debian, inside, pip_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REPOSITORY = Path(__file__).parent.parent
PAGES = ("README.md", "README.ko.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")
PACKAGES = ("python3", "python3-venv", "make", "curl", "ca-certificates")
SOMEBODY = 1000
HERE = "/home/somebody/estat-ingest"
URL = "http://127.0.0.1:8080"
KINDS = {"needs", "after", "serves", "with", "not run"}


@dataclass
class Block:
    """One fence, what it shows, and what its page says of it."""

    page: str
    line: int
    language: str
    text: str
    needs: set[str] = field(default_factory=set)
    after: list[str] = field(default_factory=list)
    serves: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Each with its continued lines; of a console what stands behind the prompt."""
        if self.language == "console":
            return re.findall(r"(?m)^\$ (.*)$", self.text)
        found: list[str] = []
        end = None
        for line in self.text.splitlines():
            if end is not None or (found and found[-1].endswith(("\\", "|"))):
                found[-1] += f"\n{line}"
                end = None if line == end else end
            elif line.strip():
                found.append(line)
                here = re.search(r"<<'(\w+)'", line)
                end = here[1] if here else None
        return found

    def steps(self) -> Iterator[tuple[str, str]]:
        """What is to be done with each command (`run`, `serves`, or the reason to leave it out), and the command."""
        marks = {**dict.fromkeys(self.serves, "serves"), **self.left_out}
        used = set()
        for command in self.commands():
            mark = next((mark for mark in marks if mark == "all" or command.startswith(mark)), None)
            used.add(mark)
            yield (marks[mark] if mark else "run"), command
        if unused := set(marks) - used:
            raise WrongPageError(f"{self.where}: no line begins so: {', '.join(unused)}")


class WrongPageError(Exception):
    """A comment that says nothing of its block."""


def blocks(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page with commands in them."""
    fence = re.compile(r"(?ms)((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$")
    for found in fence.finditer(text):
        comments, language, shown = found.groups()
        block = Block(page, text.count("\n", 0, found.start(2)) + 1, language, shown)
        if language not in {"sh", "console", "bash"}:
            if re.search(r"(?m)^\$ ", shown):
                raise WrongPageError(f"{block.where}: a block with commands at a prompt begins with ```console")
            continue
        for comment in re.findall(r"<!-- (.*?) -->", comments):
            read_comment(block, comment)
        yield block


def read_comment(block: Block, comment: str) -> None:
    kind, colon, rest = comment.partition(": ")
    if not colon or kind not in KINDS:
        return
    if kind == "needs":
        block.needs |= set(rest.split())
    elif kind == "not run":
        command, colon, reason = rest.rpartition(": ")
        if not colon:
            raise WrongPageError(f"{block.where}: without a reason: {comment}")
        block.left_out[command] = reason
    else:
        {"after": block.after, "serves": block.serves, "with": block.states}[kind].append(rest)


def all_blocks() -> list[Block]:
    pages = [path for pattern in PAGES for path in sorted(REPOSITORY.glob(pattern))]
    return [block for page in pages for block in blocks(str(page.relative_to(REPOSITORY)), page.read_text())]


# ------------------------------------------------------------------------------------------------- the machine


class Machine:
    """The root, a process that holds its namespaces, and the server that runs in them."""

    def __init__(self, folder: Path, packages: set[str]) -> None:
        self.root = folder / "root"
        self.log = folder / "log"
        here = {package for package in packages if package in debian.installed()}
        debian.lay_out_system(self.root, debian.base() | debian.closure(here))
        with (self.root / "etc/passwd").open("a") as users:
            users.write(f"somebody:x:{SOMEBODY}:{SOMEBODY}::/home/somebody:/bin/bash\n")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        sudo = self.root / "usr/local/bin/sudo"  # only root may call it: see `needs: root`
        sudo.write_text('#!/bin/sh\n[ "$(id -u)" = 0 ] && exec "$@"\n')
        sudo.chmod(0o755)
        place = self.root / HERE.lstrip("/")
        copy_repository(place)
        (place.parent / ".curlrc").write_text("fail\n")  # a refusal is a failure
        for path in (place.parent, *place.parent.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        paths = {"PATH": f"{HERE}/.venv/bin:{debian.PATHS}"}
        self.env = {**paths, "HOME": "/home/somebody", "USER": "somebody", "LANG": "C.UTF-8", "TERM": "dumb"}
        self.setting = inside.Setting(env=self.env, folder=HERE, user=SOMEBODY, group=SOMEBODY)
        words = ["/bin/sleep", "infinity"]
        holder = inside.Setting(env=self.env, folder=HERE)
        self.holder = subprocess.Popen(
            inside.command(self.root, words, holder), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.pid = inside.first_process(self.holder, words[0])
        self.server: subprocess.Popen[bytes] | None = None
        if far := sorted(packages - here):
            install = "DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends"
            self.run(f"apt-get update -qq && {install} {' '.join(far)}", user=0, network=True)

    def close(self) -> None:
        self.stop_server()
        os.kill(self.pid, signal.SIGKILL)
        self.holder.wait(10)

    def run(self, command: str, *, user: int = SOMEBODY, network: bool = False, limit: float = 900) -> str:
        """What it prints; raises `CalledProcessError` if it fails."""
        words = ["/bin/bash", "-ec", command]
        setting = inside.Setting(env=self.env, folder=HERE, user=user, group=user)
        if network:
            env, lent = pip_here.configured()
            lent["/etc/resolv.conf"] = Path("/etc/resolv.conf").resolve()
            setting = inside.Setting({**self.env, **env}, HERE, user, user, lent=lent, network=True)
            words = inside.command(self.root, words, setting)
        else:
            words = inside.beside(self.pid, words, setting)
        done = subprocess.run(
            words, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=limit, check=False,
        )  # fmt: skip
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        return done.stdout

    def serve(self, command: str) -> None:
        """Starts it, in place of the one before it, and returns when it answers."""
        self.stop_server()
        with self.log.open("wb") as out:
            self.server = subprocess.Popen(
                inside.beside(self.pid, ["/bin/bash", "-ec", f"exec env {command}"], self.setting),
                env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.wait(lambda: self.get("/ready") is not None, command)

    def get(self, path: str) -> str | None:
        done = subprocess.run(
            inside.ask(self.pid, "GET", URL + path), capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def wait(self, told: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 60
        while not told():
            ended = self.server is not None and self.server.poll() is not None
            if ended or time.monotonic() > until:
                raise subprocess.CalledProcessError(1, what, self.log.read_text(errors="replace"))
            time.sleep(0.1)

    def settle(self) -> None:
        """Returns when all that was sent is stored: a page says how long that takes, and its next command reads it."""
        if self.server is not None:
            self.wait(lambda: json.loads(self.get("/status") or "{}").get("waiting_events") == 0, "all is stored")

    def stop_server(self) -> None:
        """As Ctrl-C does: make is interrupted too, and says so."""
        if self.server is None:
            return
        os.killpg(self.server.pid, signal.SIGINT)
        code = self.server.wait(60)
        self.server = None
        if code not in {0, 2, 130, -signal.SIGINT}:
            raise subprocess.CalledProcessError(code, "the server, at its end", self.log.read_text(errors="replace"))


def copy_repository(place: Path) -> None:
    """What a clone has, but for its history."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    for name in filter(None, told.split("\0")):
        if (REPOSITORY / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, place / name)


def leave_dead_letters(machine: Machine) -> None:
    """A server whose store is away takes events and stops; the directory of another store is there."""
    machine.run("mkdir -p data/objects")
    away = "env RAW_BUCKET=away AWS_REGION=eu-west-1 S3_ENDPOINT_URL=http://127.0.0.1:9 AWS_ACCESS_KEY_ID=x"
    machine.serve(f"{away} AWS_SECRET_ACCESS_KEY=x .venv/bin/python -m ingest serve")
    machine.run(f'for n in 1 2 3; do curl -sS -d \'{{"event":"view","n":\'$n\'}}\' {URL}/collect; done')
    machine.stop_server()


def have_a_server(machine: Machine) -> None:
    if machine.server is None:
        machine.serve("make run-local")


STATES: Mapping[str, Callable[[Machine], None]] = {"a server": have_a_server, "dead letters": leave_dead_letters}


# ------------------------------------------------------------------------------------------------- the check


def carry_out(machine: Machine, block: Block) -> Iterator[tuple[str, str]]:
    """What came of each command, and the command."""
    for command in block.after:
        machine.run(command, network=True)
        yield "ok", command
    for state in block.states:
        STATES[state](machine)
    user = 0 if "root" in block.needs else SOMEBODY
    for step, command in block.steps():
        if step == "serves":
            machine.serve(command.partition(" #")[0].rstrip())
        elif step == "run":
            machine.run(command, user=user, network="network" in block.needs)
            machine.settle()
        yield {"run": "ok", "serves": "ok"}.get(step, f"not run, {step}"), command


def check(folder: Path) -> int:
    found = all_blocks()
    more = {need for block in found for need in block.needs} - {"network", "root"}
    machine = Machine(folder, {*PACKAGES, *more})
    say(f"Debian with {', '.join((*PACKAGES, *sorted(more)))}: {debian.size(machine.root) >> 20} MiB")
    counts = {"ok": 0, "failed": 0, "not run": 0}
    try:
        say("the locked packages, with a network (make .venv/.runtime)")
        machine.run("make .venv/.runtime", network=True)
        for block in found:
            try:
                for came, command in carry_out(machine, block):
                    counts[came.partition(",")[0]] += 1
                    say(f"{block.where:28} {came:10} {command.splitlines()[0][:100]}")
            except subprocess.CalledProcessError as error:
                counts["failed"] += 1
                say(f"{block.where:28} FAILED {error.returncode}: {error.cmd}\n{error.stdout[-3000:]}")
    finally:
        machine.close()
    say(", ".join(f"{number} {name}" for name, number in counts.items()))
    return 1 if counts["failed"] else 0


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is what it is run for


def main() -> int:
    try:
        debian.refuse_unfit_machines()
        with tempfile.TemporaryDirectory(prefix="estat-pages-") as name:
            Path(name).chmod(0o755)
            return check(Path(name))
    except (debian.UnfitError, WrongPageError) as why:
        print(f"the pages cannot be checked: {why}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
