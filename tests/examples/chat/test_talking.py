"""Members talk: everybody sees the same in the same order, and latecomers the history."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import anyio
import pytest
from wsproto.events import TextMessage

from examples.chat.connection import ChatError
from tests.examples.chat.chatting import PNG, Member, chat_server, member
from tests.support.backends import one_backend
from tests.support.waiting import until

MIB = 1 << 20


@pytest.fixture
def way(driver: str) -> str:
    """Every driver."""
    return f"--driver={driver}"


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
        nonce = await ada.post_picture(content, "a <b> picture.png")
        for one in (ada, bob):
            told = await one.receive("image")
            assert told["name"] == "a <b> picture.png"
            assert told["media_type"] == "image/png"
            assert told["size"] == len(content)
            assert (told["from"], told["by"]) == ("ada", ada.welcome["id"])
            assert await one.connection.picture(told["id"]) == content
        assert (await ada.receive("ack"))["nonce"] == nonce
        # Whoever comes later is told of it as well.
        async with member(server, "eve") as eve:
            assert await eve.see_picture() == content
        # A room has only what it has seen.
        async with member(server, "eve", room="elsewhere") as eve:
            assert await eve.connection.picture(told["id"]) is None
        # Without a preview there is none to be had.
        assert await bob.connection.picture(f"{told['id']}/preview") is None
        # Only members post.  A large body might meet a connection that is closed already.
        ada.connection.token = "guessed"
        await ada.post_picture(PNG)
        await bob.say_and_wait("a member")
        assert (await ada.receive("image", "message"))["type"] == "message"


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
                joined |= set((await ada.receive("presence"))["joined"])
        left: set[str] = set()
        while left != {"ada-2", "guest"}:
            left |= set((await ada.receive("presence"))["left"])


@pytest.mark.anyio
async def test_a_member_that_leaves_at_once_does_not_stay_in_the_list() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        while "ada" not in (await ada.receive("presence"))["joined"]:
            pass
        async with AsyncExitStack() as stack:
            async with member(server, "brief"):
                bob = await stack.enter_async_context(member(server, "bob"))
                assert bob.welcome["members"] == ["ada", "bob", "brief"]
            # It is gone before its arrival was told, but a member welcomed meanwhile knows of it.
            while "brief" not in (await bob.receive("presence"))["left"]:
                pass


@pytest.mark.anyio
async def test_text_is_cleaned_and_kept_as_it_is() -> None:
    # U+202E would turn round what follows it.
    said = "  <script>alert('x')</script> \x1b[31m\u0000 \u202eünï \U0001f600\n\tnext line  "
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
            await ada.post_picture(PNG + bytes([number]) * MIB)
            ids.append((await ada.receive("image"))["id"])
        found = [await ada.connection.picture(ident) for ident in ids]
        assert [content and content[-1] for content in found] == [None, None, 2, 3]


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


@pytest.mark.anyio
@one_backend
async def test_the_lobby_is_always_open_and_one_address_opens_few_rooms() -> None:
    async with chat_server(rooms=1, address_rooms=2, address_rooms_rate=0.001) as server:
        async with member(server, "ada", room="one"):
            # No place is left, but for the lobby.
            with pytest.raises(ChatError, match="503"):
                async with member(server, "bob", room="two"):
                    pass
            async with member(server, "bob") as bob:
                await bob.say_and_wait("here")
        with pytest.raises(ChatError, match="429"):
            async with member(server, "bob", room="three"):
                pass


@pytest.mark.anyio
@one_backend
@pytest.mark.parametrize("room", ["\U0001f389", "Team A!", "a/b", "-", "x" * 33])
async def test_the_name_of_a_room_is_not_silently_another(room: str) -> None:
    async with chat_server() as server:
        with pytest.raises(ChatError, match="400"):
            async with member(server, "ada", room=room):
                pass
        async with member(server, "ada", room=" TEAM-\xdc ") as ada:
            assert ada.welcome["room"] == "team-\xfc"


@pytest.mark.anyio
@one_backend
async def test_members_of_one_address_are_limited() -> None:
    async with chat_server(address_members=1) as server:
        async with member(server, "ada"):
            with pytest.raises(ChatError, match="429"):
                async with member(server, "bob"):
                    pass
        entered = False
        while not entered:
            with suppress(ChatError):
                async with member(server, "bob"):
                    entered = True


@pytest.mark.anyio
@one_backend
async def test_the_server_answers_who_asks_whether_it_is_there() -> None:
    async with chat_server() as server, member(server, "ada") as ada:
        await ada.connection._send(TextMessage(data='{"type": "beat"}'))
        await ada.receive("beat")
