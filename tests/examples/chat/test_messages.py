"""The format: any input is a message, refused, or malformed."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import TextMessage

from examples.chat.messages import (
    NAME_CHARACTERS,
    MalformedError,
    RefusedError,
    Say,
    check_picture,
    clean_name,
    clean_room,
    encode,
    parse,
    post_picture,
    post_text,
)
from examples.chat.rooms import text_frame

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
        assert isinstance(parse(data), Say | None)


@given(st.dictionaries(st.sampled_from(["type", "nonce", "text", "id"]), anything | text))
def test_any_object_is_a_message_or_an_error(fields: dict[str, object]) -> None:
    with contextlib.suppress(MalformedError, RefusedError):
        assert isinstance(parse(json.dumps(fields)), Say | None)


@given(nonce=st.text(max_size=64), said=text)
def test_texts_arrive_unchanged_except_for_invisible_characters(nonce: str, said: str) -> None:
    data = json.dumps({"type": "say", "nonce": nonce, "text": said})
    try:
        say = parse(data)
    except RefusedError:
        return
    assert isinstance(say, Say)
    post = post_text("id-1", 1, "by", "ada", say)
    fields = json.loads(post.header)
    assert fields["text"] == say.text
    assert not set(say.text) & set("\x00\x1b\x7f\r\ud800\u202e")
    # A client reads the same from the frame.
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(text_frame(post.header))
    (received,) = client.events()
    assert isinstance(received, TextMessage)
    assert received.data == post.header.decode()


@given(st.binary(), st.one_of(text, st.integers(-9, 1 << 20).map(str)))
def test_any_text_is_the_size_of_a_preview_or_refused(data: bytes, size: str) -> None:
    with contextlib.suppress(RefusedError):
        picture = check_picture("1", "name", data, size)
        assert picture.preview == int(size)


@given(st.binary())
def test_any_bytes_are_a_picture_or_refused(data: bytes) -> None:
    begins = data.startswith((PNG, b"GIF8", b"\xff\xd8\xff", b"RIFF"))
    # What begins like a picture may still be something else.
    with contextlib.suppress(RefusedError) if begins else pytest.raises(RefusedError):
        check_picture("1", "name", data)


@given(nonce=text, name=text, content=st.binary())
def test_a_picture_is_told_of_as_it_is(nonce: str, name: str, content: bytes) -> None:
    picture = check_picture(nonce, name, PNG + content)
    assert picture.content == PNG + content
    post = post_picture("id-1", 1, "by", "ada", picture)
    fields = json.loads(post.header)
    assert (fields["name"], fields["size"]) == (clean_name(name), len(PNG + content))
    assert fields["media_type"] == "image/png"


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
