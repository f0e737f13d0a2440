"""A Dockerfile, read and carried out in folders: each stage is a root.

Owns the instructions that ours has; another one is an error and is not passed over. `BASES` lays out the image that a
stage starts from. Promises the order, the owners and the settings that Docker gives. Never starts
what the image is for.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.roots import debian, inside, pip_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATHS = {"PATH": debian.PATHS}


class Instruction(NamedTuple):
    """One of them, with its continued lines in one."""

    name: str
    rest: str


@dataclass
class Image:
    """A stage: its root, and what it says of whom it runs."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: dict(PATHS))
    folder: str = "/"
    user: int = 0
    group: int = 0
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    health_options: dict[str, float] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    entry: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def read(text: str) -> Iterator[Instruction]:
    """The instructions in their order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield Instruction(name, rest.strip())


# ------------------------------------------------------------------------------------ what stages start from

DISTROLESS_PYTHON = (
    "base-files", "netbase", "tzdata", "ca-certificates", "libc6", "libssl3", "libgcc-s1", "gcc-12-base", "libgomp1",
    "libstdc++6", "libbz2-1.0", "libdb5.3", "libexpat1", "liblzma5", "libsqlite3-0", "libuuid1", "libncursesw6",
    "libtinfo6", "python3-distutils", "zlib1g", "libcom-err2", "libcrypt1", "libgssapi-krb5-2", "libk5crypto3",
    "libkeyutils1", "libkrb5-3", "libkrb5support0", "libnsl2", "libreadline8", "libtirpc3", "libffi8",
    "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal",
)  # fmt: skip
NONROOT = 65532


def debian_12_slim(root: Path) -> Image:
    debian.lay_out_system(root, debian.base())
    return Image(root)


def distroless_python(root: Path) -> Image:
    """Packages without dpkg, without a shell, and without what their scripts make: no module of Python is compiled."""
    debian.lay_out(root, DISTROLESS_PYTHON)
    for name in ("python", "python3"):
        (root / "usr/bin" / name).symlink_to("/usr/bin/python3.11")
    etc = root / "etc"
    etc.joinpath("passwd").write_text(
        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
        f"nonroot:x:{NONROOT}:{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n"
    )
    etc.joinpath("group").write_text(f"root:x:0:\nnobody:x:65534:\ntty:x:5:\nstaff:x:50:\nnonroot:x:{NONROOT}:\n")
    etc.joinpath("nsswitch.conf").write_text("hosts: files dns\n")
    home = root / "home/nonroot"
    home.mkdir(0o700)
    os.chown(home, NONROOT, NONROOT)
    env = {"SSL_CERT_FILE": f"/{debian.CERTIFICATES}", "LANG": "C.UTF-8"}
    return Image(root, {**PATHS, **env}, "/home/nonroot", NONROOT, NONROOT, entry=["/usr/bin/python3.11"])


BASES: dict[str, Callable[[Path], Image]] = {
    "debian:12-slim": debian_12_slim,
    "gcr.io/distroless/python3-debian12:nonroot": distroless_python,
}


# ------------------------------------------------------------------------------------------------- instructions


class Build:
    """The stages of one Dockerfile, in `folder`, from the files of `context`."""

    def __init__(self, context: Path, folder: Path, say: Callable[[str], None]) -> None:
        self.context = context
        self.folder = folder
        self.say = say
        self.stages: dict[str, Image] = {}
        self.image = Image(folder)

    def run(self) -> Image:
        """Returns the last stage."""
        for name, rest in read((self.context / "Dockerfile").read_text()):
            self.say(f"{name} {rest}"[:110])
            step = getattr(self, f"do_{name.lower()}", None)
            if step is None:
                raise debian.UnfitError(f"the Dockerfile has an instruction that is not known here: {name}")
            step(rest)
        return self.image

    def do_from(self, rest: str) -> None:
        base, _, name = rest.partition(" AS ")
        root = self.folder / f"stage-{len(self.stages)}"
        self.image = replace(self.stages[base], root=root) if base in self.stages else BASES[base](root)
        self.stages[name or str(len(self.stages))] = self.image

    def do_run(self, rest: str) -> None:
        """With the network of this machine, as `docker build` gives it, and pip as it is configured here."""
        image = self.image
        env, lent = pip_here.configured()
        lent["/etc/resolv.conf"] = Path("/etc/resolv.conf").resolve()
        setting = inside.Setting({**image.env, **env}, image.folder, image.user, image.group, lent=lent, network=True)
        done = subprocess.run(
            inside.command(image.root, ["/bin/sh", "-c", rest], setting),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=900, check=False,
        )  # fmt: skip
        if done.returncode:
            raise debian.UnfitError(f"RUN {rest}\nends with {done.returncode}:\n{done.stdout[-4000:]}")

    def do_workdir(self, rest: str) -> None:
        self.image.folder = os.path.join(self.image.folder, rest)
        place = self.at(self.image.folder)
        if not place.exists():
            place.mkdir(parents=True)

    def do_copy(self, rest: str) -> None:
        words = shlex.split(rest)
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, to = [word for word in words if not word.startswith("--")]
        if unknown := set(options) - {"from", "chown"}:
            raise debian.UnfitError(f"COPY has options that are not known here: {unknown}")
        owner = [int(part) if part.isdigit() else 0 for part in options.get("chown", "0:0").split(":")]
        stage = self.stages[options["from"]].root if "from" in options else None
        for source in sources:
            from_path = stage / source.lstrip("/") if stage else self.context / source
            target = self.at(to)
            if from_path.is_file() and (to.endswith("/") or target.is_dir()):
                target = target / from_path.name
            self.copy(from_path, target, (owner[0], owner[1]), wanted=self.sent if stage is None else None)

    def copy(self, source: Path, target: Path, owner: tuple[int, int], wanted: Callable[[Path], bool] | None) -> None:
        """The content of a folder, or one file, whoever owned it before."""

        def left_out(folder: str, names: list[str]) -> set[str]:
            return {name for name in names if wanted is not None and not wanted(Path(folder) / name)}

        if not source.exists() or (wanted is not None and not wanted(source)):
            raise debian.UnfitError(f"COPY: {source} is not there")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=left_out, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        os.chown(target, *owner)
        for folder, folders, names in os.walk(target):
            for name in (*folders, *names):
                os.chown(os.path.join(folder, name), *owner, follow_symlinks=False)

    def sent(self, path: Path) -> bool:
        """Whether `.dockerignore` lets a file pass: the last line that fits it, or a folder above it, decides."""
        relative = path.relative_to(self.context)
        names = [str(relative), *(str(above) for above in relative.parents)]
        passes = True
        for line in (self.context / ".dockerignore").read_text().splitlines():
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            taken_back = pattern.startswith("!")
            pattern = pattern.lstrip("!")
            tail = pattern.removeprefix("**/")
            fits = any(fnmatchcase(name, pattern) for name in names) or (
                tail != pattern and any(fnmatchcase(part, tail) for part in relative.parts)
            )
            if fits:
                passes = taken_back
        return passes

    def do_env(self, rest: str) -> None:
        self.image.env |= dict(word.split("=", 1) for word in shlex.split(rest))

    def do_volume(self, rest: str) -> None:
        self.image.volumes += json.loads(rest) if rest.startswith("[") else rest.split()

    def do_user(self, rest: str) -> None:
        user, _, group = rest.partition(":")
        self.image.user, self.image.group = int(user), int(group or user)

    def do_expose(self, rest: str) -> None:
        self.image.ports += [int(word.removesuffix("/tcp")) for word in rest.split()]

    def do_stopsignal(self, rest: str) -> None:
        self.image.stop_signal = rest

    def do_healthcheck(self, rest: str) -> None:
        options, _, words = rest.partition("CMD ")
        self.image.health = json.loads(words)
        self.image.health_options = {
            name: float(value.removesuffix("s")) for name, value in re.findall(r"--([a-z-]+)=(\S+)", options)
        }

    def do_entrypoint(self, rest: str) -> None:
        self.image.entry, self.image.words = json.loads(rest), []

    def do_cmd(self, rest: str) -> None:
        self.image.words = json.loads(rest)

    def at(self, path: str) -> Path:
        """A place in the root of the stage, as it is named in it."""
        return self.image.root / os.path.normpath(os.path.join(self.image.folder, path)).lstrip("/")
