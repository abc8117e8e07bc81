"""Where a client's tokens come from: one for all connects, or a new one for each."""

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

from twinmesh_client.errors import Disconnected, TokenFunctionInvalid

_TOKEN = re.compile(r"[!-~]+")

Token = str | Callable[[], Awaitable[str]]


class TokenSource:
    """Gives a token for each connect.

    Args:
        token: an access token or API key, or an async function that is asked for one.

    Raises:
        ValueError: it is neither, or cannot be sent.
    """

    def __init__(self, token: Token) -> None:
        if isinstance(token, str):
            token = _checked(token)
        elif not callable(token):
            # As every option that cannot be.
            raise ValueError(f"token is a str or an async function, not {type(token).__name__}")  # noqa: TRY004
        self._token = token

    @property
    def renews(self) -> bool:
        """Tell whether the next token may be another one."""
        return not isinstance(self._token, str)

    async def ask(self) -> str:
        """Return a token as it is sent.

        Raises:
            Disconnected: the function failed, or gave what cannot be sent.
            TokenFunctionInvalid: it is not async, or returns no str.
        """
        if isinstance(self._token, str):
            return self._token
        try:
            asked: Any = self._token()
            token = await asked if (is_async := inspect.isawaitable(asked)) else asked
            if is_async and isinstance(token, str):
                return _checked(token)
        except Exception as error:
            raise Disconnected(f"no token: {error!r}") from error
        raise TokenFunctionInvalid(
            f"the token function {'returns no str' if is_async else 'is not async'}: it gave "
            f"{type(token).__name__}; write `async def token() -> str`"
        )


def _checked(token: str) -> str:
    """Return a token as it is sent; files of keys end in a newline."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError("token is empty, or has whitespace or characters beyond ASCII in it")
    return token
