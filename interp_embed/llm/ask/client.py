"""Sending questions to a server that speaks OpenAI's protocol, and returning readable answers.

Owns structured output and its absence, one round of repair, kept answers, and usage. The transport
owns retries, pauses and connections.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from string import Template
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel

from interp_embed.core.checks import check_positive
from interp_embed.llm.ask.answers import Answer, UnreadableAnswerError, read_answer
from interp_embed.llm.ask.endpoint import resolve_endpoint
from interp_embed.llm.ask.errors import AnswersNotKeptError, LLMAnswerError, LLMError
from interp_embed.llm.ask.failures import one_line, sentence, unanswered
from interp_embed.llm.ask.prompt_files import Prompts
from interp_embed.llm.ask.request import DEFAULT_SETTINGS, Message, Request
from interp_embed.llm.ask.transport import Transport, check_patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from openai.types.chat import ChatCompletion

    from interp_embed.llm.ask.answers import Answers

__all__ = ["LLMClient", "Usage"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_NEW_NAMES = {"max_tokens": "max_completion_tokens"}
"""OpenAI's name of a parameter for models that refuse the old name."""
_LEAST_SECRET = 16
"""Answers are what users want: a key that may be a word, such as "ollama", is not sought in them."""


@dataclass
class Usage:
    """The usage of questions so far.

    Attributes
    ----------
    requests : int
        Answers from the server, including repairs. Retries of failed requests are not counted.
    kept : int
        Questions whose answer was already kept, so that nothing was sent.
    repairs : int
        Answers that could not be read, so that the model was asked again.
    prompt_tokens, completion_tokens : int
        As counted by the server, if it counts them.
    cost : float
        In US dollars, if the server reports it (OpenRouter does).
    """

    requests: int = 0
    kept: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the usage as plain values."""
        return asdict(self)


class LLMClient:
    """A client for one model at one server; ``async with`` opens and closes its connections.

    Parameters
    ----------
    model, base_url
        The model and its server; see `endpoint.resolve_endpoint`.
    concurrency
        Largest number of requests in flight. A crash loses at most this many paid answers.
    timeout
        Time limit of one attempt in seconds; two minutes by default.
    max_retries
        Attempts after the first, 4 by default. A request is repeated after a failed connection, a
        timeout, and the statuses 408, 409, 429 and 5xx, even if they are reported inside an answer with
        status 200. Pauses grow from half a second to eight seconds, or follow ``Retry-After``, up to
        two minutes.
    answers
        Where answers are kept, and looked up before anything is sent. If a paid answer cannot be kept,
        it is still used, with a warning.
    prompts
        Prompts for the second round, if a request has none; the package's by default.

    Attributes
    ----------
    usage : Usage
        The usage so far.

    Raises
    ------
    ValueError
        If an argument is invalid.
    LLMAuthenticationError
        If the server needs a key and the environment has none.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 4,
        answers: Answers | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        check_positive(concurrency=concurrency)
        check_patience(timeout, max_retries)
        self.model = model
        self.endpoint = resolve_endpoint(model, base_url)
        self.endpoint.read_key()  # fails early
        self.usage = Usage()
        self._concurrency = concurrency
        self._transport = Transport(self.endpoint, timeout, max_retries)
        self._answers = answers
        self._tried: asyncio.Task[None] | None = None  # whether answers can be kept
        self._unkept: dict[str, str] = {}
        self._repair = (prompts or Prompts()).text("repair")
        self._room = asyncio.Semaphore(concurrency)
        self._flying: dict[str, asyncio.Future[Answer]] = {}
        self._without: frozenset[str] = frozenset()  # what the server refused

    def __repr__(self) -> str:
        return f"LLMClient({self.model!r}, {self.endpoint.base_url!r})"

    async def __aenter__(self) -> Self:
        if self._transport.is_open:
            raise RuntimeError(f"{self!r} is already open")
        self._transport.open()
        self._room = asyncio.Semaphore(self._concurrency)  # belongs to the loop
        self._flying = {}
        self._tried = None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.close()

    # Questions

    async def ask(
        self, request: Request[ModelT], check: Callable[[ModelT], str | None] | None = None
    ) -> ModelT:
        """Return the answer to a question, in the requested form.

        An answer in another form goes back to the model once, with a description of the problem.

        Parameters
        ----------
        request
            The question.
        check
            Returns the problem of an answer of the right form; None if there is none.

        Raises
        ------
        LLMAnswerError
            If the second answer cannot be read either. The error holds both answers.
        LLMError
            If there is no answer.
        """
        answer = await self.send(request)
        try:
            return _read(answer, request.schema, check)
        except UnreadableAnswerError as error:
            problem = str(error)
        self.usage.repairs += 1
        said = Message("assistant", answer.text or "(nothing)")
        repair = Template(self._repair if request.repair is None else request.repair)
        again = Message("user", repair.substitute(problem=problem))
        repaired = await self.send(request.followed_by(said, again))
        try:
            return _read(repaired, request.schema, check)
        except UnreadableAnswerError as error:
            problem = str(error)
        cut = " A limit of tokens cut it: allow longer answers." if repaired.cut else ""
        raise LLMAnswerError(
            f"{self.model} at {self.endpoint.base_url} answered twice, but not in the requested "
            f"form: {sentence(problem)}{cut} The answer: {one_line(repaired.text)!r}",
            repaired.text,
            answer.text,
        )

    async def send(self, request: Request[Any]) -> Answer:
        """Return the model's answer, or the kept one if there is one.

        If the same question is asked several times at once, it is sent once.

        Raises
        ------
        LLMError
            If there is no answer, after all retries.
        """
        if request.model != self.model:
            raise ValueError(f"request must be for {self.model!r}, got one for {request.model!r}")
        digest = request.digest
        while (flying := self._flying.get(digest)) is not None:
            try:
                return await asyncio.shield(flying)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flying.cancelled() or (task is not None and task.cancelling()):
                    raise  # otherwise it was who sent it that gave up
        mine: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._flying[digest] = mine
        try:
            answer = await self._kept_or_new(request)
        except LLMError as error:
            mine.set_exception(error)
            mine.exception()  # there may be nobody else who wants to know
            raise
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            del self._flying[digest]

    async def _kept_or_new(self, request: Request[Any]) -> Answer:
        kept = await self._kept(request)
        if kept is not None:
            self.usage.kept += 1
            return Answer(kept, kept=True)
        # Until it is kept, too: a crash loses no more answers than may be in flight.
        async with self._allowed(request), self._room:
            await self._check_keeping()
            answer, took = await self._complete(request)
            if self._answers is not None:
                await self._keep(request.digest, answer.text, took)
        return answer

    def _allowed(self, request: Request[Any]) -> AbstractAsyncContextManager[None]:
        """Wait until a request may be sent; the end is told, too."""
        return nullcontext()

    # Keeping

    async def _kept(self, request: Request[Any]) -> str | None:
        if request.digest in self._unkept:
            return self._unkept[request.digest]
        if self._answers is None:
            return None
        return await asyncio.to_thread(self._answers.get, request.digest)

    async def _check_keeping(self) -> None:
        """Try until it is seen, before anything is paid for, that answers can be kept."""
        check = getattr(self._answers, "check_writable", None)
        if check is None:
            return
        if self._tried is None:
            self._tried = asyncio.ensure_future(asyncio.to_thread(check))
            self._tried.add_done_callback(self._forget_failure)
        try:
            await asyncio.shield(self._tried)
        except OSError as error:
            raise AnswersNotKeptError(
                f"answers cannot be kept, so no request was sent: {one_line(str(error))}"
            ) from error

    def _forget_failure(self, tried: asyncio.Task[None]) -> None:
        """Have the next question try again: what failed may pass."""
        failed = tried.cancelled() or tried.exception() is not None
        if failed and self._tried is tried:
            self._tried = None

    async def _keep(self, digest: str, text: str, took: Mapping[str, float]) -> None:
        """Keep an answer: it is paid for, so it is kept whatever happens to who asked."""
        assert self._answers is not None
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(loop.run_in_executor(None, self._answers.put, digest, text, took))
        except Exception as error:  # noqa: BLE001  (a user's own class may raise anything)
            self._unkept[digest] = text
            self._not_kept(error)

    def _not_kept(self, error: Exception) -> None:
        """Say once that an answer could not be kept; it is used, and forgotten with this client."""
        if len(self._unkept) == 1:
            warnings.warn(
                f"a paid answer could not be kept: {sentence(one_line(str(error)))} It is still "
                "used, and so are later answers while this client is open",
                stacklevel=2,
            )

    # The server

    async def _complete(self, request: Request[Any]) -> tuple[Answer, Mapping[str, float]]:
        """Send a request; without what the server turns out not to know, if nobody asked for it.

        Returns
        -------
        answer : Answer
        took : mapping of str to float
            What the server has counted.
        """
        if not self._transport.is_open:
            raise RuntimeError(f"{self!r} is not open: use it with 'async with'")
        without = self._without
        while True:
            body = _body(request, without)
            outcome = await self._transport.send(request.messages, body, _negotiable(body))
            for counted in outcome.charged:
                self._count(counted)
            if outcome.refused is not None:
                without = without | {outcome.refused}
                continue
            if outcome.error is not None:
                raise outcome.error
            found = self._said(outcome.completion)
            if isinstance(found, LLMError):
                raise found
            self._without = self._without | without  # only once it is seen to help
            return found

    def _said(
        self, completion: ChatCompletion | Any
    ) -> tuple[Answer, Mapping[str, float]] | LLMError:
        """Return what a completion says, or what went wrong where it says nothing."""
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            return unanswered(completion, self.endpoint)
        message, reason = choices[0].message, choices[0].finish_reason
        text = "" if message.content is None else message.content
        if not isinstance(text, str):
            return unanswered(completion, self.endpoint)
        took = self._count(getattr(completion, "usage", None))
        if text.strip():
            text = self.endpoint.without_secrets(text, _LEAST_SECRET)
            return Answer(text, cut=reason == "length"), took
        refusal = getattr(message, "refusal", None)
        # Without the key before it is cut, which may cut the key.
        why = self.endpoint.without_secrets(
            str(refusal) if refusal else f"finish_reason {reason!r}"
        )
        why = f"it refused: {one_line(why)}" if refusal else one_line(why)
        if reason == "length":
            why += ": all tokens were used before the answer; allow longer answers"
        return LLMAnswerError(
            f"{self.model} at {self.endpoint.base_url} gave no answer ({why})",
            text,
        )

    def _count(self, counted: Any) -> Mapping[str, float]:
        took = {}
        for name in ("prompt_tokens", "completion_tokens", "cost"):
            value = getattr(counted, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
                took[name] = value
                setattr(self.usage, name, getattr(self.usage, name) + value)
        self.usage.requests += 1
        return took


def _body(request: Request[Any], without: frozenset[str]) -> dict[str, Any]:
    """Return the parameters of a request beside its model and messages."""
    schema = {"name": request.schema.__name__, "strict": True, "schema": request.json_schema}
    wanted = {
        **request.settings,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    for name in without & wanted.keys():
        value = wanted.pop(name)
        if name in _NEW_NAMES:
            wanted[_NEW_NAMES[name]] = value
    return wanted


def _negotiable(body: Mapping[str, Any]) -> list[str]:
    """Return the parameters that may be left out or renamed: a user's own settings are kept."""
    same = [name for name, value in DEFAULT_SETTINGS.items() if body.get(name) == value]
    return [name for name in (*same, *_NEW_NAMES, "response_format") if name in body]


def _read(
    answer: Answer, schema: type[ModelT], check: Callable[[ModelT], str | None] | None
) -> ModelT:
    found = read_answer(answer.text, schema)
    if check is not None and (problem := check(found)) is not None:
        raise UnreadableAnswerError(problem)
    return found
