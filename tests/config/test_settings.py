"""What the environment may say, and what is said when it may not."""

import dataclasses
import ipaddress
import os
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.config.forms import Rate, format_duration, format_size, parse_duration, parse_size
from ingest.config.paths import SDK_PATHS
from ingest.config.settings import ConfigErrors, Settings, differing, load, shown, warnings
from ingest.config.variables import VARIABLES

# The table, literally: a default that changes must change here too.
DEFAULTS = {
    "HTTP_ADDR": ":8080",
    "ADMIN_ADDR": "unset",
    "RAW_BUCKET": "unset",
    "STORE_DIR": "./data/objects",
    "RAW_PREFIX": "raw",
    "DLQ_PREFIX": "raw_dlq",
    "AWS_REGION": "required with a bucket",
    "MAX_BODY_SIZE": "65536",
    "MAX_BATCH_BODY_SIZE": "1MiB",
    "MAX_HEADER_BYTES": "16384",
    "CHANNEL_SIZE": "4000",
    "UPLOAD_QUEUE": "4",
    "BATCH_SIZE": "5000",
    "BATCH_BYTES": "8MiB",
    "FLUSH_INTERVAL": "120s",
    "MAX_BUFFER_BYTES": "64MiB",
    "TLS_CERT": "unset",
    "TLS_KEY": "unset",
    "READ_TIMEOUT": "8s",
    "IDLE_TIMEOUT": "65s",
    "MAX_CONNECTIONS": "10000",
    "DRAIN_DELAY": "0s",
    "DRAIN_TIMEOUT": "25s",
    "BODY_FORMAT": "text",
    "CORS_ORIGINS": "*",
    "COLLECT_PATHS": "/collect",
    "SCRIPT_PATH": "/estat.js",
    "SDK_ROUTES": "none",
    "SERVICE_NAME": "estat-ingest",
    "S3_TIMEOUT": "3s",
    "S3_APP_RETRIES": "2",
    "S3_ENDPOINT_URL": "unset",
    "UPLOAD_CONCURRENCY": "2",
    "S3_CONDITIONAL_PUTS": "true",
    "S3_SSE": "unset",
    "S3_SSE_KMS_KEY_ID": "unset",
    "S3_STORAGE_CLASS": "unset",
    "S3_TAGS": "unset",
    "DLQ_DIR": "./data/dlq",
    "DLQ_MAX_AGE": "0",
    "DLQ_MAX_SIZE_BYTES": "19327352832",
    "DLQ_ON_FULL": "reject",
    "DISK_RESERVE": "64MiB",
    "DURABILITY": "journal",
    "WORKERS": "1",
    "JOURNAL_DIR": "<DLQ_DIR>/journal",
    "MANIFESTS": "true",
    "MANIFEST_PREFIX": "<RAW_PREFIX>_manifest",
    "COMPACT_PREFIX": "<RAW_PREFIX>_parquet",
    "PARTITION_TZ": "UTC",
    "TRUSTED_PROXIES": "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7",
    "PROXY_PROTOCOL": "false",
    "CLIENT_IP_HEADERS": "X-Forwarded-For,CloudFront-Viewer-Address",
    "WRITE_KEYS": "unset",
    "RATE_LIMIT": "unset",
    "RATE_BURST": "twice the limit",
    "MAX_CONNECTIONS_PER_IP": "0",
    "IP_MODE": "full",
    "COOKIES": "all",
    "RESPECT_GPC": "false",
    "EXTRA_HEADERS": "none",
    "TS_MS": "false",
    "LOG_LEVEL": "info",
    "LOG_PRETTY": "false",
    "LOG_SAMPLE_N": "1",
    "DEBUG_CHECKS": "false",
}

BUCKET = {"RAW_BUCKET": "events", "AWS_REGION": "eu-west-1"}

EVERYTHING = {
    **BUCKET,
    "HTTP_ADDR": "[::1]:9090",
    "ADMIN_ADDR": "unix:/run/estat/admin.sock",
    "READ_TIMEOUT": "1m30s",
    "CORS_ORIGINS": "https://a.example, https://B.example:8443,https://*.c.example",
    "COLLECT_PATHS": "/collect, /c/v1",
    "SCRIPT_PATH": "/js/own.js",
    "SDK_ROUTES": "Segment,posthog",
    "RATE_LIMIT": "600/m",
    "RATE_BURST": "50",
    "TRUSTED_PROXIES": "10.1.0.0/16,2001:db8::1",
    "CLIENT_IP_HEADERS": "CloudFront-Viewer-Address",
    "IP_MODE": "Mask",
    "COOKIES": "sid, __Host-id,SID",
    "EXTRA_HEADERS": "Content-Type,ce-*",
    "RAW_PREFIX": "env=prod/raw",
    "DLQ_PREFIX": "env=prod/bad",
    "MANIFEST_PREFIX": "env=prod/told",
    "COMPACT_PREFIX": "env=prod/hours",
    "PARTITION_TZ": "Asia/Kolkata",
    "S3_ENDPOINT_URL": "http://127.0.0.1:9000/s3/",
    "S3_SSE": "AWS:KMS",
    "S3_STORAGE_CLASS": "standard_ia",
    "S3_TAGS": "team=data&note=a+b%2Fc",
    "BATCH_BYTES": "512KiB",
    "DURABILITY": "fsync",
    "DLQ_DIR": "/var/lib/dlq",
    "JOURNAL_DIR": "/var/lib/journal",
    "DLQ_MAX_AGE": "72h",
    "LOG_LEVEL": "WARN",
    "LOG_PRETTY": "yes",
}


