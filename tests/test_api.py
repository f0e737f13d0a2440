"""docs/openapi.yaml says what the code answers: the same paths and methods, the same statuses."""

import json
from pathlib import Path

import yaml
from openapi_spec_validator import validate

from ingest.event import Event, Router, refusals
from ingest.event.refusals import BAD_KEY, BAD_ORIGIN, TOO_MANY, ClientError
from ingest.event.routes import ROUTES as PLAIN_ROUTES
from ingest.event.sdks import SDKS, routes_of

ROUTES = (*PLAIN_ROUTES, *(route for name in SDKS for route in routes_of(name)))

DESCRIPTION = yaml.safe_load((Path(__file__).parent.parent / "docs" / "openapi.yaml").read_text())
METHODS = {"get", "head", "post", "options"}


def answers():
    """What the description lists: path, method and the statuses of each; a path for each value of its parameter."""
    for template, operations in DESCRIPTION["paths"].items():
        (values,) = [parameter["schema"]["enum"] for parameter in operations.get("parameters", ())] or [[""]]
        for path in (template.replace("{call}", value) for value in values):
            for method in METHODS & operations.keys():
                yield path, method.upper(), {int(status) for status in operations[method]["responses"]}


def statuses_of(operations):
    return {int(status) for method in METHODS & operations.keys() for status in operations[method]["responses"]}


def test_the_description_is_valid():
    validate(DESCRIPTION)


def test_the_description_has_the_routes_of_the_code():
    described = {}
    for path, method, _ in answers():
        described.setdefault(path, set()).add(method)
    assert described == {route.path.decode(): set(route.methods.split(", ")) for route in ROUTES}


def test_the_description_has_every_status_that_the_code_refuses_with():
    known = {error.status for error in vars(refusals).values() if isinstance(error, ClientError)}
    described = {status for _, _, statuses in answers() for status in statuses if status >= 400}
    assert described == known


def test_the_description_has_404_for_the_pages_of_operators_and_for_paths_with_a_choice():
    """To others it is the answer to what is not described."""
    hidden = {path for path, operations in DESCRIPTION["paths"].items() if 404 in statuses_of(operations)}
    chosen = {path for path in DESCRIPTION["paths"] if "{" in path}
    assert hidden == {route.path.decode() for route in ROUTES if route.operators} | chosen


def test_every_event_may_be_refused_to_its_sender_and_nothing_else_may():
    for path, method, statuses in answers():
        handler, _ = Router(ROUTES).find(method.encode(), path.encode())
        asked = {BAD_KEY.status, BAD_ORIGIN.status, TOO_MANY.status}
        assert asked & statuses == (asked if isinstance(handler, Event) else set()), (method, path)


def test_an_event_that_is_too_large_gets_the_status_of_its_row():
    for path, method, statuses in answers():
        handler, _ = Router(ROUTES).find(method.encode(), path.encode())
        if isinstance(handler, Event):
            assert {413, 422} & statuses == {handler.oversize.body.status}, (method, path)


def test_the_description_has_the_answers_that_sdks_get():
    shown = DESCRIPTION["components"]["responses"]
    for name, kind in (("segment", "Success"), ("snowplow", "Tracked"), ("posthog", "Captured")):
        answer = SDKS[name].post.answer
        ((media, described),) = shown[kind]["content"].items()
        assert dict(answer.headers)["Content-Type"].partition(";")[0] == media
        assert (json.loads(answer.body) if "json" in media else answer.body.decode()) == described["schema"]["const"]
