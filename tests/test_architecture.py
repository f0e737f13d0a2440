"""The imports go one way, and every module says what it owns and has its place in docs/architecture.md."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "ingest"
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    """As docs/architecture.md names it: `wire.tick`; a room by its folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def lint_imports(*arguments):
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command, "import-linter is not installed beside this Python"
    return subprocess.run(
        [command, "--no-logo", "--no-cache", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_go_down_only():
    outcome = lint_imports()
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_an_import_that_goes_up_is_found(tmp_path):
    """The contract above must be able to fail."""
    config = (REPOSITORY / "pyproject.toml").read_text()
    layer = '  "telemetry",\n'
    assert layer in config
    turned = tmp_path / "pyproject.toml"
    turned.write_text(config.replace(layer, "").replace('  "__main__",\n', layer + '  "__main__",\n'))
    outcome = lint_imports("--config", str(turned))
    assert outcome.returncode == 1
    assert "ingest.server is not allowed to import ingest.telemetry" in re.sub(r"\s+", " ", outcome.stdout)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_says_what_it_is_for(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc
    assert doc.splitlines()[0].endswith((".", ":"))


def test_the_architecture_page_lists_every_module():
    text = (REPOSITORY / "docs/architecture.md").read_text()
    (table,) = re.findall(r"(?m)^\| Module \|.*\n\| --- .*\n((?:\|.*\n)+)", text)
    listed = re.findall(r"(?m)^\| `([a-z_0-9.]+)` \|", table)
    assert sorted(listed) == sorted(
        dotted(path) for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"
    )


def test_the_architecture_page_lists_modules_from_the_top_layer_down():
    """Whoever reads the table downwards meets importers before what they import."""
    config = (REPOSITORY / "pyproject.toml").read_text()
    layers = re.findall(r"(?ms)^layers = \[\n(.*?)^\]", config)[0]
    rank = {
        module: number for number, layer in enumerate(re.findall(r'"(.*)"', layers)) for module in layer.split(" | ")
    }
    text = (REPOSITORY / "docs/architecture.md").read_text()
    ranks = [rank[name] for name in re.findall(r"(?m)^\| `([a-z_0-9]+)(?:\.[a-z_0-9]+)?` \|", text) if name in rank]
    assert ranks == sorted(ranks)


DISK_METHODS = {
    *("exists", "is_dir", "is_file", "is_symlink", "iterdir", "glob", "rglob", "open", "stat", "lstat", "samefile"),
    *("read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "rmdir", "unlink", "rename", "touch"),
    *("link_to", "hardlink_to", "symlink_to", "readlink", "resolve", "chmod"),
}
DISK_CALLS = {
    *("open", "read", "pread", "write", "close", "walk", "scandir", "listdir", "stat", "lstat", "fstat", "statvfs"),
    *("access", "unlink", "remove", "removedirs", "rename", "renames", "replace", "link", "symlink", "readlink"),
    *("mkdir", "makedirs", "rmdir", "fsync", "fdatasync", "truncate", "ftruncate", "sendfile", "chmod", "chown"),
}
SEAMS = {"fs", "_fs", "disk", "entry"}
NO_DISK = {
    # What is not a disk an operator gave us: the null device, and what the kernel tells of this process.
    "__main__.py": {"os.fstat", "os.open"},
    "telemetry/metrics.py": {"read_text"},
    "telemetry/lines.py": {"os.write"},
    # The caller's own words, a pipe perhaps, read before there is a server.
    "commands/env_file.py": {"read_bytes"},
    # A part of the program, read as its modules are.
    "event/script.py": {"read_text"},
    # OpenSSL opens the same two files by their names, past any seam; it is done beside the loop, in a thread.
    "certificates.py": {"read_bytes", "stat"},
    # The SDK opens the same files by their names, past any seam, a pipe perhaps; it is done in a thread.
    "store/sdk.py": {"open"},
    # What the kernel tells of our quota.
    "granted.py": {"read_text"},
    # Bytes in memory, read as those of a file are.
    "lake/sources.py": {"io"},
    "lake/looking.py": {"io"},
    # A page of memory.
    "shared_page.py": {"os.fstat", "os.truncate"},
    # Standard error, sockets, and the name of one that was ours, in a process that loads no room.
    "supervisor.py": {"os.write", "os.close", "os.lstat", "os.unlink"},
    # It imports no room, asks before anything runs, and takes no answer for no warning.
    "config/settings.py": {"exists", "os.statvfs", "os.path.realpath"},
}


def touches_of_a_disk(tree):
    """Yield the name of each call that would touch a file system past the seam."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in {"fcntl", "tempfile", "glob", "io"})
        elif isinstance(node, ast.Name) and node.id == "open":
            yield "open"
        elif isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name == "os":
                if node.attr in DISK_CALLS:
                    yield f"os.{node.attr}"
            elif ast.unparse(owner) == "os.path":
                yield f"os.path.{node.attr}"
            elif name == "shutil":
                if node.attr != "get_terminal_size":
                    yield f"shutil.{node.attr}"
            elif node.attr in DISK_METHODS and name not in SEAMS:
                yield node.attr


@pytest.mark.parametrize("path", [path for path in MODULES if path.relative_to(PACKAGE).parts[0] != "disk"], ids=dotted)
def test_c4_no_room_touches_a_disk_past_the_seam(path):
    """A call past it cannot be failed, hung or cut by a test, and its error is nobody's `StorageError`."""
    allowed = NO_DISK.get(path.relative_to(PACKAGE).as_posix(), set())
    assert set(touches_of_a_disk(ast.parse(path.read_text()))) - allowed == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.exists()", ["exists"]),
        ("(folder / name).is_dir()", ["is_dir"]),
        ("self._root.iterdir()", ["iterdir"]),
        ("run(executor, path.read_bytes)", ["read_bytes"]),
        ("open(path)", ["open"]),
        ("os.scandir(folder)", ["os.scandir"]),
        ("run(executor, os.statvfs, path)", ["os.statvfs"]),
        ("os.path.exists(path)", ["os.path.exists"]),
        ("shutil.rmtree(folder)", ["shutil.rmtree"]),
        ("import fcntl", ["fcntl"]),
        ("fs.stat(path)", []),
        ("self._fs.open(path, flags)", []),
        ("disk.exists(fs, path)", []),
    ],
)
def test_a_touch_past_the_seam_is_found(code, found):
    """The test above must be able to fail."""
    assert list(touches_of_a_disk(ast.parse(code))) == found