def problems_of(environ):
    with pytest.raises(ConfigErrors) as caught:
        load(environ)
    return {problem.variable: str(problem) for problem in caught.value.problems}


def test_the_table_has_these_names_and_defaults():
    assert {variable.name: variable.default for variable in VARIABLES} == DEFAULTS


def test_without_any_variable_it_runs():
    settings = load({})
    assert settings.http_addr == ("", 8080)
    assert settings.raw_bucket is None
    assert settings.store_dir == Path("data/objects")
    assert settings.journal_dir == Path("data/dlq/journal")
    assert settings.flush_interval == 120.0
    assert settings.batch_bytes == 8 * 1024 * 1024
    assert settings.dlq_max_age == 0.0
    assert settings.cors_origins == ("*",)
    assert settings.s3_conditional_puts is True
    assert ipaddress.ip_network("fc00::/7") in settings.trusted_proxies


def test_every_form_is_read():
    settings = load(EVERYTHING)
    assert settings.http_addr == ("::1", 9090)
    assert settings.admin_addr == Path("/run/estat/admin.sock")
    assert settings.read_timeout == 90.0
    assert settings.cors_origins == ("https://a.example", "https://b.example:8443", "https://*.c.example")
    assert settings.collect_paths == ("/collect", "/c/v1")
    assert settings.sdk_routes == ("segment", "posthog")
    assert settings.rate_limit == Rate(600, 60)
    assert settings.rate_burst == 50
    assert settings.trusted_proxies == (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("2001:db8::1"))
    assert settings.client_ip_headers == ("CloudFront-Viewer-Address",)
    assert settings.ip_mode == "mask"
    assert settings.cookies == ("sid", "__Host-id", "SID")
    assert settings.extra_headers == ("content-type", "ce-*")
    assert settings.partition_tz == ZoneInfo("Asia/Kolkata")
    assert settings.s3_endpoint_url == "http://127.0.0.1:9000/s3"
    assert settings.s3_sse == "aws:kms"
    assert settings.s3_storage_class == "STANDARD_IA"
    assert settings.s3_tags == "team=data&note=a+b%2Fc"
    assert settings.log_level == "warning"
    assert settings.log_pretty is True


@pytest.mark.parametrize("environ", [{}, EVERYTHING, {"TRUSTED_PROXIES": "none", "CORS_ORIGINS": "NONE"}])
def test_what_is_shown_can_be_given_back(environ):
    settings = load(environ)
    texts = {variable.name: shown(variable, settings) for variable in VARIABLES}
    assert load({name: text for name, text in texts.items() if text != "(unset)"}) == settings


def test_settings_have_a_field_for_each_variable_and_no_other():
    fields = {field.name for field in dataclasses.fields(Settings)} - {"http_host", "http_port"} | {"http_addr"}
    assert fields == {variable.field for variable in VARIABLES}


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).http_port = 1


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_value_counts_as_unset(blank):
    assert load({variable.name: blank for variable in VARIABLES}) == load({})


def test_the_name_of_the_sdk_is_read_when_ours_is_unset():
    sdk = {"AWS_ENDPOINT_URL": "http://sdk:1"}
    assert load({**BUCKET, **sdk}).s3_endpoint_url == "http://sdk:1"
    assert load({**BUCKET, **sdk, "S3_ENDPOINT_URL": "http://ours:2"}).s3_endpoint_url == "http://ours:2"
    assert list(problems_of({**BUCKET, "AWS_ENDPOINT_URL": "sdk:1"})) == ["AWS_ENDPOINT_URL"]


