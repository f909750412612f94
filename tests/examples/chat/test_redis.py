"""Several servers, one chat: through Redis, also when that goes away and comes back."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from coredis import Redis

from examples.chat.redis_log import Host, RedisLog
from examples.chat.redis_streams import SCRIPTS
from tests.examples.chat.chatting import PNG, Member, Running, chat_server, member
from tests.support.backends import one_backend
from tests.support.redis import RedisServer, redis_server
from tests.support.waiting import LIMIT

MIB = 1 << 20

# coredis does not close the memory streams of a connection that it could not make.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored .*MemoryObject:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for this test alone."""
    with redis_server(tmp_path) as server:
        yield server
    gc.collect()


async def shared(one: Member, expected: bool) -> None:
    """Wait until the member is told that other servers are, or are not, reached."""
    with anyio.fail_after(LIMIT):
        while (await one.receive("status"))["shared"] is not expected:
            pass


async def present(server: Running, names: set[str]) -> None:
    """Wait until a new member is told that all these are there."""
    with anyio.fail_after(LIMIT):
        missing = names
        while missing:
            async with member(server, "looking") as looking:
                missing = names - set(looking.welcome["members"])
            await anyio.sleep(0.05)


@pytest.mark.anyio
async def test_members_of_two_servers_see_the_same_in_the_same_order(redis: RedisServer) -> None:
    async with (
        chat_server("--redis", redis.url) as first,
        chat_server("--redis", redis.url, "--driver=copy") as second,
        member(first, "ada") as ada,
        member(second, "bob") as bob,
    ):
        assert ada.welcome["shared"] is True

        async def talk(one: Member) -> None:
            for number in range(50):
                await one.say(f"{one.welcome['name']} {number}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk, ada)
            tasks.start_soon(talk, bob)
        seen = await ada.receive_texts(100)
        assert seen == await bob.receive_texts(100)
        for name in ("ada", "bob"):
            said = [text for text in seen if text.startswith(name)]
            assert said == [f"{name} {number}" for number in range(50)]
        # A picture takes the same way.
        await ada.post_picture(PNG + bytes(MIB))
        assert await bob.see_picture() == PNG + bytes(MIB)
        # And both know of each other.
        for server in (first, second):
            await present(server, {"ada", "bob"})


@pytest.mark.anyio
@one_backend
async def test_names_are_unlike_each_other_on_all_servers(redis: RedisServer) -> None:
    async with (
        chat_server("--redis", redis.url) as first,
        chat_server("--redis", redis.url) as second,
        member(first, "alice") as one,
        member(first, "alice") as two,
    ):
        await present(second, {"alice", "alice-2"})
        async with member(second, "alice") as three, member(second, "alice-2") as four:
            names = [each.welcome["name"] for each in (one, two, three, four)]
            assert names == ["alice", "alice-2", "alice-3", "alice-2-2"]
            await three.say("who am I?")
            heard = await one.receive("message")
            assert (heard["from"], heard["by"]) == ("alice-3", three.welcome["id"])


@pytest.mark.anyio
async def test_a_server_that_comes_later_has_the_history_and_the_pictures(
    redis: RedisServer,
) -> None:
    async with chat_server("--redis", redis.url) as first, member(first, "ada") as ada:
        for number in range(120):
            await ada.say(str(number))
        # Pictures do not come by the same connection.
        await ada.receive_texts(120)
        await ada.post_picture(PNG + bytes(1000))
        await ada.receive("image")
        async with chat_server("--redis", redis.url) as second, member(second, "bob") as bob:
            assert await bob.receive_texts(99) == [str(number) for number in range(21, 120)]
            assert await bob.see_picture() == PNG + bytes(1000)
            await ada.say("and on")
            assert await bob.receive_texts(1) == ["and on"]


@pytest.mark.anyio
async def test_rooms_go_on_without_redis_and_nothing_acknowledged_is_lost(
    redis: RedisServer,
) -> None:
    async with (
        chat_server("--redis", redis.url) as first,
        chat_server("--redis", redis.url) as second,
        member(first, "ada") as ada,
        member(second, "bob") as bob,
        member(first, "eve") as eve,
    ):
        assert (await ada.say_and_wait("before"))["type"] == "ack"
        assert await bob.receive_texts(1) == ["before"]
        redis.kill()
        await shared(ada, False)
        await shared(bob, False)
        # Each room goes on within its server; the sender is told that it is not kept yet.
        nonces = []
        for number in range(5):
            nonces.append(await ada.say(f"ada {number}"))
            pending = await ada.receive("pending", "ack")
            assert (pending["type"], pending["nonce"]) == ("pending", nonces[-1])
        assert await eve.receive_texts(6) == ["before", *(f"ada {n}" for n in range(5))]
        await bob.say("bob 0")
        assert await bob.receive_texts(1) == ["bob 0"]
        assert (await bob.receive("pending", "ack"))["type"] == "pending"
        # It comes back without its data: what it had is put back, what waits is appended.
        redis.start()
        acknowledged = [(await ada.receive("ack"))["nonce"] for _ in nonces]
        assert acknowledged == nonces
        assert await bob.receive_texts(5) == [f"ada {n}" for n in range(5)]
        # Nobody sees anything twice, and what is said now follows.
        await bob.say_and_wait("after")
        assert await eve.receive_texts(2) == ["bob 0", "after"]
        async with (
            chat_server("--redis", redis.url) as third,
            member(third, "late") as late,
        ):
            history = await late.receive_texts(8)
            assert history[0] == "before"
            assert history[-1] == "after"
            assert sorted(history[1:-1]) == ["ada 0", "ada 1", "ada 2", "ada 3", "ada 4", "bob 0"]


@pytest.mark.anyio
async def test_redis_restarts_while_members_talk(redis: RedisServer) -> None:
    """Everything said is acknowledged, delivered once to everybody, and in the history."""
    lines = 60
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(chat_server("--redis", redis.url)) for _ in range(2)
        ]
        members = [
            await stack.enter_async_context(member(server, f"member{number}"))
            for number, server in enumerate(servers * 2)
        ]
        expected = {f"{number}: {line}" for number in range(4) for line in range(lines)}
        said = anyio.Event()
        seen: dict[int, list[str]] = {}
        acknowledged: dict[int, set[str]] = {number: set() for number in range(4)}

        async def talk(number: int) -> None:
            for line in range(lines):
                await members[number].say(f"{number}: {line}")
                await anyio.sleep(0.01)
                if (number, line) == (0, lines // 3):
                    said.set()

        async def listen(number: int) -> None:
            texts: list[str] = seen.setdefault(number, [])
            while len(texts) < len(expected) or len(acknowledged[number]) < lines:
                message = await members[number].receive("message", "ack", "refused")
                assert message["type"] != "refused", message
                if message["type"] == "message":
                    texts.append(message["text"])
                else:
                    acknowledged[number].add(message["nonce"])

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(talk, number)
                tasks.start_soon(listen, number)
            await said.wait()
            redis.kill()
            await anyio.sleep(0.1)
            redis.start()
        for number in range(4):
            assert len(seen[number]) == len(expected)
            assert set(seen[number]) == expected
            for sender in range(4):
                own = [text for text in seen[number] if text.startswith(f"{sender}:")]
                assert own == [f"{sender}: {line}" for line in range(lines)]
        # Members of the same server agree even then.
        assert seen[0] == seen[2]
        assert seen[1] == seen[3]
        async with chat_server("--redis", redis.url) as third, member(third, "late") as late:
            history = set(await late.receive_texts(100))
            assert len(history) == 100
            assert history <= expected


@pytest.mark.anyio
async def test_what_is_under_way_when_redis_goes_is_delivered_here(redis: RedisServer) -> None:
    async with (
        chat_server("--redis", redis.url) as server,
        member(server, "ada") as ada,
        member(server, "bob") as bob,
    ):
        redis.freeze()
        await ada.say("into the void")
        redis.kill()
        assert await bob.receive_texts(1) == ["into the void"]
        assert (await ada.receive("pending", "ack"))["type"] == "pending"
        redis.start()
        await ada.receive("ack")
        # It is not delivered again.
        await ada.say_and_wait("next")
        assert await bob.receive_texts(1) == ["next"]


@pytest.mark.anyio
async def test_messages_missed_while_the_connection_was_lost_are_read_from_the_stream(
    redis: RedisServer,
) -> None:
    async with chat_server("--redis", redis.url) as server, member(server, "ada") as ada:
        await ada.say("before")
        assert await ada.receive_texts(1) == ["before"]
        redis.ask("CLIENT KILL TYPE pubsub")
        # As another server would, except that nobody is told of it.
        missed = json.dumps({"type": "message", "id": "x-1", "from": "eve", "at": 1, "text": "hi"})
        redis.ask(f"XADD zc_chat:log:lobby * header {json.dumps(missed)}")
        assert await ada.receive_texts(1) == ["hi"]
        await shared(ada, True)
        async with member(server, "late") as late:
            assert await late.receive_texts(2) == ["before", "hi"]


@pytest.mark.anyio
async def test_what_redis_lost_and_one_server_had_is_delivered_by_the_others(
    redis: RedisServer,
) -> None:
    redis.let_in("first")
    redis.let_in("second")
    async with (
        chat_server("--redis", redis.url_of("first")) as first,
        # It cannot put back what it has seen but not kept.
        chat_server("--redis", redis.url_of("second"), history=1) as second,
        member(first, "ada") as ada,
        member(second, "bob") as bob,
        member(second, "dan") as dan,
    ):
        for text in ("seen by both", "and kept by both"):
            await ada.say_and_wait(text)
        assert await bob.receive_texts(2) == ["seen by both", "and kept by both"]
        assert redis.ask("ACL SETUSER second off") == "+OK"
        redis.ask("CLIENT KILL USER second")
        await shared(bob, False)
        await ada.say_and_wait("seen by one")
        # Redis comes back without anything, and the server that knows less comes first.
        redis.kill()
        await shared(ada, False)
        redis.start()
        redis.let_in("second")
        await shared(bob, True)
        await bob.say_and_wait("later")
        assert await bob.receive_texts(1) == ["later"]
        redis.let_in("first")
        await shared(ada, True)
        assert await bob.receive_texts(1) == ["seen by one"]
        # The late messages do not make the later ones come again.
        redis.ask("CLIENT KILL TYPE pubsub")
        for one in (ada, bob):
            await shared(one, False)
            await shared(one, True)
        await ada.say_and_wait("the end")
        seen = ["seen by both", "and kept by both", "later", "seen by one", "the end"]
        assert await dan.receive_texts(5) == seen
        async with chat_server("--redis", redis.url) as third, member(third, "late") as late:
            history = ["seen by both", "and kept by both", "seen by one", "later", "the end"]
            assert await late.receive_texts(5) == history
        async with member(first, "eve") as eve:
            assert await eve.receive_texts(5) == history


@pytest.mark.anyio
@pytest.mark.parametrize("back", [["first", "second"], ["second", "first"]], ids=str)
async def test_what_a_server_has_appended_and_not_got_back_is_delivered_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, back: list[str]
) -> None:
    """Redis goes when another server has got a message, and its own server has not."""
    logs: list[RedisLog] = []
    deaf: list[RedisLog] = []
    attach, received = RedisLog.attach, RedisLog._received

    def note(log: RedisLog, host: Host) -> None:
        logs.append(log)
        attach(log, host)

    async def receive(log: RedisLog, message: Any) -> None:
        if log not in deaf:
            await received(log, message)

    monkeypatch.setattr(RedisLog, "attach", note)
    monkeypatch.setattr(RedisLog, "_received", receive)
    redis.let_in("first")
    redis.let_in("second")
    async with (
        chat_server("--redis", redis.url_of("first")) as first,
        chat_server("--redis", redis.url_of("second")) as second,
        member(first, "ada") as ada,
        member(second, "bob") as bob,
    ):
        await ada.say_and_wait("before")
        assert await ada.receive_texts(1) == await bob.receive_texts(1) == ["before"]
        deaf.append(logs[0])
        await ada.say_and_wait("once")
        assert await bob.receive_texts(1) == ["once"]
        redis.kill()
        assert await ada.receive_texts(1) == ["once"]
        members = {"first": ada, "second": bob}
        for one in members.values():
            await shared(one, False)
        deaf.clear()
        redis.start()
        for user in back:
            redis.let_in(user)
            await shared(members[user], True)
        await ada.say_and_wait("after")
        assert await bob.receive_texts(1) == await ada.receive_texts(1) == ["after"]
        async with chat_server("--redis", redis.url) as third, member(third, "late") as late:
            assert await late.receive_texts(3) == ["before", "once", "after"]


