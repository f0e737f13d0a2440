"""Keys are found and refreshed beside the puts, once for all who wait, and anew when there is a doubt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from ingest.disk import StorageError
from ingest.store import credentials as room
from ingest.store.credentials import MANDATORY, Credentials


@dataclass
class Keys:
    access_key: str
    secret_key: str = "secret"
    token: str | None = None


class Session:
    """A session of the SDK and the source that it settles on."""

    def __init__(self, name, *, expires_in=None, takes=None, fails=None, nothing=False):
        self.name = name
        self.expires_in = expires_in
        self.takes = takes
        self.fails = fails
        self.nothing = nothing
        self.looks = 0
        if expires_in is not None:
            self.refresh_needed = lambda seconds: self.expires_in < (900 if seconds is None else seconds)

    def get_component(self, _name):
        return self

    def get_config_variable(self, _name):
        return None

    def insert_after(self, _name, _source):
        pass

    def remove(self, _name):
        pass

    async def get_credentials(self):
        return None if self.nothing else self

    async def get_frozen_credentials(self):
        self.looks += 1
        if self.takes is not None:
            await self.takes.wait()
        if self.fails is not None:
            raise self.fails
        return Keys(f"{self.name}{self.looks}")


class Request:
    def __init__(self):
        self.context = {}


def credentials_of(*sessions):
    left = list(sessions)

    async def open_session():
        return left.pop(0)

    async def read_tokens(_session):
        pass

    return Credentials(open_session, read_tokens)


def signs_with(credentials):
    request = Request()
    credentials.sign(request)
    return request.context["signing"]["request_credentials"].access_key


def test_keys_that_never_expire_are_found_once():
    async def main():
        credentials = credentials_of(only := Session("a"))
        await asyncio.gather(*(credentials.ready() for _ in range(5)))
        await credentials.ready()
        assert only.looks == 1
        assert signs_with(credentials) == "a1"

    asyncio.run(main())


def test_keys_near_their_end_are_refreshed_beside_the_puts_which_go_on_with_the_old_ones(monkeypatch):
    monkeypatch.setattr(room, "LOOK_PAUSE", 0.0)

    async def main():
        credentials = credentials_of(source := Session("a", expires_in=3600))
        await credentials.ready()
        source.expires_in, source.takes = MANDATORY + 1, asyncio.Event()
        for _ in range(3):
            await asyncio.wait_for(credentials.ready(), 5)
            await asyncio.sleep(0)
        assert (source.looks, signs_with(credentials)) == (2, "a1")
        source.takes.set()
        source.expires_in = 3600
        await credentials._looking
        assert signs_with(credentials) == "a2"

    asyncio.run(main())


def test_a_refresh_beside_the_puts_that_fails_is_not_begun_by_each_of_them():
    async def main():
        credentials = credentials_of(source := Session("a", expires_in=MANDATORY + 1))
        await credentials.ready()
        for _ in range(10):
            await credentials.ready()
            await asyncio.sleep(0)
        assert source.looks == 1

    asyncio.run(main())


def test_keys_at_their_end_are_waited_for():
    async def main():
        credentials = credentials_of(source := Session("a", expires_in=MANDATORY - 1))
        await credentials.ready()
        await credentials.ready()
        assert (source.looks, signs_with(credentials)) == (2, "a2")

    asyncio.run(main())


def test_b6_a_doubt_has_a_session_of_its_own_look_again():
    async def main():
        credentials = credentials_of(Session("old"), Session("new"))
        await credentials.ready()
        credentials.doubt()
        await credentials.ready()
        assert signs_with(credentials) == "new1"

    asyncio.run(main())


@pytest.mark.parametrize("bad", [{"fails": KeyError("AccessKeyId")}, {"nothing": True}], ids=["raises", "has none"])
def test_after_a_look_that_failed_everything_is_asked_anew(bad):
    async def main():
        credentials = credentials_of(Session("bad", **bad), Session("good"))
        with pytest.raises((KeyError, StorageError)):
            await credentials.ready()
        await credentials.ready()
        assert signs_with(credentials) == "good1"

    asyncio.run(main())


def test_b5_a_source_that_never_answers_ends_in_time_and_is_asked_anew(monkeypatch):
    monkeypatch.setattr(room, "LONGEST_WAIT", 0.02)

    async def main():
        credentials = credentials_of(Session("hangs", takes=asyncio.Event()), Session("good"))
        with pytest.raises(StorageError) as caught:
            await asyncio.wait_for(credentials.ready(), 5)
        assert "source of credentials" in caught.value.hint
        await credentials.ready()
        assert signs_with(credentials) == "good1"

    asyncio.run(main())


def test_one_who_no_longer_waits_does_not_take_the_look_from_the_others():
    async def main():
        gate = asyncio.Event()
        credentials = credentials_of(source := Session("a", takes=gate))
        waiting = [asyncio.create_task(credentials.ready()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*waiting[1:])
        assert source.looks == 1

    asyncio.run(main())
