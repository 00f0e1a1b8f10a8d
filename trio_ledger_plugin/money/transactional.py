"""Calls a transactional money handler inside the transaction of a transfer."""

from __future__ import annotations

from inspect import iscoroutine, isgenerator
from typing import TYPE_CHECKING

from ..runtime.handlers import judge_error

if TYPE_CHECKING:
    from ..errors import LedgerPluginError
    from ..runtime.handlers import Handlers, TransactionalMoneyHandler
    from ..stores.dialect import Connection, Dialect
    from ..transfer import Transfer

__all__ = ["HandlerCall"]


class HandlerCall:
    """The call of a transactional money handler for one transfer.

    Args:
        handler: The handler.
        dialect: The database's dialect.
    """

    def __init__(self, handler: TransactionalMoneyHandler, dialect: Dialect) -> None:
        self._handler = handler
        self._dialect = dialect
        self._failure: tuple[str, Exception] | None = None

    def __call__(self, connection: Connection, transfer: Transfer) -> LedgerPluginError | None:
        """Call the handler, on the store's thread and perhaps twice; return the error that refuses the transfer.

        Raises:
            Exception: The storage failed inside the handler.
        """
        self._failure = None
        try:
            result: object = self._handler(connection, transfer)
            if iscoroutine(result) or isgenerator(result):
                # An async function or a generator in disguise has done nothing.
                result.close()
                what = type(result).__name__
                raise TypeError(f"a transactional money handler is a plain function; this one returned a {what}")  # noqa: TRY301 (it fails as the handler's own error does)
            if self._dialect.is_broken(connection):
                raise RuntimeError("a statement of the handler failed, which undoes the transaction; use a savepoint")  # noqa: TRY301 (the same)
        except Exception as error:
            if self._dialect.is_storage_error(error):
                raise
            refusal, reference = judge_error("money", error)
            self._failure = reference, error
            return refusal
        return None

    def log_failure(self, handlers: Handlers) -> None:
        """Log the handler's error, once the transaction has ended."""
        if self._failure is not None:
            reference, error = self._failure
            handlers.log_error("money", reference, error)
