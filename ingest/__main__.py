"""The command line: `estat-ingest`, or `python -m ingest`, and a word, of which `serve` is the default.

Owns the words (serve, check, health, status, dlq, compact) and the exit codes: 0 done, 1 it failed, 2 the settings or
the words are wrong, 130 interrupted; `compact` has more of them.
Promises that each wrong setting ends in one line on standard error, and none in a traceback, too low a limit on open
files included;
that a signal during the start of `serve` is kept until the server hears it.
Never does the work; each branch imports what it needs, for what `check` or `dlq` load must not stand between `serve`
and its first answer.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Sequence

_READERS: Final = (["compact"], ["reconcile"], ["abandon"])
"""Commands of readers, whose jobs read the exit codes."""
LEAST_DESCRIPTORS: Final = 64
"""An idle collector with workers and S3 has about half as many open."""
WORKER: Final = "worker"
"""The word by which a supervisor starts one of several processes; it is nobody else's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` and return its exit code."""
    _hold_standard_descriptors()
    words = sys.argv[1:] if argv is None else list(argv)
    if problem := _too_few_descriptors():
        _say(problem)
        return os.EX_USAGE if words[:1] in _READERS else 2
    if words == ["health"]:  # run every few seconds: it loads its own little
        from ingest.commands import health

        return _ended(words, lambda: health.run(os.environ))
    if words in ([], ["serve"]) and os.environ.get("WORKERS", "").strip() not in {"", "1"}:
        from ingest import supervisor

        supervisor.supervise(_open_for_workers)  # ends the process, unless it is to be the only one
    if not words or words[0] in {"serve", WORKER}:
        from ingest import signals

        signals.hold()  # before the imports, which take a while
        return _with_settings(words)
    return _ended(words, lambda: _with_settings(words))


def _with_settings(words: Sequence[str]) -> int:
    from ingest.config import ConfigErrors
    from ingest.threads import NoThreadError

    try:
        return _work(words[1:]) if words[:1] == [WORKER] else _run(_understood(words))
    except (ConfigErrors, NoThreadError) as problems:
        _say(str(problems))
        return 2


def _say(line: str) -> None:
    """Say something to an operator; who cannot be told still gets the exit code."""
    try:
        sys.stderr.write(f"{line}\n")
    except OSError:  # or the end of the process tries again, and fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _ended(words: Sequence[str], command: Callable[[], int]) -> int:
    """Run a command to its end; what the system refused it, and an interrupt, are one line each."""
    try:
        try:
            code = command()
        finally:  # also after words that end in a text, as --help does
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{where}{error.strerror or error}; the output may not be whole")
        code = os.EX_UNAVAILABLE if words[:1] in _READERS else 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written there fails no more
    return code


def _understood(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words; ends the process if they are wrong, with 64 where 2 might mean a verdict of a reader's tool."""
    try:
        return _parser(words).parse_args(words)
    except SystemExit as ended:
        if ended.code and words[:1] in _READERS:
            raise SystemExit(os.EX_USAGE) from None
        raise


def _open_for_workers(to: socket.socket) -> None:
    from ingest.opening import open_for_workers

    open_for_workers(to)


def _hold_standard_descriptors() -> None:
    """Put `/dev/null` in the place of a standard descriptor that was closed, before anything else takes its number.

    Log lines would go into whatever is opened as number 2, a socket or a segment.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")  # a path may have what its encoding has not, or be no text


def _too_few_descriptors() -> str:
    """Raise a limit on open files that is lower than LEAST_DESCRIPTORS; return what is wrong if it may not be.

    Below it nothing would tell an operator what is wrong: a module that is not loaded yet could not be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_DESCRIPTORS:
        return ""
    if hard == resource.RLIM_INFINITY or hard >= LEAST_DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_DESCRIPTORS, hard))
        return ""
    return (
        f"RLIMIT_NOFILE: expected at least {LEAST_DESCRIPTORS}, got {hard}: a process may not open enough files; "
        "raise the limit (`ulimit -n`, LimitNOFILE of systemd, `ulimits` of a container)"
    )


