"""``python -m examples.chat.client``: the chat in a terminal."""

from __future__ import annotations

import argparse
import getpass
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from rich.console import Console
from rich.text import Text

from ..serving import BACKENDS
from .connection import ChatConnection, ChatError, connect
from .messages import clean_name

HELP = """\
/image PATH    send a picture      /save ID PATH  save one (its id is shown with it)
/who           who is here         /quit          leave"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.chat.client", description="Chat in the terminal.", epilog=HELP
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8001/", help="(%(default)s)")
    parser.add_argument("--room", default="lobby", help="(%(default)s)")
    parser.add_argument("--name", default=getpass.getuser(), help="(%(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio", help="(%(default)s)")
    return parser.parse_args(arguments)


class Terminal:
    """Shows what comes, and sends what is typed."""

    def __init__(self, connection: ChatConnection, console: Console) -> None:
        self._connection = connection
        self._console = console
        self._people: set[str] = set()
        self._nonces = map(str, itertools.count(1))

    async def show(self) -> None:
        """Show messages until the connection ends."""
        async for message in self._connection.messages():
            await self._show(message)

    async def _show(self, fields: dict[str, Any]) -> None:
        match fields["type"]:
            case "welcome":
                self._people = set(fields["members"])
                others = len(self._people) - 1
                self._print(
                    f"#{fields['room']}, you are {fields['name']}, {others} more here", "dim"
                )
            case "message":
                self._print_from(fields, fields["text"])
            case "image":
                size = f"{fields['size'] / 1024:.0f} KiB"
                name = fields["name"] or "picture"
                self._print_from(fields, f"[{name}, {size}] /save {fields['id']} …")
            case "presence":
                self._people |= set(fields["joined"])
                self._people -= set(fields["left"])
            case "refused":
                self._print(f"not sent: {fields['reason']}", "red")
            case "status" if fields["shared"] is False:
                self._print("other servers cannot be reached; members on this one go on", "yellow")

    def _print_from(self, fields: dict[str, Any], text: str) -> None:
        at = time.strftime("%H:%M", time.localtime(int(fields["at"]) / 1000))
        # As text, not markup, and without characters that control the terminal.
        self._console.print(
            Text.assemble((f"{at} ", "dim"), (fields["from"], "bold cyan"), " ", _printable(text))
        )

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(_printable(text), style))

    async def type(self) -> None:
        """Send what is typed, until the end of the input or ``/quit``."""
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command, *rest = line.split(maxsplit=2) or [""]
            match command:
                case "":
                    pass
                case "/quit":
                    return
                case "/who":
                    self._print(", ".join(sorted(self._people)), "dim")
                case "/image" if rest:
                    await self._send_picture(_path(" ".join(rest)))
                case "/save" if len(rest) == 2:
                    await self._save(rest[0], _path(rest[1]))
                case _ if command.startswith("/"):
                    self._print(HELP, "dim")
                case _:
                    await self._connection.say(next(self._nonces), line.strip())

    async def _send_picture(self, path: Path) -> None:
        try:
            content = await anyio.Path(path).read_bytes()
        except OSError as exc:
            self._print(f"cannot read it: {exc}", "red")
            return
        await self._connection.post_picture(next(self._nonces), path.name, content)

    async def _save(self, ident: str, path: Path) -> None:
        content = await self._connection.picture(ident)
        if content is None:
            self._print("this picture is not kept any more", "red")
            return
        try:
            await anyio.Path(path).write_bytes(content)
        except OSError as exc:
            self._print(f"cannot save it: {exc}", "red")
        else:
            self._print(f"saved {path}", "dim")


def _path(typed: str) -> Path:
    return Path(typed.strip()).expanduser()


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


async def chat(options: argparse.Namespace) -> None:
    """Chat until the user leaves.

    :raises ChatError: the server has ended the connection.
    """
    console = Console(highlight=False, soft_wrap=True)
    name = clean_name(options.name)
    async with connect(options.url, room=options.room, name=name) as connection:
        terminal = Terminal(connection, console)

        async def type_until_the_end() -> None:
            await terminal.type()
            # The last messages are shown when the server has answered them.
            await connection.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(type_until_the_end)
            await terminal.show()
            tasks.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the client and return its exit status."""
    options = parse(arguments)
    status = 0
    try:
        anyio.run(chat, options, **BACKENDS[options.backend])
    except* (ChatError, OSError) as exc:
        for one in exc.exceptions:
            print(f"chat: {one}", file=sys.stderr)
        status = 1
    except* KeyboardInterrupt:
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())
