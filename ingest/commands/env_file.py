"""The env file: settings that are checked before there is a process to have them.

Owns the notation that `docker --env-file`, Compose and systemd have in common: a line is `NAME=value`, blank, or a
comment that begins with `#`. Promises that a line they would read differently is told, each with its number, and that
no value is. Never looks into the environment of the process, which is not that of the server.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from ingest.config import ConfigError, ConfigErrors


class EnvFile(NamedTuple):
    """The variables of a file, and what its reader should hear."""

    environ: dict[str, str]
    warnings: list[str]
    """Lines that are read, though not by everybody in the same way."""


def read(path: Path) -> EnvFile:
    """Return the variables of a file; raise `ConfigErrors` with every line that is none."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problem = ConfigError("--env-file", "a file that can be read", str(path), do=cause)
        raise ConfigErrors((problem,)) from error
    environ: dict[str, str] = {}
    told: list[str] = []
    problems: list[ConfigError] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}:{number}"
        if not (match := _LINE.fullmatch(line.rstrip())):
            problems.append(
                ConfigError(where, "NAME=value, without blanks or a word before the name", line, secret=True)
            )
            continue
        name, value = match.groups()
        if name in environ:
            told.append(f"{where}: {name} is set twice; this line counts")
        if quoted := _QUOTED.fullmatch(value):
            told.append(f"{where}: write {name} without quotes; Docker makes them part of the value, systemd does not")
            value = quoted[2]
        elif "\\" in value:
            told.append(f"{where}: {name} has a backslash, which systemd takes away, with the end of a line behind it")
        elif "$" in value:
            told.append(f"{where}: {name} has '$', where Compose puts in what a variable holds, but not systemd")
        elif " #" in value:
            told.append(f"{where}: {name} has ' #', where a comment begins for Compose, but not for systemd")
        environ[name] = value
    if problems:
        raise ConfigErrors(tuple(problems))
    return EnvFile(environ, told)


_LINE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_QUOTED: Final = re.compile(r"([\"'])(.*)\1")
