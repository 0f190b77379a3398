"""Attributes that an object shows and a part of it holds."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Of(Generic[T]):
    """An attribute that is read from, and written to, a part of the object.

    Args:
        part: dotted path from the object.
        name: of the attribute there, where it is another.

    Example:
        >>> class Loop:
        ...     epochs: Of[int] = Of("settings")
        ...     def __init__(self, settings):
        ...         self.settings = settings
        >>> from types import SimpleNamespace
        >>> Loop(SimpleNamespace(epochs=3)).epochs
        3
    """

    def __init__(self, part: str, name: str = "") -> None:
        self.parts = part.split(".")
        self.name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def _part(self, whole: object) -> Any:
        for name in self.parts:
            whole = getattr(whole, name)
        return whole

    @overload
    def __get__(self, whole: None, owner: type) -> Of[T]: ...
    @overload
    def __get__(self, whole: object, owner: type) -> T: ...
    def __get__(self, whole: object | None, owner: type) -> object:
        return self if whole is None else getattr(self._part(whole), self.name)

    def __set__(self, whole: object, value: T) -> None:
        setattr(self._part(whole), self.name, value)