def test_all_problems_are_reported_at_once_one_line_each():
    with pytest.raises(ConfigErrors) as caught:
        load(
            {
                "HTTP_ADDR": "8080",
                "READ_TIMEOUT": "8",
                "MAX_BODY_SIZE": "16 KB\nX",
                "DURABILITY": "yes",
                "RAW_BUCKET": "events",
                "DLQ_PREFIX": "raw/dlq",
                "JOURNAL_DIR": "./data/dlq/own",
            }
        )
    assert str(caught.value).split("\n") == [
        "HTTP_ADDR: accepted host:port, :port or [IPv6]:port, the port from 0 to 65535, got '8080'; "
        "write HTTP_ADDR=:8080",
        "READ_TIMEOUT: accepted a duration such as 250ms, 3s, 2m or 24h, from 1ms to 87600h, got '8'; "
        "write READ_TIMEOUT=8s",
        "MAX_BODY_SIZE: accepted bytes or a size such as 16KiB or 8MiB, from 1 to 8MiB, got '16 KB\\nX'",
        "DURABILITY: accepted memory, journal or fsync, got 'yes'",
        "AWS_REGION: accepted a region such as eu-west-1 (required with RAW_BUCKET), got nothing; "
        "set it to the region of RAW_BUCKET",
        "DLQ_PREFIX: accepted a prefix that is neither RAW_PREFIX ('raw') nor above or below it, got 'raw/dlq'",
        "JOURNAL_DIR: accepted a directory that is neither DLQ_DIR nor above or below it, got 'data/dlq/own'",
    ]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("HTTP_ADDR", ("8080", "host", ":65536", ":-1", "[::1:80", "[::g]:80", "a b:80", ":80 80", ":\u0663")),
        (
            "READ_TIMEOUT",
            ("0", "0s", "-1s", "5", "5 s", "1d", "1e3s", "inf", "nan", "1s2", ".5s", "999999h", "\u0663s"),
        ),
        ("MAX_BODY_SIZE", ("0", "-1", "1.5KiB", "1KB", "1k", "9MiB", "16 KiB", "KiB", "1" * 5000)),
        ("MAX_HEADER_BYTES", ("63", "2MiB")),
        ("BATCH_SIZE", ("0", "-5", "5_000", "5e3", "\u0665", "0x10", "1" * 5000)),
        ("BODY_FORMAT", ("xml", "text,json")),
        (
            "CORS_ORIGINS",
            (
                "https://a.example:443",
                "http://a.example:80",
                "https://[::1]:443",
                "https://a.example:",
                "https://a.example:07",
                "https://a:b:c",
                "*,https://a.example",
                "a.example",
                "https://a.example/",
                "https://",
                "https://u@a.example",
                ",",
            ),
        ),
        ("TRUSTED_PROXIES", ("10.0.0.1/8", "10.0.0.0/33", "localhost", "10.0.0.0/8,", "*")),
        (
            "CLIENT_IP_HEADERS",
            (
                "X-Real*",
                "*",
                "X-A,X*B",
                "'X-Real-IP'",
                "'X-A,X-B'",
                "X-A,'X-B'",
                "X Forwarded For",
                "X-A:",
                "a,,b",
                "X-\nA",
            ),
        ),
        ("CORS_ORIGINS", ("https://*", "https://*example.com", "https://a.*.example.com", "*.example.com")),
        (
            "WRITE_KEYS",
            (
                "web:'s3cret'",
                'a:b,web:"s3cret"',
                "secret",
                ":secret",
                "a:",
                "a b:c",
                "a:b c",
                "a:b,",
                "a:b,c:b",
                "a:s\u00e9",
                "none",
            ),
        ),
        ("RATE_LIMIT", ("0/s", "100", "100/h", "-1/s", "1.5/s", "1000001/s", "\u0661/s")),
        ("RATE_BURST", ("0", "1.5")),
        ("SDK_ROUTES", ("segment,segment", "mixpanel", "segment,", "all")),
        (
            "COLLECT_PATHS",
            (
                *("none", "collect", "/", "/collect/", "//c", "/a?b", "/a%20b", "/a,/a", "/c\u00e9", "/" + "a" * 128),
                *("/health", "/status", "/c,/c/batch", ",".join(f"/{number}" for number in range(17))),
            ),
        ),
        (
            "SCRIPT_PATH",
            ("estat.js", "/", "/a.js?v=1", "/a,/b", "/collect", "/collect/batch", "/ready", "/" + "a" * 128),
        ),
        ("COOKIES", ("_ga*", "sid,*", "'sid'", "sid,'id'", "sid,all", "a=b", "a;b", "a,,b", "a\nb", "s\u00efd")),
        (
            "EXTRA_HEADERS",
            (
                *(
                    "'content-type'",
                    "'ce-*'",
                    "*",
                    "a*b",
                    "a**",
                    "A b",
                    "a,",
                    "X-\nA",
                    "Host",
                    "Cookie",
                    "cook ie",
                    "cookie*",
                    "Authorization",
                ),
                *(
                    "X-Write-Key",
                    "Proxy-Authorization",
                    "Forwarded",
                    "Via",
                    "X-Forwarded-*",
                    "X-Real-IP",
                    "X-Forwarded-For",
                ),
                *("CF-Connecting-IP", "CF-Connecting-IPv6", "True-Client-IP", "CloudFront-Viewer-Address"),
            ),
        ),
        ("RAW_BUCKET", (".", "..", '"events"', "'events'", "my bucket", "a/b", "b" * 256, "arn:aws:sqs:eu-west-1:1:q")),
        ("AWS_REGION", ("eu west", "-eu", "eu_west_1")),
        (
            "DLQ_DIR",
            (
                "a\0b",
                "a\nb",
                "/data/\x7fdlq",
                "/data/dlq\x85x",
                '"/data/dlq"',
                "'/data/dlq'",
                '"',
                '/data/dlq"',
                "~/dlq",
                "~",
                "$DATA/dlq",
                "${DATA}/dlq",
            ),
        ),
        ("STORE_DIR", ('"./objects"', "~root/objects")),
        ("JOURNAL_DIR", ("'journal'",)),
        ("TLS_CERT", ('"/etc/tls/cert.pem"',)),
        ("TLS_KEY", ("'/etc/tls/key.pem'",)),
        (
            "ADMIN_ADDR",
            (
                '"unix:/run/admin.sock"',
                "unix:/run/a\nb",
                "unix:/",
                "unix:/run/",
                'unix:"/run/admin.sock"',
                'unix:/run/admin.sock"',
                "':9090'",
            ),
        ),
        (
            "RAW_PREFIX",
            ("/", "a//b", "../a", "a/../b", ".", ".hidden/raw", "a b", "lock", "lock/raw", "a/" * 300 + "a"),
        ),
        ("PARTITION_TZ", ("Europe", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "UTC+1h", "\udc80")),
        (
            "S3_ENDPOINT_URL",
            (
                "minio:9000",
                "ftp://h",
                "http://",
                "http://h:x",
                "http://h:0",
                "http://h:99999",
                "http://u:p@h",
                "http://h?a",
                "http://[h",
                *("http://my_minio:9000", "http://a..b", "http://.", "http://-a.b", "http://a-", "http://a" + "b" * 63),
                *("https://\ud55c\uad6d.example", "http://" + "a." * 128),
                'http://h"',
            ),
        ),
        ("S3_CONDITIONAL_PUTS", ("maybe", "2", "null")),
        ("S3_SSE", ("aws:s3", "kms")),
        ("S3_STORAGE_CLASS", ("COLD",)),
        ("S3_TAGS", ("team", "a=1&a=2", "aws:x=1", "=1", "a=%ff", "a=\u20ac", "&".join(f"t{n}=1" for n in range(11)))),
        ("LOG_LEVEL", ("loud", "10")),
        ("LOG_SAMPLE_N", ("0",)),
        ("SERVICE_NAME", ("a\nb", "x" * 129, '"web"', "'web'", "'", 'web"')),
    ],
)
def test_a_value_of_another_form_is_refused_by_name(name, bad):
    for text in bad:
        environ = {**BUCKET, name: text} if name.startswith("S3_") else {name: text}
        found = problems_of(environ)
        assert name in found, text
        assert "\n" not in found[name]


