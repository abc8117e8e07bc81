"""Questions of many callers, gathered into few: natural batching, also known as a data loader."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

_Group = TypeVar("_Group", bound=Hashable)
_Item = TypeVar("_Item", bound=Hashable)
_Answer = TypeVar("_Answer")


@dataclass(slots=True, eq=False)
class _Question(Generic[_Group, _Item, _Answer]):
    group: _Group
    answer: asyncio.Future[_Answer]
    context: Context  # of its first caller, whose trace it belongs to
    items: dict[_Item, None] = field(default_factory=dict)


class Gatherer(Generic[_Group, _Item, _Answer]):
    """Asks once for many callers.

    A lone question begins at once. What comes while `at_once` are under way gathers, and
    becomes the next ones, in the order of their first callers. So the load sets the size of
    questions: a slow answer makes them fewer and larger.

    An async context manager: questions still open in the end are cancelled.

    Args:
        ask: answers a group's items, each of which is given once.
        at_once: most questions under way.
        most_items: in a question of several callers.
        rest_s: seconds between the end of a question and the next one in its place, in which
            more gathers.
    """

    def __init__(
        self,
        ask: Callable[[_Group, Sequence[_Item]], Awaitable[_Answer]],
        *,
        at_once: int,
        most_items: int,
        rest_s: float,
    ) -> None:
        self._ask = ask
        self._at_once = at_once
        self._most_items = most_items
        self._rest_s = rest_s
        self._waiting: deque[_Question[_Group, _Item, _Answer]] = deque()
        self._joinable: dict[_Group, _Question[_Group, _Item, _Answer]] = {}
        self._asking: dict[asyncio.Task[None], _Question[_Group, _Item, _Answer]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._asking)
        for question in [*self._waiting, *self._asking.values()]:
            question.answer.cancel()
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def join(self, group: _Group, items: Collection[_Item]) -> asyncio.Future[_Answer]:
        """Put items into the group's next question, which has not begun yet.

        Returns:
            The answer to come, or what `ask` raises. It is that of the whole question, and
            shared: await it through `asyncio.shield`. An error that nobody awaits is not logged.
        """
        question = self._joinable.get(group)
        if question is None or len(question.items) + len(items) > self._most_items:
            question = _Question(group, asyncio.get_running_loop().create_future(), copy_context())
            question.answer.add_done_callback(_retrieve)
            self._joinable[group] = question
            self._waiting.append(question)
            self._begin()
        question.items.update(dict.fromkeys(items))
        return question.answer

    def _begin(self) -> None:
        while self._waiting and len(self._asking) < self._at_once:
            question = self._waiting.popleft()
            task = asyncio.create_task(
                self._work(question), name="gathered question", context=question.context
            )
            self._asking[task] = question

    async def _work(self, question: _Question[_Group, _Item, _Answer]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs this
        try:
            if self._joinable.get(question.group) is question:
                del self._joinable[question.group]
            await self._settle(question)
            await asyncio.sleep(self._rest_s)
        finally:
            del self._asking[task]
            self._begin()

    async def _settle(self, question: _Question[_Group, _Item, _Answer]) -> None:
        try:
            answer = await self._ask(question.group, list(question.items))
        except asyncio.CancelledError:
            question.answer.cancel()
            raise
        except Exception as error:
            question.answer.set_exception(error)
        else:
            question.answer.set_result(answer)


def _retrieve(answer: asyncio.Future[_Answer]) -> None:
    if not answer.cancelled():
        answer.exception()
