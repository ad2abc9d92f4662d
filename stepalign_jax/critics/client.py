# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Asks a server many questions at once, within its limits, and names what went wrong.

Every question gets one outcome, whatever the server does: "ok", "truncated" or a name from
`contexts.FAILURES`. What may pass by itself is tried again, after a pause that doubles.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.processes import is_first, told_by_first
from stepalign_jax.config.critics import EndpointCritic

# Worth another try: the same question may be answered a moment later.
_PASSING = ("timeout", "unavailable", "malformed")
FIRST_PAUSE_SECS, LONGEST_PAUSE_SECS = 0.5, 30.0


class Question(NamedTuple):
    """A prompt, with the seed that a server may draw by; None for greedy decoding."""

    prompt: str
    seed: int | None


class Answer(NamedTuple):
    """What came back.

    Attributes:
      text: "" where nothing did.
      outcome: "ok", "truncated" (the token budget ended it) or a name from `FAILURES`.
      prompt_tokens: as the server counts them; 0 where it does not say.
      tokens: of the answer, its thinking included.
      seconds: of all requests for it, pauses left out.
    """

    text: str
    outcome: str
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Limiter:
    """Keeps requests so far apart that no minute holds more of them than it may."""

    def __init__(
        self,
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Coroutine[Any, Any, Any]] = asyncio.sleep,
    ):
        # One percent more: what is sent a minute apart may arrive a little less apart.
        self._interval = 60 / per_minute * 1.01 if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._last, self._lock = float("-inf"), asyncio.Lock()

    async def wait(self) -> None:
        """Returns when the next request may be sent."""
        if not self._interval:
            return
        async with self._lock:
            # From when the last one really went: a late one moves all that follow.
            while (left := self._last + self._interval - self._clock()) > 0:
                await self._sleep(left)
            self._last = self._clock()


