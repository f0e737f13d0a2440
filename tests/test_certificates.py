"""The certificate: what is wrong with a pair is told, a renewal is taken, and a broken one changes nothing."""

import asyncio
import os
import resource
from contextlib import contextmanager

import pytest
import structlog

from ingest.certificates import LONGEST_PAUSE, LOOK_SECONDS, Certificates, load_pair
from ingest.config import ConfigError, ConfigErrors, load
from ingest.telemetry import Metrics
from tests.stand_ins.tls import issue


def spoil(made, what, folder):
    """Returns the two paths, one of them made unusable."""
    other = issue(folder, "other")
    match what:
        case "no certificate":
            return folder / "nowhere.pem", made.key
        case "no key":
            return made.certificate, folder / "nowhere.key"
        case "a folder":
            return folder, made.key
        case "no PEM":
            made.certificate.write_bytes(b"\x30\x82")
        case "swapped":
            return made.key, made.certificate
        case "cut short":
            text = made.certificate.read_text().split("\n")
            made.certificate.write_text("\n".join([*text[:2], *text[-2:]]))
        case "not the certificate's":
            return made.certificate, other.key
        case "encrypted":
            return made.certificate, issue(folder, "locked", passphrase=b"secret").key
        case "no key in it":
            return made.certificate, made.certificate
        case "torn":
            made.key.write_bytes(made.key.read_bytes()[:-40])
    return made.certificate, made.key


@pytest.mark.parametrize(
    ("what", "variable", "told"),
    [
        ("no certificate", "TLS_CERT", "No such file or directory"),
        ("no key", "TLS_KEY", "No such file or directory"),
        ("a folder", "TLS_CERT", "Is a directory"),
        ("no PEM", "TLS_CERT", "it has no certificate in PEM"),
        ("swapped", "TLS_CERT", "was the key meant?"),
        ("cut short", "TLS_CERT", "it has no certificate in PEM"),
        ("not the certificate's", "TLS_KEY", "it belongs to another certificate"),
        ("encrypted", "TLS_KEY", "it is encrypted; write it without a passphrase: openssl pkey -in"),
        ("no key in it", "TLS_KEY", "OpenSSL: "),
        ("torn", "TLS_KEY", "OpenSSL: "),
    ],
)
def test_a_pair_that_cannot_be_used_is_told_with_file_cause_and_remedy(tmp_path, what, variable, told):
    paths = spoil(issue(tmp_path), what, tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_pair(*paths)
    assert caught.value.variable == variable
    assert caught.value.got == str(paths[variable == "TLS_KEY"])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["TLS_CERT", "TLS_KEY"])
@pytest.mark.parametrize("endless", ["a pipe", "/dev/zero"])
def test_what_may_never_end_is_not_read(tmp_path, variable, endless):
    made = issue(tmp_path)
    os.mkfifo(tmp_path / "a pipe")
    other = tmp_path / endless
    pair = (other, made.key) if variable == "TLS_CERT" else (made.certificate, other)
    with pytest.raises(ConfigError, match=f"^{variable}: .*; it is no file$"):
        load_pair(*pair)


@pytest.mark.parametrize("days", [-3.5, 1, 365, 365 * 40])
def test_the_day_a_certificate_expires_is_read_from_it(tmp_path, days):
    made = issue(tmp_path, days=days)
    pair = load_pair(made.certificate, made.key)
    assert pair.not_after == made.not_after
    assert pair.is_expired is (days < 0)


def test_one_that_has_expired_is_used_and_warned_of(tmp_path):
    made = issue(tmp_path, days=-1)
    with structlog.testing.capture_logs() as logs:
        Certificates(made.certificate, made.key, Metrics())
    assert [(line["event"], line["log_level"]) for line in logs] == [("certificate_expired", "warning")]


@pytest.mark.parametrize(
    ("environ", "variables"),
    [
        ({"TLS_CERT": "a.pem"}, ["TLS_KEY"]),
        ({"TLS_KEY": "a.key"}, ["TLS_CERT"]),
        ({"TLS_CERT": "a.pem", "TLS_KEY": "a.key", "PROXY_PROTOCOL": "true"}, ["PROXY_PROTOCOL"]),
    ],
)
def test_half_a_pair_or_one_behind_the_proxy_protocol_is_a_problem(environ, variables):
    with pytest.raises(ConfigErrors) as caught:
        load(environ)
    assert [problem.variable for problem in caught.value.problems] == variables


