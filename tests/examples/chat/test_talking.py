"""Members talk: everybody sees the same in the same order, and latecomers the history."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import anyio
import pytest

from examples.chat.connection import ChatError
from tests.examples.chat.chatting import PNG, Member, chat_server, member
from tests.support.backends import one_backend
from tests.support.waiting import until

MIB = 1 << 20


@pytest.fixture(params=["--driver=io_uring", "--driver=msg_zerocopy", "--driver=copy", "--plain"])
def way(request: pytest.FixtureRequest) -> str:
    """Every way to send."""
    if request.param.startswith("--driver="):
        # Skips where it cannot run.
        from tests.conftest import usable

        usable(request.param.removeprefix("--driver="))
    return request.param


@pytest.mark.anyio
async def test_everybody_sees_the_same_in_the_same_order(way: str) -> None:
    async with chat_server(way) as server, AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(member(server, f"member{number}"))
            for number in range(10)
        ]
        seen: dict[str, list[str]] = {}

        async def talk(one: Member, number: int) -> None:
            for line in range(5):
                await one.say(f"{number}: {line}")
            seen[one.welcome["name"]] = await one.receive_texts(50)

        async with anyio.create_task_group() as tasks:
            for number, one in enumerate(members):
                tasks.start_soon(talk, one, number)
        orders = list(seen.values())
        assert len(orders) == 10
        assert all(order == orders[0] for order in orders)
        for number in range(10):
            own = [text for text in orders[0] if text.startswith(f"{number}:")]
            assert own == [f"{number}: {line}" for line in range(5)]
        if server.ring is not None:
            ring = server.ring
            await until(lambda: ring.statistics().held + ring.statistics().in_flight == 0)
            assert ring.statistics().failed == 0
            assert ring.statistics().sends >= 10 * 50


@pytest.mark.anyio
async def test_a_picture_reaches_everybody_as_it_was(way: str) -> None:
    content = PNG + bytes(range(256)) * (3 * MIB // 256)
    async with (
        chat_server(way) as server,
        member(server, "ada") as ada,
        member(server, "bob") as bob,
    ):
        nonce = await ada.drop_picture(content, "a <b> picture.png")
        for one in (ada, bob):
            picture = await one.receive("image")
            assert picture.content == content
            assert picture.fields["name"] == "a <b> picture.png"
            assert picture.fields["media_type"] == "image/png"
            assert picture.fields["from"] == "ada"
        assert (await ada.receive("ack")).fields["nonce"] == nonce
        # Whoever comes later is told of it, and gets it when it asks.
        async with member(server, "eve") as eve:
            told = await eve.receive("image")
            assert told.content is None
            assert told.fields["size"] == len(content)
            await eve.connection.fetch(told.fields["id"])
            fetched = await eve.receive("image")
            assert fetched.content == content
            assert fetched.fields == told.fields
        # A room has only what it has seen.
        async with member(server, "eve", room="elsewhere") as eve:
            await eve.connection.fetch(told.fields["id"])
            assert (await eve.receive("gone", "image")).type == "gone"


@pytest.mark.anyio
async def test_latecomers_get_the_last_hundred_messages_and_miss_none() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        for number in range(150):
            await ada.say(str(number))
        await ada.receive_texts(150)
        async with member(server, "bob") as bob:
            assert await bob.receive_texts(100) == [str(number) for number in range(50, 150)]
            await ada.say("and on")
            assert await bob.receive_texts(1) == ["and on"]
        async with member(server, "bob", room="another") as bob:
            await bob.say("alone")
            assert await bob.receive_texts(1) == ["alone"]


@pytest.mark.anyio
async def test_joining_while_others_talk_misses_and_repeats_nothing() -> None:
    async with chat_server() as server, member(server, "ada") as ada:

        async def talk() -> None:
            for number in range(300):
                await ada.say(str(number))
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            for _ in range(5):
                async with member(server, "bob") as bob:
                    texts = list(map(int, await bob.receive_texts(20)))
                    assert texts == list(range(texts[0], texts[0] + 20))


@pytest.mark.anyio
async def test_members_are_told_who_is_here() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        assert ada.welcome["members"] == ["ada"]
        async with member(server, "  ada\n") as second, member(server, "") as third:
            # Names are cleaned, and unlike each other.
            assert second.welcome["name"] == "ada-2"
            assert third.welcome["name"] == "guest"
            assert third.welcome["members"] == ["ada", "ada-2", "guest"]
            joined: set[str] = set()
            while joined != {"ada", "ada-2", "guest"}:
                joined |= set((await ada.receive("presence")).fields["joined"])
        left: set[str] = set()
        while left != {"ada-2", "guest"}:
            left |= set((await ada.receive("presence")).fields["left"])


@pytest.mark.anyio
async def test_a_member_that_leaves_at_once_does_not_stay_in_the_list() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        while "ada" not in (await ada.receive("presence")).fields["joined"]:
            pass
        async with AsyncExitStack() as stack:
            async with member(server, "brief"):
                bob = await stack.enter_async_context(member(server, "bob"))
                assert bob.welcome["members"] == ["ada", "bob", "brief"]
            # It is gone before its arrival was told, but a member welcomed meanwhile knows of it.
            while "brief" not in (await bob.receive("presence")).fields["left"]:
                pass


@pytest.mark.anyio
async def test_text_is_cleaned_and_kept_as_it_is() -> None:
    said = "  <script>alert('x')</script> \x1b[31m\u0000 ünï \U0001f600\n\tnext line  "
    async with chat_server() as server, member(server, "ada") as ada:
        await ada.say(said)
        expected = "<script>alert('x')</script> [31m ünï \U0001f600\n\tnext line"
        assert await ada.receive_texts(1) == [expected]


@pytest.mark.anyio
@one_backend
async def test_pictures_are_kept_within_a_limit_and_the_others_are_gone() -> None:
    async with chat_server(picture_memory=3 * MIB) as server, member(server, "ada") as ada:
        ids = []
        for number in range(4):
            await ada.drop_picture(PNG + bytes([number]) * MIB)
            ids.append((await ada.receive("image")).fields["id"])
        for ident in ids:
            await ada.connection.fetch(ident)
        answers = [(await ada.receive("gone", "image")).type for _ in ids]
        assert answers == ["gone", "gone", "image", "image"]


@pytest.mark.anyio
@one_backend
async def test_an_empty_room_makes_place_for_another() -> None:
    async with chat_server(rooms=2) as server:
        async with member(server, "ada", room="one") as ada:
            async with member(server, "bob", room="two") as bob:
                await bob.say_and_wait("in two")
                with pytest.raises(ChatError, match="503"):
                    async with member(server, "eve", room="three"):
                        pass
            await ada.say_and_wait("in one")
            # bob has left, so there is place as soon as the server has seen that.
            entered = False
            while not entered:
                with suppress(ChatError):
                    async with member(server, "eve", room="three") as eve:
                        await eve.say_and_wait("in three")
                        entered = True