class Client:
    """A server, and how it is asked.

    Attributes:
      sent: requests so far, repeated ones too.
    """

    def __init__(self, config: EndpointCritic):
        """Reads the key from the environment; nothing is sent.

        Raises:
          UserError: the package `openai`, or the key, is missing.
        """
        self.config, self.sent = config, 0
        self._openai, self._key = _import_openai(), _read_key(config.key_variable)

    def ask(
        self, questions: Sequence[Question], heard: Callable[[int, Answer], None]
    ) -> list[Answer]:
        """Returns the answers in the order of the questions.

        Of several processes the first asks for all.

        Args:
          questions: all of them are under way at once, as far as the limits allow.
          heard: is called with the place and the answer of each, as it comes.
        """
        sent, answers = told_by_first(lambda: self._asked(questions, heard))
        if not is_first():
            self.sent += sent
            for place, answer in enumerate(answers):
                heard(place, answer)
        return answers

    def _asked(
        self, questions: Sequence[Question], heard: Callable[[int, Answer], None]
    ) -> tuple[int, list[Answer]]:
        """The number of requests that it took, and the answers."""
        before = self.sent
        # In a thread of its own: the caller may have an event loop, as a notebook does.
        with ThreadPoolExecutor(1, thread_name_prefix="endpoint") as thread:
            answers = thread.submit(asyncio.run, self._ask_all(questions, heard)).result()
        return self.sent - before, answers

    async def _ask_all(
        self, questions: Sequence[Question], heard: Callable[[int, Answer], None]
    ) -> list[Answer]:
        config = self.config
        slots, limiter = (
            asyncio.Semaphore(config.concurrency),
            Limiter(config.requests_per_minute),
        )
        client = self._openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=config.url,
            timeout=config.timeout_secs,
            max_retries=0,  # so that each request waits for its turn
        )

        async def answer(place: int, question: Question) -> Answer:
            found = await self._persist(client, question, slots, limiter)
            heard(place, found)
            return found

        async with client:
            return await asyncio.gather(*map(answer, range(len(questions)), questions))

    async def _persist(
        self, client: Any, question: Question, slots: asyncio.Semaphore, limiter: Limiter
    ) -> Answer:
        seconds, pause = 0.0, FIRST_PAUSE_SECS
        for left in reversed(range(self.config.max_retries + 1)):
            async with slots:
                await limiter.wait()
                self.sent += 1
                started = time.monotonic()
                answer, wanted_pause = await self._once(client, question)
                seconds += time.monotonic() - started
            if answer.outcome not in _PASSING or not left:
                break
            await asyncio.sleep(min(max(pause, wanted_pause), LONGEST_PAUSE_SECS))
            pause *= 2
        return answer._replace(seconds=seconds)  # pyright: ignore[reportPossiblyUnbound]

    async def _once(self, client: Any, question: Question) -> tuple[Answer, float]:
        """The answer to one request, and the seconds that the server asks us to wait."""
        config, openai = self.config, self._openai
        seed = {} if question.seed is None else {"seed": question.seed}
        try:
            # The client's timeout is one of silence; this one ends an answer that drips, too.
            async with asyncio.timeout(config.timeout_secs):
                reply = await client.chat.completions.with_raw_response.create(
                    model=config.model,
                    messages=[{"role": "user", "content": question.prompt}],
                    temperature=config.temperature,
                    max_tokens=config.max_new_tokens,
                    **seed,
                )
        except (TimeoutError, openai.APITimeoutError):
            return Answer("", "timeout"), 0.0
        except openai.APIStatusError as error:
            return Answer("", _of_status(error)), _retry_after(error)
        except openai.APIConnectionError:
            return Answer("", "unavailable"), 0.0
        except (openai.APIError, ValueError):
            return Answer("", "malformed"), 0.0
        answer = read_reply(reply.content, config.model)
        # A server that prints what it was sent must not put the key on disk.
        return answer._replace(text=self._without_key(answer.text)), 0.0

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _import_openai() -> Any:
    try:
        import openai  # seconds to import, and only used here
    except ImportError as error:
        raise UserError(
            "critic.kind=endpoint needs the package openai: install it with "
            "pip install 'stepalign_jax[endpoint]'."
        ) from error
    return openai


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"critic.key_variable is {variable}, but the environment has no such variable: "
            f"set it to the server's key with export {variable}=..., or set "
            "critic.key_variable= for a server without one."
        )
    return key


def _of_status(error: Any) -> str:
    """The outcome that an HTTP status stands for; the server's own words are not kept."""
    status, code = error.status_code, str(getattr(error, "code", None))
    if status in (408, 409, 429) or status >= 500:
        return "unavailable"
    if "content_filter" in code:
        return "refused"
    if "context_length" in code or "maximum context length" in str(error):
        return "prompt_too_long"
    return "rejected"


def _retry_after(error: Any) -> float:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:  # a date: the doubling pauses will do
        return 0.0


def read_reply(body: bytes, model: str) -> Answer:
    """Returns the answer in the body of a chat completion; never raises.

    Args:
      body: of a reply with status 200.
      model: that was asked for.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text, usage = message.get("content") or "", reply.get("usage") or {}
        refusal, said = message.get("refusal"), reply.get("model")
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        text.encode()  # half a surrogate pair is no text
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError):
        return Answer("", "malformed")
    if min(counts) < 0:
        return Answer("", "malformed")
    if said is not None and not _is_model(str(said), model):
        return Answer(text, "wrong_model", *counts)
    if refusal or ended == "content_filter":
        return Answer(text, "refused", *counts)
    return Answer(text, "truncated" if ended == "length" else "ok", *counts)


def _is_model(said: str, asked: str) -> bool:
    """Whether one name holds the other: servers add a date, or leave out the owner."""
    names = [name.rstrip("/").rpartition("/")[2].casefold() for name in (said, asked)]
    return all(names) and (names[0] in names[1] or names[1] in names[0])
