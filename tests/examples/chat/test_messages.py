"""The format: any input is a message, refused, or malformed."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection

from examples.chat.messages import (
    NAME_CHARACTERS,
    Fetch,
    MalformedError,
    Picture,
    RefusedError,
    Say,
    clean_name,
    clean_room,
    encode,
    join_picture,
    parse_picture,
    parse_text,
    post_picture,
    post_text,
    split_picture,
)
from examples.chat.websocket import Incoming, binary_frame, close_frame, text_frame

PNG = b"\x89PNG\r\n\x1a\n"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
# Every character, lone surrogates too: JSON can name them.
text = st.text(st.characters(exclude_categories=()))


@given(st.text() | anything.map(json.dumps))
def test_any_text_is_a_message_or_an_error(data: str) -> None:
    with contextlib.suppress(MalformedError, RefusedError):
        assert isinstance(parse_text(data), Say | Fetch)


@given(st.dictionaries(st.sampled_from(["type", "nonce", "text", "id"]), anything | text))
def test_any_object_is_a_message_or_an_error(fields: dict[str, object]) -> None:
    with contextlib.suppress(MalformedError, RefusedError):
        assert isinstance(parse_text(json.dumps(fields)), Say | Fetch)


@given(nonce=st.text(max_size=64), said=text)
def test_texts_arrive_unchanged_except_for_invisible_characters(nonce: str, said: str) -> None:
    data = json.dumps({"type": "say", "nonce": nonce, "text": said})
    try:
        say = parse_text(data)
    except RefusedError:
        return
    assert isinstance(say, Say)
    post = post_text("id-1", 1, "ada", say)
    fields = json.loads(post.header)
    assert fields["text"] == say.text
    assert not set(say.text) & set("\x00\x1b\x7f\r\ud800")
    # A client reads the same from the frame.
    incoming = Incoming(Connection(ConnectionType.CLIENT), text_bytes=1 << 20, binary_bytes=0)
    (received,) = incoming.feed(text_frame(post.header))
    assert received == post.header.decode()


@given(st.binary() | st.binary().map(lambda data: b"\x00\x02{}" + data))
def test_any_bytes_are_a_picture_or_an_error(data: bytes) -> None:
    with pytest.raises((MalformedError, RefusedError)):
        parse_picture(data)


@given(nonce=st.text(max_size=64), name=text, content=st.binary())
def test_a_picture_arrives_as_it_was(nonce: str, name: str, content: bytes) -> None:
    header = json.dumps({"nonce": nonce, "name": name}).encode()
    if len(header) > 2048:
        return
    picture = parse_picture(join_picture(header, PNG + content))
    assert isinstance(picture, Picture)
    assert picture.content == PNG + content
    post = post_picture("id-1", 1, "ada", picture)
    assert post.content is not None
    incoming = Incoming(Connection(ConnectionType.CLIENT), text_bytes=0, binary_bytes=1 << 20)
    (received,) = incoming.feed(binary_frame(join_picture(post.header, post.content)))
    assert isinstance(received, bytes)
    fields, arrived = split_picture(received)
    assert arrived == PNG + content
    assert fields["name"] == picture.name
    assert fields["size"] == len(arrived)


@given(text)
def test_names_are_short_and_printable(name: str) -> None:
    cleaned = clean_name(name)
    assert cleaned.isprintable()
    assert len(cleaned) <= NAME_CHARACTERS
    assert cleaned == cleaned.strip() == clean_name(cleaned)
    cleaned.encode()
    room = clean_room(name)
    assert all(c == "-" or c.isalnum() for c in room)
    room.encode()


def test_frames_are_the_same_for_all() -> None:
    """A broadcast is one buffer: framing has no state, and does not mask."""
    header = encode(type="message", text="hello")
    assert text_frame(header) == text_frame(header)
    assert header in text_frame(header)
    assert close_frame(1013, "x" * 500)[1] <= 125
