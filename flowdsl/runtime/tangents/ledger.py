"""Which tangent belongs to which value, while a network runs.

A value is known by its place in memory: storage, offset, shape and strides. That survives the
aliases that autograd makes of a tensor on its way, and costs nothing to compare.

A tangent is kept as long as its value can still be used. Autograd keeps most values until the
backward pass, long after the network has done with them; so tangents are dropped when the call of
the module that made them returns, unless they are its outputs (`close`), and between the calls when
nothing in Python refers to the value any more (`drop_unreachable`). A mark remembers that there was
one: a network that reaches such a value by another way is refused, never given a zero.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef

from flowdsl.runtime.tangents.reach import Holder, unreachable

Where = tuple[int, torch.Size, tuple[int, ...]]
_Made = tuple[int, int, Where]  # a running number, the address of a storage, a value in it


class NotShared(Exception):
    """A derivative that cannot be taken beside the pass: what stands in the way, and a remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class _Gone:
    """Stands where a tangent was that has been dropped."""


_GONE: Final = _Gone()

_PLAIN: Final = "use the plain PyTorch version of that layer"

#: So many of the latest values are asked, now and then, whether their memory was freed meanwhile.
_YOUNG = 32
_SWEEP_EVERY = 16


class _Place:
    """The tangents of the values in one storage.

    `whole`, once there, is the tangent of the storage from end to end, and the only true account:
    values were written in place. It is `lent` when a view of it was handed out.
    """

    __slots__ = ("holders", "lent", "storage", "tangents", "whole")

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = _weak(storage)
        self.tangents: dict[Where, Tensor | _Gone] = {}
        self.holders: dict[Where, list[Holder]] = {}  # the tensors that are this value
        self.whole: Tensor | _Gone | None = None
        self.lent = False

    def knows(self, where: Where) -> bool:
        """Whether the tangent of this value is here; not if the storage replaced another one."""
        return self.whole is not None or where in self.holders


