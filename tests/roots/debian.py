"""What a Debian root has, laid out in a folder from the packages that are installed here.

Owns the choice of packages (`base`, `closure`) and their files. Promises a root in which `apt-get install` works, with
nothing in it that no package brought, but for what their scripts make: users, alternatives, certificates, the cache of
`ldconfig`. Needs to be root on Debian. Never downloads.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TOOLS = ("dpkg-query", "tar", "unshare", "nsenter", "setpriv", "chroot", "ip", "mount")
SLIM = re.compile(r"/usr/share/(doc|man|info|locale|groff|lintian|linda)/.")
"""What `debian:12-slim` leaves out."""
DPKG = Path("/var/lib/dpkg")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnfitError(Exception):
    """Why no root can be laid out here; one line."""


def refuse_unfit_machines(version: str | None = None) -> None:
    """Raises where roots cannot be laid out, or where they would be of another Debian than this version."""
    if os.geteuid() != 0:
        raise UnfitError("namespaces and other users need root")
    told = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    if told.get("ID") != "debian" or version not in {None, told.get("VERSION_ID")}:
        raise UnfitError(f"the packages are copied from this machine, which is not Debian {version or ''}".rstrip())
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATHS) is None]
    if missing:
        raise UnfitError(f"not installed: {', '.join(missing)}")


def run(*words: str | Path, text: str | None = None) -> str:
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True, timeout=300).stdout


@cache
def installed() -> dict[str, dict[str, str]]:
    """The packages of this machine's own architecture."""
    names = ("Package", "Architecture", "Version", "Essential", "Priority", "Pre-Depends", "Depends", "Provides")
    wanted = "\\t".join(f"${{{name}}}" for name in ("db:Status-Abbrev", *names)) + "\\n"
    own = {"all", run("dpkg", "--print-architecture").strip()}
    found = {}
    for line in run("dpkg-query", "-W", f"-f={wanted}").splitlines():
        status, *values = line.split("\t")
        package = dict(zip(names, values, strict=True))
        if status.startswith("ii") and package["Architecture"] in own:
            found[package["Package"]] = package
    return found


@cache
def providers() -> dict[str, str]:
    return {
        name: package
        for package, row in sorted(installed().items())
        for name in (package, *re.findall(r"([a-z0-9][\w.+-]+)(?: \([^)]*\))?(?:, |$)", row["Provides"]))
    }


def closure(names: Iterable[str]) -> set[str]:
    """These packages and all that they depend on; of alternatives the first that is installed here."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        package = name if name in installed() else providers().get(name)
        if package is None:
            raise UnfitError(f"the package {name} is not installed here")
        if package in found:
            continue
        found.add(package)
        row = installed()[package]
        for group in filter(None, f"{row['Pre-Depends']}, {row['Depends']}".split(", ")):
            choices = [re.split(r"[ :(]", choice.strip(), maxsplit=1)[0] for choice in group.split("|")]
            known = [choice for choice in choices if choice in installed() or choice in providers()]
            left += known[:1] or choices[:1]
    return found


def base() -> set[str]:
    """What the smallest Debian has: what is essential or required, and apt."""
    rows = installed().values()
    return closure(
        ["apt", *(row["Package"] for row in rows if row["Essential"] == "yes" or row["Priority"] == "required")]
    )


def files_of(packages: Iterable[str]) -> Iterator[str]:
    """Paths as packages name them, but for what a slim image leaves out."""
    seen = set()
    for line in run("dpkg-query", "-L", *sorted(packages)).splitlines():
        if line.startswith("/") and line not in seen and not SLIM.match(line) and os.path.lexists(line):
            seen.add(line)
            yield line


def copy_files(root: Path, paths: Iterable[str]) -> None:
    """With owners, modes and links; folders without what else is in them."""
    names = "\0".join(path.lstrip("/") or "." for path in paths)
    with subprocess.Popen(
        ["tar", "--create", "--directory=/", "--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as packing:
        assert packing.stdin is not None
        into = ["tar", "--extract", f"--directory={root}", "--same-owner", "--preserve-permissions"]
        with subprocess.Popen([*into, "--keep-directory-symlink"], stdin=packing.stdout) as unpacking:
            packing.stdin.write(names.encode())
            packing.stdin.close()
    if packing.returncode or unpacking.returncode:
        raise UnfitError("the files of the packages could not be copied")


def lay_out(root: Path, packages: Iterable[str]) -> None:
    """Files alone, as an image has that was put together without dpkg."""
    root.mkdir(parents=True)
    root.chmod(0o755)
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).symlink_to(f"usr/{folder}")
    copy_files(root, files_of(packages))
    for name in ("dev", "proc", "sys", "tmp", "run", "root", "home", "etc/ssl/certs", "usr/local/bin", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    shutil.copy(Path("/") / CERTIFICATES, root / CERTIFICATES)


def lay_out_system(root: Path, packages: Iterable[str]) -> None:
    """A system of these packages: with users, alternatives, and what dpkg and apt know of it."""
    chosen = sorted(packages)
    lay_out(root, chosen)
    for name in ("passwd", "group"):
        shutil.copy(f"/usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/shadow").touch(0o600)
    lay_out_alternatives(root)
    run("chroot", str(root), "/sbin/ldconfig")
    lay_out_dpkg(root, chosen)


def lay_out_alternatives(root: Path) -> None:
    """The links that lead to what is there: `awk`, for one."""
    folder = root / "etc/alternatives"
    folder.mkdir(exist_ok=True)
    for known in (DPKG / "alternatives").iterdir():
        link = known.read_text().splitlines()[1]
        choice = Path("/etc/alternatives") / known.name
        if choice.is_symlink() and os.path.lexists(f"{root}{os.readlink(choice)}"):
            (folder / known.name).symlink_to(os.readlink(choice))
            place = root / link.lstrip("/")
            if place.parent.is_dir() and not os.path.lexists(place):
                place.symlink_to(choice)


def lay_out_dpkg(root: Path, chosen: list[str]) -> None:
    into = root / DPKG.relative_to("/")
    for name in ("info", "updates", "triggers", "alternatives"):
        (into / name).mkdir(parents=True, exist_ok=True)
    known = run("dpkg-query", "--status", *(f"{n}:{installed()[n]['Architecture']}" for n in chosen))
    (into / "status").write_text(known.rstrip("\n") + "\n\n")
    for name in ("available", "diversions", "statoverride"):
        (into / name).touch()
    for package in chosen:
        for pattern in (f"{package}.*", f"{package}:{installed()[package]['Architecture']}.*"):
            for path in (DPKG / "info").glob(pattern):
                shutil.copy(path, into / "info" / path.name)
    (into / "info/format").write_text("1\n")
    for name in ("sources.list", "sources.list.d", "trusted.gpg.d"):
        there = Path("/etc/apt") / name
        if there.is_dir():
            shutil.copytree(there, root / "etc/apt" / name, dirs_exist_ok=True)
        elif there.exists():
            shutil.copy(there, root / "etc/apt" / name)


def size(root: Path) -> int:
    """Bytes of all files, each once, however many names it has."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