@given(st.dictionaries(st.sampled_from([variable.name for variable in VARIABLES]), st.text()))
@example({"DLQ_DIR": "\0", "PARTITION_TZ": "\ud800", "JOURNAL_DIR": "x" * 5000})
def test_whatever_the_environment_says_the_answer_is_settings_or_one_line_a_problem(environ):
    try:
        for line in warnings(load(environ), environ):
            assert line.isprintable()
    except ConfigErrors as error:
        found = error
    else:
        return
    lines = str(found).splitlines()
    assert len(lines) == len(found.problems) > 0
    for line, problem in zip(lines, found.problems, strict=True):
        assert line.startswith(f"{problem.variable}: accepted ")
        assert ", got " in line
        assert line.isprintable()


@pytest.mark.parametrize(
    ("sdks", "path", "user"),
    [
        ("none", "/metrics", "a page"),
        ("snowplow", "/i", "SDK_ROUTES=snowplow"),
        ("segment,posthog", "/e", "SDK_ROUTES=posthog"),
        ("segment", "/v1", "SDK_ROUTES=segment"),
    ],
)
def test_a_path_has_one_use_and_the_problem_names_the_other(sdks, path, user):
    found = problems_of({"SDK_ROUTES": sdks, "COLLECT_PATHS": f"/collect,{path}"})
    assert found["COLLECT_PATHS"].endswith(f"{user} has it")
    assert load({"COLLECT_PATHS": "/i,/e,/v1"}).collect_paths == ("/i", "/e", "/v1"), "without the SDK it is free"


@pytest.mark.parametrize(
    ("environ", "user"),
    [
        ({"SCRIPT_PATH": "/collect"}, "COLLECT_PATHS has it"),
        ({"SCRIPT_PATH": "/i", "SDK_ROUTES": "snowplow"}, "SDK_ROUTES=snowplow has it"),
        ({"COLLECT_PATHS": "/a,/estat.js"}, "COLLECT_PATHS has it"),
    ],
)
def test_the_script_has_a_path_of_its_own_or_none(environ, user):
    assert problems_of(environ)["SCRIPT_PATH"].endswith(user)
    assert load({"SCRIPT_PATH": "None", "COLLECT_PATHS": "/estat.js"}).script_path is None


def test_no_two_sdks_share_a_path():
    every = [path for sdk in SDK_PATHS.values() for path in (*sdk.post, *sdk.get)]
    assert len(every) == len(set(every))
    assert load({"SDK_ROUTES": ",".join(SDK_PATHS)}).sdk_routes == tuple(SDK_PATHS)


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_quotes_that_no_shell_took_away_are_told_whatever_the_variable(variable, quote):
    """Docker keeps the quotes of an env file: they would name a folder, a service, a header that nobody sends."""
    plain = {**EVERYTHING, "WRITE_KEYS": "web:s3cret", "TLS_CERT": "/c.pem", "TLS_KEY": "/k.pem"}.get(variable.name)
    text = plain or shown(variable, load({}))
    if text == "(unset)":
        text = {"MAX_CONNECTIONS_PER_IP": "5", "S3_SSE_KMS_KEY_ID": "alias/x"}[variable.name]
    problem = problems_of({**EVERYTHING, variable.name: f"{quote}{text}{quote}"})[variable.name]
    assert variable.secret or problem.endswith(f"; write {variable.name}={text}")


def test_quotes_inside_a_value_are_its_own():
    settings = load({"DLQ_DIR": "/data/o'dlq", "SERVICE_NAME": 'the "web" one', "WRITE_KEYS": "web:a\"b'c'"})
    assert settings.dlq_dir == Path("/data/o'dlq")
    assert settings.service_name == 'the "web" one'
    assert settings.write_keys == (("web", "a\"b'c'"),)


def test_an_origin_keeps_a_port_that_browsers_send():
    origins = ("http://a.example:443", "https://a.example:80", "https://a.example:8443", "https://*.b.example:444")
    assert load({"CORS_ORIGINS": ",".join((*origins, "https://[::1]:8080", "null"))}).cors_origins[:4] == origins


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::a00:0/104", "::a00:0/104"),
    ],
)
def test_a_mapped_network_of_proxies_is_its_ipv4_one(written, meant):
    assert load({"TRUSTED_PROXIES": written}).trusted_proxies == (ipaddress.ip_network(meant),)


