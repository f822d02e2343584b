"""The processes that train one run together: which one this is, and all that they do in common.

A process alone has nobody to wait for, and none of this does anything there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from castctl.buckets import in_buckets
from castctl.errors import UserError, one_line
from castctl.launcher import Rank, open_store, rank_of
from castctl.processes import Seen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

LOOK_SECONDS = 0.3
"""How often a rank that waits looks whether the others live."""

START_SECONDS = 300
"""How long ranks wait for one another before the recipe says how long."""

LINGER_SECONDS = 3.0
"""How long rank 0, who may keep the store, stays while others live."""

BEAT_SECONDS = 5.0
"""How often a rank at work says so."""

BUCKET_BYTES = 64 << 20
"""Gradients that are summed at once."""


class RankEnded(UserError):
    """Another rank has ended, so this one must."""


class Ranks:
    """What the ranks of a run do together; `rank` is this one.

    Every rank makes the same calls in the same order. Each wait ends, with `RankEnded`, once
    another rank has ended, or has neither come nor got on for `patience` seconds.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.patience: float = START_SECONDS
        self.waited = 0.0
        """Seconds of this rank in which it waited for others or their numbers."""
        self._store: Any = None
        self._people: dict[int, Seen] = {}
        self._meetings = 0
        self._beaten = 0.0

    @property
    def first(self) -> bool:
        return self.rank.first

    def mine(self, items: Iterable[T]) -> Iterable[T]:
        """This rank's share of what all have: every `count`-th."""
        return (item for n, item in enumerate(items) if n % self.rank.count == self.rank.index)

    def join(self, device: torch.device) -> None:
        """Make the group that sums; of GPUs each rank has its `device`."""
        if not self.rank.several or self._people:
            return
        import torch
        import torch.distributed as dist

        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        self._set(f"person/{self.rank.index}", json.dumps(Seen.this()))
        self.meet("one another")
        for index in range(self.rank.count):
            self._people[index] = Seen(*json.loads(self._get(f"person/{index}")))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("group", self._connected()),
            rank=self.rank.index,
            world_size=self.rank.count,
            timeout=timedelta(seconds=self.patience),
        )

    def meet(self, what: str) -> None:
        """Wait until every rank is here."""
        if not self.rank.several:
            return
        self._meetings += 1
        store, name = self._connected(), f"meeting/{self._meetings}"
        self._set(f"{name}/{self.rank.index}", what)
        missing = set(range(self.rank.count))

        def all_here() -> bool:
            missing.difference_update(
                [index for index in sorted(missing) if store.check([f"{name}/{index}"])]
            )
            return not missing

        self._wait(all_here, what, missing)
        others = {self._get(f"{name}/{index}") for index in range(self.rank.count)}
        for old in (
            f"meeting/{self._meetings - 2}/{self.rank.index}",
            f"told/{self._meetings - 2}",
        ):
            store.delete_key(old)  # which all have read
        assert others == {what}, f"ranks meet at different places: {sorted(others)}"

    def first_does(self, what: str, work: Callable[[], T]) -> T | None:
        """Rank 0 does the work, and all go on when it has ended well; None on the others."""
        done = work() if self.first else None
        self.meet(what)
        return done

    def first_begins(self, what: str, work: Callable[[], T]) -> T:
        """All do the work, the others when rank 0 has: what it has written they find."""
        if self.first:
            done = work()
            self.meet(what)
            return done
        self.meet(what)
        return work()

    def told(self, what: str, text: str) -> str:
        """What rank 0 has to say, on every rank."""
        if not self.rank.several:
            return text
        if self.first:
            self._set(f"told/{self._meetings + 1}", text)
        self.meet(what)
        return self._get(f"told/{self._meetings}")

    def require_same(self, what: str, work: Callable[[], str]) -> None:
        """Raise `UserError` where ranks do not have the same."""
        if not self.rank.several:
            return
        text = work()
        if self.told(what, text) != text:
            raise UserError(
                f"rank {self.rank.index} has another {what} than rank 0; give all ranks the same "
                "files, versions and kind of GPU"
            )

    def sums(self, arrays: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """The sums of these arrays over the ranks, on every rank the same."""
        if not self.rank.several:
            return list(arrays)
        import torch

        flat = torch.from_numpy(np.concatenate([np.ravel(array) for array in arrays]))
        self.meet("the sum of numbers")
        self._sum(flat)
        cuts = np.cumsum([np.size(array) for array in arrays])[:-1]
        parts = np.split(flat.numpy(), cuts)
        return [part.reshape(np.shape(a)) for part, a in zip(parts, arrays, strict=True)]

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Put the sum over the ranks in the place of each gradient, in flat buckets."""
        if not self.rank.several:
            return
        self.meet("the sum of gradients")
        in_buckets(gradients, BUCKET_BYTES, self._sum)

    @contextlib.contextmanager
    def exchange(self, what: str) -> Iterator[None]:
        """The ranks meet, and inside others' code exchanges numbers between them."""
        self.meet(what)
        try:
            yield
        except RuntimeError as error:
            if not self.rank.several:
                raise
            time.sleep(LOOK_SECONDS)  # who has gone is seen a little later
            try:
                self._look()
            except RuntimeError:
                raise self._parted(error) from None
            if "imed out" in str(error):
                raise RankEnded(
                    f"a rank did not go through {what} within {self.patience:g} s; see the logs"
                ) from None
            raise

    def leave(self) -> None:
        """Part from the others when all is done: rank 0, who may keep the store, as the last."""
        if not self._people:
            return
        import torch.distributed as dist

        self.meet("the parting")
        store = self._connected()
        store.set(f"left/{self.rank.index}", "")
        left = [f"left/{index}" for index in range(self.rank.count)]
        if self.first:
            self._wait(lambda: store.check(left), "the parting", set())
        dist.destroy_process_group()
        self._people = {}

    def told_first(self, line: str) -> bool:
        """Whether this rank is the first to end with something to say, and may say it. Processes
        that have not met speak for themselves."""
        if self._store is None:
            return True
        try:
            said = self._connected().compare_set("ended", "", f"{self.rank.index} {line}")
        except (RuntimeError, UserError):  # whoever keeps the store has ended
            return self.speaks or not self._people
        return bool(said.decode() == f"{self.rank.index} {line}")

    @property
    def explained(self) -> bool:
        """Whether a rank that ended has said why."""
        try:
            return self._store is not None and bool(self._connected().check(["ended"]))
        except (ConnectionError, RuntimeError):  # whoever keeps the store has ended
            return False

    def linger(self) -> None:
        """Stay a little, as rank 0, until the others have heard why it ends."""
        until = time.monotonic() + LINGER_SECONDS
        while self.first and self._people and len(self.lost) + 1 < self.rank.count:
            if time.monotonic() > until:
                return
            time.sleep(0.02)

    @property
    def lost(self) -> list[int]:
        """Ranks on this machine whose processes are gone."""
        return [index for index, one in self._people.items() if one.gone]

    @property
    def speaks(self) -> bool:
        """Whether this rank speaks for all: rank 0, or the first that lives where that is gone."""
        lost = self.lost
        return self.first or (0 in lost and self.rank.index == min(set(self._people) - set(lost)))

    def describe_lost(self) -> str:
        """Which ranks are gone, in words."""
        names = ", ".join(
            f"rank {index} (process {self._people[index].pid} on "
            f"{one_line(self._people[index].host, 64)})"
            for index in self.lost
        )
        return f"{names} is gone: it was killed, or it crashed. The others have ended too"

    def beat(self) -> None:
        """Tell the others, now and then, that this rank gets on and is worth their waiting."""
        now = time.monotonic()
        if self._people and now - self._beaten > BEAT_SECONDS:
            self._beaten = now
            self._set(f"beat/{self.rank.index}", str(now))

    def _sum(self, flat: Tensor) -> None:
        import torch.distributed as dist

        work = dist.all_reduce(flat, async_op=True)
        self._wait(work.is_completed, "a sum", set())
        try:
            work.wait()
        except RuntimeError as error:
            raise self._parted(error) from None

    def _wait(self, done: Callable[[], bool], what: str, missing: set[int]) -> None:
        began = looked = heard = time.monotonic()
        beats: list[str] = []
        pause = 0.0002
        try:
            while not done():
                now = time.monotonic()
                if now - looked > LOOK_SECONDS:
                    looked = now
                    self._look()
                    if beats != (beats := self._beats(missing)):
                        heard = now
                if now - heard > self.patience:
                    who = ", ".join(f"rank {index}" for index in sorted(missing)) or "the ranks"
                    raise RankEnded(
                        f"{who} did not come to {what} within {self.patience:g} s; see its log, "
                        "and train.rank_timeout for how long the others wait"
                    )
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
        except (ConnectionError, RuntimeError) as error:
            raise self._parted(error) from None
        finally:
            self.waited += time.monotonic() - began

    def _beats(self, missing: set[int]) -> list[str]:
        names = [f"beat/{index}" for index in sorted(missing)]
        return [self._get(name) for name in names if self._connected().check([name])]

    def _set(self, name: str, text: str) -> None:
        try:
            self._connected().set(name, text)
        except RuntimeError as error:
            raise self._parted(error) from None

    def _get(self, name: str) -> str:
        try:
            return str(self._connected().get(name).decode())
        except RuntimeError as error:
            raise self._parted(error) from None

    def _parted(self, error: Exception) -> RankEnded:
        """Why this rank does not reach the others any more."""
        time.sleep(LOOK_SECONDS)  # who has gone is seen a little later
        if self.lost:
            return RankEnded(self.describe_lost())
        return RankEnded(f"the ranks have lost one another ({one_line(str(error), 200)})")

    def _look(self) -> None:
        """Raise `RankEnded` where another rank has."""
        if self._connected().check(["ended"]):
            index, _, line = self._get("ended").partition(" ")
            raise RankEnded(f"rank {index} ended: {line}")
        if self.lost:
            raise RankEnded(self.describe_lost())

    def _connected(self) -> Any:
        if self._store is None:
            self._store = open_store(self.rank, self.patience)
        return self._store


ALONE = Ranks(Rank())
"""A process that trains by itself."""


@cache
def here() -> Ranks:
    """The ranks of the run that this process was launched for."""
    return Ranks(rank_of(os.environ))