@pytest.mark.anyio
async def test_what_is_appended_twice_is_in_the_log_once(redis: RedisServer) -> None:
    """As when a server loses the connection before it gets the answer."""
    script = (SCRIPTS / "append.lua").read_text()
    async with Redis.from_url(redis.url, decode_responses=True) as client:
        append = client.register_script(script)

        async def post(number: int, again: str = "") -> object:
            header = json.dumps({"id": f"x-{number}"})
            return await append(
                ["log", "latest", "picture"], [number, header, "", 500, 60, "room", again]
            )

        assert [bool(await post(number)) for number in (1, 1, 2, 1, 2, 3)] == [1, 0, 1, 0, 0, 1]
        entries = [entry.field_values["header"] for entry in await client.xrange("log")]
        assert [json.loads(header)["id"] for header in entries] == ["x-1", "x-2", "x-3"]
        # Redis has lost everything, and another server has put the message back.
        await client.delete(["latest"])
        assert not await post(3, "x-3")
        assert await post(4, "x-4")
        assert await client.xlen("log") == 4


@pytest.mark.anyio
@one_backend
async def test_too_much_in_the_backlog_is_refused(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.chat.redis_log.BACKLOG", 3)
    redis.kill()
    async with chat_server("--redis", redis.url) as server, member(server, "ada") as ada:
        assert ada.welcome["shared"] is False
        kinds = []
        for _ in range(5):
            await ada.say("hello")
            kinds.append((await ada.receive("pending", "refused"))["type"])
        assert kinds == ["pending"] * 3 + ["refused"] * 2
        # What was not refused is appended when Redis is there.
        redis.start()
        for _ in range(3):
            await ada.receive("ack")