def _work(words: Sequence[str]) -> int:
    """Be one of several workers, as the supervisor's words say."""
    from ingest.worker import Worker

    try:
        worker = Worker(words)
    except (ValueError, OSError, IndexError):
        sys.stderr.write("`worker` is what a supervisor says to start one; `serve` with WORKERS starts several\n")
        return 2
    from ingest.config import load, warnings
    from ingest.telemetry import log

    settings = load(os.environ)
    log.configure(settings, worker.number)
    from ingest.server import serve

    log.start()
    if worker.number == 0:
        log.tell_warnings(warnings(settings, os.environ))
    try:
        return serve(settings, worker=worker)
    finally:
        log.finish()


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "status":
        from ingest.commands import status

        return status.run(os.environ, as_json=arguments.json)
    if arguments.command == "check":
        from ingest.commands import check

        return check.run(os.environ, store=arguments.store, strict=arguments.strict, env_file=arguments.env_file)
    from ingest.config import load, warnings
    from ingest.telemetry import log

    settings = load(os.environ)

    log.configure(settings)
    if arguments.command in {"reconcile", "abandon"}:
        from ingest.commands import reconcile

        run = reconcile.run_reconcile if arguments.command == "reconcile" else reconcile.run_abandon
        return run(arguments, settings)
    if arguments.command == "dlq":
        from ingest.commands import dlq as dlq_cli

        return dlq_cli.run(arguments, settings, os.environ)
    if arguments.command == "compact":
        from ingest.commands import compact

        return compact.run(arguments, settings)
    from ingest.server import serve

    log.start()
    log.tell_warnings(warnings(settings, os.environ))
    try:
        return serve(settings)
    finally:
        log.finish()


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    import argparse
    from pathlib import Path

    from ingest import __version__

    parser = argparse.ArgumentParser(
        prog="estat-ingest",
        description="Collects events over HTTP and puts them on S3 as gzip JSONL.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from the environment; `check` shows them. Without a command it serves.\n\n"
        "exit codes: 0 done; 1 it failed; 2 the words or settings are wrong; 130 interrupted\n\n"
        "example: STORE_DIR=/data/objects DLQ_DIR=/data/dlq estat-ingest",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, does: str, exits: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"exit codes: {exits}\n\nexample: {example}",
        )

    command(
        "serve",
        "take events until SIGTERM; the default",
        "0 stopped by a signal, nothing lost; 1 a failure of its own, or events lost;\n"
        "  2 it could not start: standard error says why",
        "RAW_BUCKET=estat-raw-data AWS_REGION=ap-northeast-2 estat-ingest serve",
    )
    check = command(
        "check",
        "show the settings in force and all that is wrong with them",
        "0 they can be used; 2 they cannot, or with --strict there is a warning",
        "estat-ingest check --env-file /etc/estat-ingest.env --strict",
    )
    check.add_argument("--store", action="store_true", help="also put, read back and remove a canary object")
    check.add_argument("--strict", action="store_true", help="take every warning for a problem: exit 2")
    check.add_argument(
        "--env-file", type=Path, metavar="FILE", help="look at NAME=value lines of a file, not at the environment"
    )
    command(
        "health",
        "ask the server of these settings whether it is well",
        "0 it is; 1 it is not, or does not answer within 4 s; 2 the settings are wrong; 130 interrupted",
        "ADMIN_ADDR=:9090 estat-ingest health",
    )
    status = command(
        "status",
        "ask the server of these settings how it is, in one sentence, on ADMIN_ADDR if that is set, else on HTTP_ADDR",
        "0 it is well, or stores what waited; 1 it refuses events, the store is away, or nobody\n"
        "  answers; 2 the words or settings are wrong; 130 interrupted",
        "ADMIN_ADDR=:9090 estat-ingest status --json",
    )
    status.add_argument("--json", action="store_true", help="all that it tells, as one JSON document")
    dlq = command(
        "dlq",
        "look at and work on what waits on disk for the store",
        "0 done; 1 something is wrong or stays; 2 a directory is missing, or the words or settings\n"
        "  are wrong; 130 interrupted",
        "estat-ingest dlq ls",
    )
    compact = command(
        "compact",
        "write whole hours as Parquet, for readers; needs estat-ingest[lake]",
        "0 done, or nothing to do; 1 an hour is open; 3 an hour differs from what its objects say;\n"
        "  64 the words are wrong; 2 the settings are; 69 the store, the disk or the engine failed;\n"
        "  130 interrupted",
        "estat-ingest compact --hour dt=2026-11-23/hr=00..dt=2026-11-23/hr=23",
    )
    if words[:1] == ["compact"]:
        from ingest.commands import compact as compacting

        compacting.add_arguments(compact)
    reconcile = command(
        "reconcile",
        "tell whether hours are complete: what lies in the store against what was told of it; it only reads",
        "0 every hour is complete; 1 one is open, and the text says who has not closed it;\n"
        "  3 one differs from what was told; 64 the words are wrong; 2 the settings are; 69 the store failed;\n"
        "  130 interrupted",
        "RAW_BUCKET=estat-raw-data AWS_REGION=ap-northeast-2 estat-ingest reconcile --hour dt=2026-11-25/hr=14 --deep",
    )
    abandon = command(
        "abandon",
        "say that nothing more will come of a process whose disk is gone, so that its hours are no longer open",
        "0 it is said; 1 no process of this name is known; 64 the words are wrong; 2 the settings are;\n"
        "  69 the store failed; 130 interrupted",
        "RAW_BUCKET=estat-raw-data AWS_REGION=ap-northeast-2 estat-ingest abandon ip-10-0-1-7-5c7c7655db6b0bea \\\n"
        "           --why 'its volume was deleted'",
    )
    if words[:1] in (["reconcile"], ["abandon"]):
        from ingest.commands import reconcile as reader

        reader.add_reconcile(reconcile)
        reader.add_abandon(abandon)
    if words[:1] == ["dlq"]:
        from ingest.commands import dlq as dlq_cli

        dlq_cli.add_arguments(dlq.add_subparsers(dest="action", metavar="action", required=True))
    return parser


if __name__ == "__main__":
    sys.exit(main())