def test_with_tls_fewer_connections_are_open_by_default():
    pair = {"TLS_CERT": "a.pem", "TLS_KEY": "a.key"}
    assert load(pair).max_connections == 2000
    assert load({**pair, "MAX_CONNECTIONS": "10000"}).max_connections == 10000


@pytest.fixture
def mounted(tmp_path):
    """A folder as Kubernetes mounts a secret: names that lead through `..data`, which is turned in one step."""
    first = tmp_path / "..1"
    first.mkdir()
    issue(first)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


def turn(mounted, folder):
    (mounted / "..new").symlink_to(folder)
    os.rename(mounted / "..new", mounted / "..data")


def test_a_renewal_is_taken_and_a_broken_one_changes_nothing_until_it_is_mended(mounted):
    metrics = Metrics()
    held = Certificates(mounted / "server.pem", mounted / "server.key", metrics)
    first = held.context

    def looks(times=2):
        with structlog.testing.capture_logs() as logs:
            for _ in range(times):
                asyncio.run(held.look())
        return [line["event"] for line in logs]

    assert looks() == []
    assert held.context is first

    (mounted / "..2").mkdir()
    renewed = issue(mounted / "..2", days=60)
    turn(mounted, "..2")
    assert looks() == ["certificate_loaded"]
    assert held.context is not first
    assert metrics.tls_not_after == renewed.not_after

    second = held.context
    (mounted / "..3").mkdir()
    issue(mounted / "..3")
    (mounted / "..3" / "server.key").write_bytes(renewed.key.read_bytes())  # half of a renewal
    turn(mounted, "..3")
    assert looks() == ["certificate_not_loaded"], "once"
    (mounted / "..3" / "server.key").unlink()
    assert looks() == [], "another failure of the same story"
    assert (held.context, metrics.tls_reload_failed) == (second, 1)

    mended = issue(mounted / "..3", days=90)
    assert looks() == ["certificate_loaded"]
    assert held.context is not second
    assert (metrics.tls_reload_failed, metrics.tls_not_after) == (0, mended.not_after)


def test_files_written_anew_in_place_are_noticed(tmp_path):
    made = issue(tmp_path)
    held = Certificates(made.certificate, made.key, Metrics())
    before = held.context
    issue(tmp_path)
    asyncio.run(held.look())
    assert held.context is not before


@contextmanager
def no_descriptors():
    """Nothing more can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("lasts", [1, 5, 300])
def test_a_renewal_that_met_no_descriptors_is_taken_when_there_are_some_though_nobody_touches_it(tmp_path, lasts):
    made = issue(tmp_path)
    metrics, now = Metrics(), [0.0]
    held = Certificates(made.certificate, made.key, metrics, stopwatch=lambda: now[0])
    before = held.context
    tries = []

    async def story():
        await held.look()  # the loop has a thread from here on, for whose code files are opened
        issue(tmp_path, days=60)
        with no_descriptors():
            for _ in range(lasts):
                await held.look()
                tries.append(held._again_at)
                now[0] += LOOK_SECONDS
        assert (held.context, metrics.tls_reload_failed) == (before, 1)
        until = now[0] + min(2 * LOOK_SECONDS * lasts, LONGEST_PAUSE)
        while metrics.tls_reload_failed and now[0] <= until:
            await held.look()
            now[0] += LOOK_SECONDS

    with structlog.testing.capture_logs() as logs:
        asyncio.run(story())
    assert held.context is not before
    assert [line["event"] for line in logs] == ["certificate_not_loaded", "certificate_loaded"]
    assert "Too many open files" in logs[0]["error"]
    assert len(set(tries)) <= 5 + lasts * LOOK_SECONDS / LONGEST_PAUSE + 1, "tries become rare"


def test_one_that_expires_while_it_is_in_use_is_warned_of_once(tmp_path):
    made = issue(tmp_path, days=1)
    now = [made.not_after - 1]
    held = Certificates(made.certificate, made.key, Metrics(), wall_clock=lambda: now[0])
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            asyncio.run(held.look())
            now[0] += 0.6
    assert [line["event"] for line in logs] == ["certificate_expired"]