class Ledger:
    """The tangents of the values of one pass."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}
        self._made: list[_Made] = []  # in the order of their making
        self._blank: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._next_sweep = _SWEEP_EVERY
        self.mark = 0

    def find(self, x: Any) -> Tensor | None:
        """The tangent of a value that is read; None for a constant and for what is no tensor.

        Raises NotShared where there was one that cannot be told any more, and for memory that
        nothing was seen to write.
        """
        if self._blank and isinstance(x, Tensor):
            self._check_written(_address(x))
        return self.peek(x)

    def peek(self, x: Any) -> Tensor | None:
        """The tangent of a value of which a view is taken, or which is written over."""
        if not isinstance(x, Tensor):
            return None
        try:
            place = self._places.get(x.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):
            raise NotShared(f"a tensor of layout {x.layout}", "use dense tensors") from None
        if place is None:
            if x.requires_grad and isinstance(x.grad_fn, BackwardCFunction):
                raise NotShared(
                    f"{x.grad_fn.name()} runs operations that PyTorch does not see", _PLAIN
                )
            return None
        tangent = place.tangents.get(_where(x))
        if isinstance(tangent, Tensor):
            return tangent
        if tangent is None and isinstance(place.whole, Tensor):
            place.lent = True
            return _part(place.whole, x)
        raise _unknown(tangent is None and place.whole is None)

    def moves(self, x: Tensor) -> bool:
        """Whether anything in the memory of `x` has, or had, a tangent."""
        return _address(x) in self._places

    def overlap(self, x: Tensor, y: Tensor) -> bool:
        """Whether two values are in the same storage."""
        return _address(x) == _address(y)

    def note(self, x: Tensor, tangent: Tensor) -> None:
        """`tangent`, of the shape of `x`, is the tangent of the new value `x`."""
        storage = x.untyped_storage()
        address = storage._cdata
        place = self._places.get(address)
        if place is None:
            place = self._places[address] = _Place(storage)
        elif place.whole is not None:
            return  # a view of what was written in place: read from `whole`
        where = _where(x)
        if isinstance(place.tangents.get(where), Tensor):
            place.holders[where].append(weakref.ref(x))  # the same value again: one life for both
            place.tangents[where] = tangent
            return
        place.holders[where] = [weakref.ref(x)]
        place.tangents[where] = tangent
        self._record(address, where)

    def write(self, x: Tensor, tangent: Tensor | None) -> None:
        """`x` was written in place, and its new value has this tangent, None for zero."""
        storage = x.untyped_storage()
        address = storage._cdata
        self._blank.pop(address, None)
        if address in self._pinned and not _dead(self._pinned[address]):
            raise NotShared("a value is written in place after it was detached", "clone it first")
        fresh, place = False, self._places.get(address)
        if place is None:
            if tangent is None:
                return
            if _fills(x, storage):
                self.note(x, tangent)
                return
            fresh, place = True, _Place(storage)
            self._places[address] = place
        tangent = torch.zeros_like(x) if tangent is None else tangent
        where = _where(x)
        if place.whole is None and place.tangents.keys() == {where} and _fills(x, storage):
            self.note(x, tangent)
        else:
            _put(place, x, tangent)
            if fresh:
                self._record(address, where)

    def blank(self, x: Tensor) -> None:
        """`x` is memory that nothing was written to yet. To read it is to read what a kernel wrote
        that PyTorch does not see, whose derivative nobody would know.
        """
        if x.numel() > 0:
            storage = x.untyped_storage()
            self._blank[storage._cdata] = _weak(storage)

    def pin(self, x: Tensor) -> None:
        """The memory of `x` must not be written to from now on."""
        storage = x.untyped_storage()
        self._pinned[storage._cdata] = _weak(storage)

    def close(self, mark: int, kept: Iterable[Tensor]) -> None:
        """Drops the tangents noted since `mark` stood where `mark` says, but those of `kept`."""
        fresh = self._since(mark)
        if not fresh:
            return
        outputs = {(_address(x), _where(x)) for x in kept}
        storages = {address for address, _ in outputs}
        for made in fresh:
            _, address, where = made
            place = self._places.get(address)
            if place is None or not place.knows(where):
                continue
            if (address, where) in outputs or (place.whole is not None and address in storages):
                self._made.append(made)
            else:
                self._drop(address, place, where)
        self._next_sweep = len(self._made) + _SWEEP_EVERY

    def drop_unreachable(self, mark: int) -> None:
        """Drops, of the tangents noted since `mark`, those whose values no Python code can reach.

        Only for when no operation is under way.
        """
        test = unreachable()
        for made in self._since(mark):
            _, address, where = made
            place = self._places.get(address)
            if place is None or not place.knows(where):
                continue
            if place.whole is None and all(map(test, place.holders[where])):
                self._drop(address, place, where)
            else:
                self._made.append(made)

    def _since(self, mark: int) -> list[_Made]:
        """Takes out what was noted since `mark` stood there."""
        first = len(self._made)
        while first and self._made[first - 1][0] >= mark:
            first -= 1
        fresh = self._made[first:]
        del self._made[first:]
        return fresh

    def _drop(self, address: int, place: _Place, where: Where) -> None:
        if _dead(place.storage):
            del self._places[address]
        elif place.whole is not None:
            place.whole = _GONE
        else:
            place.tangents[where] = _GONE
            del place.holders[where]

    def _record(self, address: int, where: Where) -> None:
        self._made.append((self.mark, address, where))
        self.mark += 1
        if len(self._made) >= self._next_sweep:
            self._sweep()

    def _sweep(self) -> None:
        """Forgets young values whose memory was freed."""
        young = self._made[-_YOUNG:]
        for _, address, _ in young:
            place = self._places.get(address)
            if place is not None and _dead(place.storage):
                del self._places[address]
        self._made[-_YOUNG:] = [made for made in young if made[1] in self._places]
        self._next_sweep = len(self._made) + _SWEEP_EVERY

    def _check_written(self, address: int) -> None:
        storage = self._blank.get(address)
        if storage is None:
            return
        if not _dead(storage):
            raise NotShared("a kernel that PyTorch does not see fills a tensor", _PLAIN)
        del self._blank[address]


def _weak(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _dead(storage: StorageWeakRef) -> bool:
    return storage.expired()  # type: ignore[no-untyped-call,no-any-return]


def _where(x: Tensor) -> Where:
    return (x.storage_offset(), x.shape, x.stride())  # type: ignore[return-value]


def _address(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address


def _part(whole: Tensor, x: Tensor) -> Tensor:
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def _fills(x: Tensor, storage: torch.UntypedStorage) -> bool:
    """Whether `x` is all there is in its storage, each number once."""
    return x.numel() * x.element_size() == storage.nbytes() and 0 not in x.stride()


def _put(place: _Place, x: Tensor, tangent: Tensor) -> None:
    """Writes a part of the tangent of a whole storage."""
    storage = x.untyped_storage()
    if _fills(x, storage) and x.is_contiguous():
        place.whole = tangent.reshape(-1)
        place.lent = True
    else:
        whole = _spread(place, x) if place.whole is None else place.whole
        if isinstance(whole, _Gone):
            raise _unknown(False)
        whole = whole.clone() if place.lent else whole
        _part(whole, x).copy_(tangent)
        place.whole, place.lent = whole, False
    place.tangents.clear()
    place.holders.clear()


def _spread(place: _Place, x: Tensor) -> Tensor:
    """The tangent of a whole storage, from those of the values in it."""
    storage = x.untyped_storage()
    whole = x.new_zeros(storage.nbytes() // x.element_size())
    complete = False
    for (offset, shape, stride), tangent in place.tangents.items():
        if isinstance(tangent, Tensor) and 0 not in stride:
            whole.as_strided(shape, stride, offset).copy_(tangent)
            complete = complete or shape.numel() == whole.numel()
    if not complete and any(isinstance(t, _Gone) for t in place.tangents.values()):
        raise _unknown(False)
    return whole


def _unknown(unseen: bool) -> NotShared:
    if unseen:
        return NotShared("a part of a value is read that no operation was seen to take")
    return NotShared(
        "a value made inside a module is used after the module has returned, but isn't its output",
        "return the value from the module that computes it",
    )