@pytest.mark.parametrize(
    ("events", "admin", "meet"),
    [
        (":8080", ":8080", True),
        (":8080", "0.0.0.0:8080", True),
        (":8080", "[::]:8080", True),
        (":8080", "127.0.0.1:8080", True),
        (":8080", "localhost:8080", True),
        (":8080", "collector.example:8080", True),
        ("127.0.0.1:8080", ":8080", True),
        ("0.0.0.0:8080", "10.0.0.1:8080", True),
        ("[::]:8080", "[::1]:8080", True),
        ("localhost:8080", "127.0.0.1:8080", True),
        ("localhost:8080", "[::1]:8080", True),
        ("[::1]:8080", "[0:0:0:0:0:0:0:1]:8080", True),
        ("collector.example:8080", "Collector.Example:8080", True),
        (":8080", "127.0.0.1:9090", False),
        (":0", ":0", False),
        ("10.0.0.1:8080", "127.0.0.1:8080", False),
        ("0.0.0.0:8080", "[::1]:8080", False),
        ("0.0.0.0:8080", "[::]:8080", False),
        ("collector.example:8080", "127.0.0.1:8080", False),
    ],
)
def test_the_two_listeners_have_an_address_each(events, admin, meet):
    environ = {"HTTP_ADDR": events, "ADMIN_ADDR": admin}
    if not meet:
        assert load(environ).admin_addr is not None
        return
    assert f"; HTTP_ADDR={events} has it: take another port" in problems_of(environ)["ADMIN_ADDR"]


milliseconds = st.integers(0, 87_600 * 3_600_000)


@given(milliseconds)
@example(1)
@example(3_600_000)
def test_durations_round_trip_to_the_millisecond(count):
    seconds = count / 1000
    assert parse_duration(format_duration(seconds)) == seconds
    assert parse_duration(f"{count}ms") == seconds


@given(hours=st.integers(0, 99), minutes=st.integers(0, 99), seconds=st.integers(0, 99))
def test_a_duration_of_several_units_is_their_sum(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.integers(0, (1 << 50)))
@example(0)
@example(1024)
@example(1025)
def test_sizes_round_trip_to_the_byte(size):
    assert parse_size(format_size(size)) == size
    assert parse_size(str(size)) == parse_size(f"{size}B") == size


@given(st.text())
def test_a_text_that_is_no_duration_or_size_is_a_value_error(text):
    for parse in (parse_duration, parse_size):
        try:
            parse(text)
        except ValueError:
            continue
        assert text[0].isdigit()
        assert text.isascii()


@pytest.mark.parametrize(
    ("raw", "dlq"), [("raw", "raw"), ("raw", "raw/"), ("raw", "raw/dlq"), ("raw/new", "raw"), ("raw", "/raw/x")]
)
def test_equal_or_nested_prefixes_are_refused(raw, dlq):
    assert list(problems_of({"RAW_PREFIX": raw, "DLQ_PREFIX": dlq})) == ["DLQ_PREFIX"]


@pytest.mark.parametrize(
    ("raw", "dlq", "manifest"),
    [("raw", "bad", "raw"), ("raw", "bad", "bad/x"), ("a/b", "bad", "a"), ("raw", "raw_manifest", "")],
)
def test_a_manifest_prefix_that_is_another_one_is_refused(raw, dlq, manifest):
    environ = {"RAW_PREFIX": raw, "DLQ_PREFIX": dlq, "MANIFEST_PREFIX": manifest}
    assert list(problems_of(environ)) == ["MANIFEST_PREFIX"]


@pytest.mark.parametrize("other", ["raw", "raw/deep", "raw_dlq", "raw_manifest"])
def test_a_prefix_of_whole_hours_that_is_another_one_is_refused(other):
    assert list(problems_of({"COMPACT_PREFIX": other})) == ["COMPACT_PREFIX"]


def test_whole_hours_lie_beside_the_objects_unless_told_otherwise():
    assert load({"RAW_PREFIX": "events"}).compact_prefix == "events_parquet"


def test_manifests_lie_beside_the_objects_unless_told_otherwise():
    assert load({"RAW_PREFIX": "env=prod/raw"}).manifest_prefix == "env=prod/raw_manifest"
    assert load({"MANIFEST_PREFIX": "told"}).manifest_prefix == "told"


def test_prefixes_that_only_begin_alike_are_taken():
    assert load({"RAW_PREFIX": "raw", "DLQ_PREFIX": "raw_dlq"}).dlq_prefix == "raw_dlq"


@pytest.mark.parametrize(
    ("environ", "refused"),
    [
        ({"STORE_DIR": "x", "DLQ_DIR": "x"}, "DLQ_DIR"),
        ({"STORE_DIR": "x", "DLQ_DIR": "x/y"}, "DLQ_DIR"),
        ({"STORE_DIR": "x/y", "DLQ_DIR": "x"}, "DLQ_DIR"),
        ({"STORE_DIR": "x", "DLQ_DIR": "./z/../x"}, "DLQ_DIR"),
        ({"DLQ_DIR": "x", "JOURNAL_DIR": "x"}, "JOURNAL_DIR"),
        ({"DLQ_DIR": "x", "JOURNAL_DIR": "x/journal/y"}, "JOURNAL_DIR"),
        ({"DLQ_DIR": "x/y", "JOURNAL_DIR": "x"}, "JOURNAL_DIR"),
        ({"STORE_DIR": "x", "JOURNAL_DIR": "x/journal"}, "JOURNAL_DIR"),
    ],
)
def test_equal_or_nested_directories_are_refused(environ, refused):
    assert refused in problems_of(environ)


