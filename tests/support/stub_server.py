# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A server of chat completions on this machine that misbehaves in a dozen ways, as asked."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from stepalign_jax.config.critics import EndpointCritic
from stepalign_jax.problems.arithmetic import correct_trace

MODEL = "judge-32b"
KEY, SECRET = "STUB_SERVER_KEY", "sk-a-secret-that-must-not-be-written"
SLOW_SECS = 600.0  # longer than any client here waits

WAYS = (
    "slow", "half_sent", "malformed_json", "status_429", "status_500", "refusal", "empty",
    "wrong_model", "truncated", "unicode_rubbish", "connection_reset", "drip",
)  # fmt: skip


def endpoint_critic(url: str = "http://localhost:8000/v1", **changes: Any) -> EndpointCritic:
    """A config that asks the stub; each test changes what it is about."""
    settings: dict[str, Any] = {
        "url": url,
        "model": MODEL,
        "key_variable": KEY,
        "sees": "answer",
        "accepts": "trace",
        "temperature": 0.0,
        "max_new_tokens": 64,
        "concurrency": 8,
        "requests_per_minute": 0,
        "timeout_secs": 20.0,
        "max_retries": 0,
        "price_input": 2.0,
        "price_output": 8.0,
    }
    return EndpointCritic(**settings | changes)


def oracle_answer(prompt: str) -> str:
    """The oracle's critique, from a prompt of the miniature; it knows no other problems."""
    problem, _, rest = prompt.partition("\n")
    if "*" not in problem:
        return "Answer: 35"
    return correct_trace(problem, rest.partition("Attempt:\n")[2])


class StubServer:
    """Answers each request in the way that `way` names for its prompt; "ok" is `answer`'s.

    Attributes:
      bodies: of all requests, in the order of their arrival.
      arrivals: seconds of the same.
      peak: the most requests that were under way at once.
      headers: all that were sent, as text.
    """

    def __init__(
        self,
        way: Callable[[str], str] = lambda prompt: "ok",
        answer: Callable[[str], str] = oracle_answer,
    ):
        self.way, self.answer = way, answer
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.headers: list[str] = []
        self.peak = self._under_way = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                size = next(int(v) for k, v in fields.items() if k.lower() == "content-length")
                body = json.loads(await reader.readexactly(size))
                self.arrivals.append(time.monotonic())
                self.headers.append(head)
                self.bodies.append(body)
                # Who has hung up is noticed first: a client that gave up on another request
                # may ask the next at once.
                await asyncio.sleep(0.005)
                self._under_way += 1
                self.peak = max(self.peak, self._under_way)
                gone = asyncio.ensure_future(reader.read(1))
                reply = asyncio.ensure_future(self._reply(body, writer))
                await asyncio.wait([gone, reply], return_when=asyncio.FIRST_COMPLETED)
                self._under_way -= 1
                if not reply.done():
                    reply.cancel()
                    break
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                if not reply.result():
                    break
        writer.close()

    async def _reply(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answers; returns whether the connection stays open."""
        prompt = body["messages"][0]["content"]
        way = self.way(prompt)
        status = {"status_429": 429, "status_500": 500, "status_401": 401, "status_400": 400}
        if way == "slow":
            await asyncio.sleep(SLOW_SECS)
        if way == "connection_reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        payload = self._payload(way, prompt, body)
        code = status.get(way, 200)
        head = f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(payload)}\r\n\r\n".encode())
        if way == "half_sent":
            writer.write(payload[: len(payload) // 2])
            await writer.drain()
            return False
        if way == "drip":
            for byte in payload:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1.0)
        writer.write(payload)
        await writer.drain()
        return True

    def _payload(self, way: str, prompt: str, body: dict[str, Any]) -> bytes:
        if way == "malformed_json":
            return b'{"choices": [{"message": {"content": "Step 1'
        if way.startswith("status_"):
            return json.dumps({"error": {"message": f"no: {self.headers[-1]}"}}).encode()
        text = "" if way == "empty" else self.answer(prompt)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if way == "refusal":
            message |= {"content": None, "refusal": "I can't help with that."}
        if way == "truncated":
            message["content"] = text[: len(text) // 2]
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "another-7b" if way == "wrong_model" else body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": "length" if way == "truncated" else "stop",
                }
            ],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(text)},
        }
        payload = json.dumps(reply).encode()
        if way == "unicode_rubbish":
            # Half a surrogate pair, a NUL and a byte that no UTF-8 text has.
            payload = payload.replace(b"Step 1", b"\\ud83d\\u0000\xff\xfe", 1)
        return payload


@contextlib.contextmanager
def serving(server: StubServer) -> Iterator[StubServer]:
    """Runs the server in a thread."""
    ready, state = threading.Event(), SimpleNamespace()

    async def run() -> None:
        state.loop, state.stop = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=1024)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await state.stop.wait()
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        state.loop.call_soon_threadsafe(state.stop.set)
        thread.join(20)
