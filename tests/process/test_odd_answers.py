"""Something other than a store answers, and means nothing by it: what was acknowledged stays until a store has it."""

from __future__ import annotations

import pytest

from tests.faults.proxy import HEALTHY, Fault
from tests.process.client import Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment
from tests.store.scripted_server import answered

PAGE = b"<html><title>Sign in to the network</title></html>"
PAGES = {
    "412": answered(412, PAGE, content_type="text/html"),
    "200": answered(200, PAGE, content_type="text/html"),
    "200_weak": answered(200, PAGE, content_type="text/html", etag='W/"68f0-2c"'),
    "200_strong": answered(200, PAGE, content_type="text/html", etag='"68f0-2c"'),
    "200_empty": answered(200),
    "301": answered(301, b"<Error><Code>PermanentRedirect</Code></Error>", content_type="application/xml"),
    "307": answered(307),
}
CASES = [
    *(("true", page) for page in PAGES),
    *(("false", page) for page in ("412", "200", "200_strong", "301")),
]


@pytest.mark.parametrize(("conditional", "page"), CASES, ids=["-".join(case) for case in CASES])
def test_a_page_in_the_place_of_the_store_takes_no_event(
    collectors, s3_server, proxy, bucket, figure, conditional, page
):
    """A1, A2, A3 and A10: dead letters, which are created, and batches from memory, which are put."""
    sent = Sent()
    more = {"S3_CONDITIONAL_PUTS": conditional, "S3_TIMEOUT": "2s", "BATCH_SIZE": "100", "FLUSH_INTERVAL": "200ms"}
    collector = collectors(s3_environment(proxy.url, bucket, **more)).start()
    proxy.refuse()
    send(sent, collector.port, 500)
    collector.wait_until(lambda m: m.value("estat_events_pending", place="dlq") == 500, what="not all in the DLQ")
    dead_letters = {path.rsplit("/", 1)[-1] for path in collector.left_on_disk()}
    proxy.fault = Fault(page=PAGES[page])
    proxy.listen()
    send(sent, collector.port, 500)

    def answered_with_pages(_) -> bool:
        names = [e.target.partition("?")[0].rsplit("/", 1)[-1] for e in list(proxy.exchanges) if e.handed_back]
        return len(names) >= 2 and not dead_letters.isdisjoint(names)

    collector.wait_until(answered_with_pages, 60, "nobody asked what answers with pages")
    seen = collector.wait_until(
        lambda m: m.value("estat_events_pending", place="dlq") == 1000, what="not all in the DLQ"
    )
    assert seen.value("estat_events_stored_total") == 0
    assert all(line["error"] for line in collector.said("put_failed"))
    proxy.fault = HEALTHY
    collector.wait_delivered(60)
    assert sent.refused == 0, sent.statuses
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == 1000
    collector.stop(10)
    figure(f"{page}, conditional puts {conditional}", found)