def test_the_default_journal_lies_in_the_dead_letter_directory():
    assert load({"DLQ_DIR": "x"}).journal_dir == Path("x/journal")
    assert load({"DLQ_DIR": "x", "JOURNAL_DIR": "./x/journal"}).journal_dir == Path("x/journal")


def test_a_directory_that_is_another_one_by_a_link_is_refused(tmp_path):
    os.symlink(tmp_path / "dlq", tmp_path / "journal")
    environ = {"DLQ_DIR": str(tmp_path / "dlq"), "JOURNAL_DIR": str(tmp_path / "journal")}
    assert list(problems_of(environ)) == ["JOURNAL_DIR"]


def test_with_a_bucket_the_store_directory_does_not_matter():
    assert load({**BUCKET, "STORE_DIR": "x", "DLQ_DIR": "x"}).raw_bucket == "events"


def test_a_kms_key_needs_kms():
    assert list(problems_of({**BUCKET, "S3_SSE_KMS_KEY_ID": "alias/k"})) == ["S3_SSE_KMS_KEY_ID"]
    assert list(problems_of({**BUCKET, "S3_SSE_KMS_KEY_ID": "alias/k", "S3_SSE": "AES256"})) == ["S3_SSE_KMS_KEY_ID"]
    assert load({**BUCKET, "S3_SSE_KMS_KEY_ID": "alias/k", "S3_SSE": "aws:kms:dsse"}).s3_sse_kms_key_id == "alias/k"


def test_a_header_that_tells_the_address_is_not_stored_as_it_is():
    environ = {"CLIENT_IP_HEADERS": "X-Viewer", "EXTRA_HEADERS": "content-type,x-viewer"}
    assert "got 'x-viewer'" in problems_of(environ)["EXTRA_HEADERS"]


SECRET = "hunter2"


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
@pytest.mark.parametrize(
    "text", [f"http://user:{SECRET}@host:9000", f"user:{SECRET}@host\n", f"https://host/?X-Amz-Signature={SECRET}\n"]
)
def test_credentials_pasted_into_any_variable_are_not_repeated_by_its_problem(variable, text):
    said = ""
    try:
        load({variable.name: text})
    except ConfigErrors as found:
        said = str(found) + repr(found)
    assert SECRET not in said


@pytest.mark.parametrize(
    ("name", "text"), [("S3_SSE_KMS_KEY_ID", SECRET), ("WRITE_KEYS", f"web:{SECRET},app:x{SECRET}")]
)
def test_a_secret_is_neither_shown_nor_part_of_a_problem(name, text):
    (variable,) = (variable for variable in VARIABLES if variable.name == name)
    settings = load({**BUCKET, "S3_SSE": "aws:kms", name: text})
    assert shown(variable, settings) == "(set, not shown)"
    for wrong in (f"{text} {text}", f"{SECRET}\n{SECRET}"):
        with pytest.raises(ConfigErrors) as caught:
            load({name: wrong, **BUCKET})
        assert SECRET not in str(caught.value) + repr(caught.value)


def test_the_secrets_are_those_that_are_tested():
    assert [variable.name for variable in VARIABLES if variable.secret] == ["WRITE_KEYS", "S3_SSE_KMS_KEY_ID"]


def test_a_key_may_have_two_secrets_while_one_follows_the_other():
    assert load({"WRITE_KEYS": "web:old, web:n:ew"}).write_keys == (("web", "old"), ("web", "n:ew"))


ONE_AT_ONCE = {"UPLOAD_QUEUE": "1", "UPLOAD_CONCURRENCY": "1"}


def warned(environ, tmp_path):
    ours = {"DLQ_MAX_SIZE_BYTES": "16MiB", "DLQ_DIR": str(tmp_path), "ADMIN_ADDR": "127.0.0.1:9090"}
    settings = load({**ours, **environ})
    return [line.split(":")[0] for line in warnings(settings, {})]


def test_the_defaults_warn_of_nothing_but_the_disk(tmp_path):
    assert warned({"DISK_RESERVE": "0"}, tmp_path) == []


