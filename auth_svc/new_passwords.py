"""Passwords that users get: those that somebody chose, and one-time passwords."""

import secrets
from collections.abc import Awaitable, Callable

from auth_svc.rights import NewPassword
from meshkit.clock import MICROS_PER_SECOND, Clock

ONE_TIME_LIFE_S = 7 * 24 * 60 * 60
_ONE_TIME_BYTES = 15

# Takes a password and returns its hash.
PasswordHash = Callable[[str], Awaitable[str]]


class NewPasswords:
    """Hashes passwords, and makes one-time passwords.

    Args:
        hash_password: hashes one.
        clock: tells when one-time passwords end.
    """

    def __init__(self, *, hash_password: PasswordHash, clock: Clock) -> None:
        self._hash_password = hash_password
        self._clock = clock

    async def chosen(self, password: str) -> NewPassword:
        """Return what is to be stored of a password.

        Raises:
            ResourceExhausted: LOGIN_BUSY.
        """
        return NewPassword(await self._hash_password(password), None)

    async def one_time(self) -> tuple[NewPassword, str]:
        """Make a one-time password; returns what is to be stored of it, and itself.

        Raises:
            ResourceExhausted: LOGIN_BUSY.
        """
        password = secrets.token_urlsafe(_ONE_TIME_BYTES)
        expire_us = self._clock.now_us() + ONE_TIME_LIFE_S * MICROS_PER_SECOND
        return NewPassword(await self._hash_password(password), expire_us), password