@pytest.mark.parametrize(
    ("environ", "about"),
    [
        ({"ADMIN_ADDR": ""}, "ADMIN_ADDR"),
        ({"DRAIN_TIMEOUT": "31s"}, "DRAIN_DELAY and DRAIN_TIMEOUT"),
        ({"DRAIN_DELAY": "6s"}, "DRAIN_DELAY and DRAIN_TIMEOUT"),
        ({"IDLE_TIMEOUT": "60s"}, "IDLE_TIMEOUT"),
        ({"RATE_BURST": "5"}, "RATE_BURST"),
        ({"BATCH_BYTES": "64MiB"}, "MAX_BUFFER_BYTES"),
        ({"MAX_BATCH_BODY_SIZE": "16MiB", "BATCH_BYTES": "16MiB", **ONE_AT_ONCE}, "MAX_BUFFER_BYTES"),
        ({"MAX_BATCH_BODY_SIZE": "9MiB"}, "MAX_BATCH_BODY_SIZE"),
        ({"BATCH_BYTES": "512KiB"}, "MAX_BATCH_BODY_SIZE"),
        ({"DLQ_MAX_SIZE_BYTES": "18"}, "DLQ_MAX_SIZE_BYTES"),
        ({"PROXY_PROTOCOL": "true", "TRUSTED_PROXIES": "none"}, "PROXY_PROTOCOL"),
        ({"DLQ_MAX_SIZE_BYTES": "900000TiB"}, "DLQ_MAX_SIZE_BYTES"),
        ({"DISK_RESERVE": "900000TiB"}, "DISK_RESERVE"),
        ({"S3_STORAGE_CLASS": "STANDARD"}, "S3_STORAGE_CLASS"),
        ({"S3_ENDPOINT_URL": "http://minio:9000"}, "S3_ENDPOINT_URL"),
        ({**BUCKET, "S3_STORAGE_CLASS": "GLACIER"}, "S3_STORAGE_CLASS"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(environ, about, tmp_path):
    assert warned({"DISK_RESERVE": "0", **environ}, tmp_path) == [about]


def test_the_disk_is_measured_where_the_directory_will_be(tmp_path):
    assert warned({"DLQ_DIR": str(tmp_path / "not" / "yet"), "DISK_RESERVE": "900000TiB"}, tmp_path) == ["DISK_RESERVE"]


def test_c4_a_directory_that_cannot_be_looked_at_is_no_warning_and_no_crash(tmp_path):
    assert warned({"DLQ_DIR": str(tmp_path / ("x" * 300)), "DISK_RESERVE": "900000TiB"}, tmp_path) == []


# --- slips -----------------------------------------------------------------------------------------------------------


def meant(environ):
    return [line for line in warnings(load({}), environ) if "it is not read;" in line]


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("DURABILTY", "DURABILITY"),
        ("BATCH_SZIE", "BATCH_SIZE"),
        ("S3_BUCKET", "RAW_BUCKET"),
        ("RAWBUCKET", "RAW_BUCKET"),
        ("batch_size", "BATCH_SIZE"),
        ("S3-TIMEOUT", "S3_TIMEOUT"),
        ("FLUSH_INTERVALL", "FLUSH_INTERVAL"),
        ("DLQ_MAX_BYTES", "DLQ_MAX_SIZE_BYTES"),
        ("HTTP_PORT", "HTTP_ADDR"),
        ("S3_ENDPOINT", "S3_ENDPOINT_URL"),
        ("UPLOAD_CONCURENCY", "UPLOAD_CONCURRENCY"),
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("LOG_FORMAT", "LOG_PRETTY"),
    ],
)
def test_f2_a_name_that_nobody_reads_is_told_with_the_one_that_was_meant(name, real):
    assert meant({name: "x"}) == [f"{name}: it is not read; {real} was probably meant"]


def test_f2_a_name_that_only_begins_like_ours_is_told_too():
    (line,) = meant({"S3_ACCELERATE_ALWAYS_ON": "x"})
    assert line == "S3_ACCELERATE_ALWAYS_ON: it is not read; docs/configuration.md lists what is"


def test_f2_the_names_of_others_are_none_of_our_business():
    foreign = {
        "_": "/usr/bin/env",
        "A": "b",
        "PATH": "",
        "HOME": "",
        "TERM": "",
        "PYTHONPATH": "",
        "HTTP_PROXY": "",
        "AWS_REGION": "",
        "AWS_DEFAULT_REGION": "",
        "AWS_ENDPOINT_URL": "",
        "AWS_ENDPOINT_URL_S3": "",
        "AWS_PROFILE": "",
        "S3_SERVICE_HOST": "",
        "S3_PORT_443_TCP_ADDR": "",
        "ECS_CONTAINER_METADATA_URI_V4": "",
        "KUBERNETES_PORT": "",
        "WORKDIR": "",
        "TMPDIR": "",
        "PS1": "",
        "SHLVL": "",
        "LOGNAME": "",
        "MAIL": "",
    }
    assert meant(foreign) == []
    assert meant({variable.name: "" for variable in VARIABLES}) == []


@pytest.mark.parametrize(
    ("name", "text", "written"),
    [
        ("S3_TIMEOUT", "5sec", "5s"),
        ("S3_TIMEOUT", "5", "5s"),
        ("S3_TIMEOUT", "1500 ms", "1500ms"),
        ("DLQ_MAX_AGE", "7d", "168h"),
        ("DLQ_MAX_AGE", "2 weeks", "336h"),
        ("FLUSH_INTERVAL", "2min", "2m"),
        ("BATCH_BYTES", "1MB", "1MiB"),
        ("BATCH_BYTES", "512k", "512KiB"),
        ("BATCH_BYTES", "1.5MiB", "1536KiB"),
        ("BATCH_BYTES", "64_000", "64000"),
        ("BATCH_SIZE", "5,000", "5000"),
        ("BATCH_SIZE", "5k", "5000"),
        ("RAW_BUCKET", "s3://events/raw", "events"),
        ("RAW_PREFIX", "s3://events/raw/web/", "raw/web"),
        ("RAW_PREFIX", "raw//web", "raw/web"),
        ("RAW_PREFIX", "import/dt=2026-11-23", "import"),
        ("HTTP_ADDR", "8080", ":8080"),
        ("HTTP_ADDR", "http://0.0.0.0:8080/", "0.0.0.0:8080"),
        ("HTTP_ADDR", "*:8080", ":8080"),
        ("HTTP_ADDR", "localhost", "localhost:8080"),
        ("HTTP_ADDR", "::1", "[::1]:8080"),
        ("HTTP_ADDR", "::1:9000", "[::1]:9000"),
        ("S3_ENDPOINT_URL", "minio:9000", "http://minio:9000"),
        ("S3_CONDITIONAL_PUTS", "enabled", "true"),
        ("DURABILITY", "jurnal", "journal"),
        ("LOG_LEVEL", "warnings", "warning"),
        ("CORS_ORIGINS", "https://a.example/ b.example", "https://a.example,https://b.example"),
        ("RATE_LIMIT", "100", "100/s"),
        ("RATE_LIMIT", "60 per minute", "60/m"),
        ("RATE_LIMIT", "100rps", "100/s"),
        ("TRUSTED_PROXIES", "10.0.0.0/8 192.168.0.0/16", "10.0.0.0/8,192.168.0.0/16"),
        ("CORS_ORIGINS", "https://A.example:443,http://b.example:80", "https://A.example,http://b.example"),
        ("CORS_ORIGINS", "https://*.a.example:443", "https://*.a.example"),
        ("COOKIES", "*", "all"),
        ("S3_TAGS", "team:data,env:prod", "team=data&env=prod"),
    ],
)
def test_a_likely_slip_is_told_with_what_to_write(name, text, written):
    problem = problems_of({**(BUCKET if name.startswith("S3_") else {}), name: text})[name]
    assert problem.endswith(f"got '{text}'; write {name}={written}")
    load({**BUCKET, name: written})


def test_no_guess_is_made_where_none_would_be_taken():
    assert problems_of({"S3_TIMEOUT": "soon"})["S3_TIMEOUT"].endswith("got 'soon'")
    assert problems_of({"MAX_CONNECTIONS": "5000k"})["MAX_CONNECTIONS"].endswith("got '5000k'")
    assert "write" not in problems_of({"S3_ENDPOINT_URL": "u:hunter2@minio:9000"})["S3_ENDPOINT_URL"]


@pytest.mark.parametrize("unit", ["", ".5k", ".5 MB", ".5days", "/s", ".5 weeks"])
@pytest.mark.parametrize("name", ["BATCH_SIZE", "BATCH_BYTES", "FLUSH_INTERVAL", "RATE_LIMIT", "HTTP_ADDR", "S3_TAGS"])
def test_a_value_of_any_length_is_a_problem_of_one_line_that_guesses_nothing(name, unit):
    assert "; write " not in problems_of({**BUCKET, name: "9" * 400 + unit})[name]


def test_without_a_working_directory_only_relative_paths_are_a_problem(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert set(problems_of({})) == {"STORE_DIR", "DLQ_DIR"}
    assert set(problems_of({**BUCKET, "DLQ_DIR": "/data/dlq", "JOURNAL_DIR": "journal"})) == {"JOURNAL_DIR"}
    settings = load({**BUCKET, "DLQ_DIR": "/data/dlq"})
    assert differing(settings)["DLQ_DIR"] == "/data/dlq"


@pytest.mark.parametrize("name", ["RAW_PREFIX", "DLQ_PREFIX"])
@pytest.mark.parametrize("prefix", ["import/dt=2026-11-23", "hr=07", "a/hr=x/b", "dt="])
def test_c10_a_prefix_with_a_part_of_a_partition_is_refused(name, prefix):
    """Dead letters below it would never be found again."""
    assert "none `dt=…` or `hr=…`" in problems_of({name: prefix})[name]
    load({name: prefix.replace("dt=", "xdt=").replace("hr=", "xhr=")})


def test_f7_the_services_own_endpoint_comes_before_that_of_all():
    both = {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2"}
    assert load({**BUCKET, **both}).s3_endpoint_url == "http://s3:2"
    assert load({**BUCKET, "AWS_ENDPOINT_URL": "http://all:1"}).s3_endpoint_url == "http://all:1"
    assert load({**BUCKET, **both, "S3_ENDPOINT_URL": "http://ours:3"}).s3_endpoint_url == "http://ours:3"
    assert "AWS_ENDPOINT_URL_S3" in problems_of({**BUCKET, "AWS_ENDPOINT_URL_S3": "x"})


def test_f7_the_region_may_stand_where_the_sdk_reads_it_too():
    assert load({"RAW_BUCKET": "events", "AWS_DEFAULT_REGION": "eu-west-3"}).aws_region == "eu-west-3"
    assert load({**BUCKET, "AWS_DEFAULT_REGION": "eu-west-3"}).aws_region == BUCKET["AWS_REGION"]


def test_f7_an_empty_address_is_an_unset_one():
    assert load({"HTTP_ADDR": ""}).http_addr == load({"HTTP_ADDR": " "}).http_addr == ("", 8080)


@pytest.mark.parametrize(
    "url",
    [
        "http://minio:9000",
        "https://s3.example.com",
        "http://s3.example.com.:80/prefix",
        "http://10.0.0.1:9000",
        "http://[::1]:9000",
        "http://[fe80::1%25eth0]:9000",
        "http://A-b.xn--3e0b707e",
    ],
)
def test_an_endpoint_that_the_sdk_takes_is_taken(url):
    assert is_valid_endpoint_url(url) or is_valid_ipv6_endpoint_url(url)
    assert load({**BUCKET, "S3_ENDPOINT_URL": url}).s3_endpoint_url == url
