"""Sampling with vLLM, in processes of its own that hold a copy of the policy's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from castctl.engines import Batches, Completion, Measures, Site
from castctl.engines.child import ChildFailed
from castctl.engines.exchange import Asked
from castctl.engines.handover import age, exported, saved, weight_sums
from castctl.engines.placement import place
from castctl.engines.proof import COARSE, EXACT, ROUNDED, Cause, Gap, Proof, equal, refusal
from castctl.engines.replica import Replica
from castctl.engines.sampling import SEED_BITS
from castctl.engines.stops import stop_token_ids
from castctl.engines.vllm_launch import arithmetic, installed_version, launch, room_of
from castctl.errors import UserError
from castctl.models.policy import Policy
from castctl.progress import Advance
from castctl.recipe.engine import coarser
from castctl.recipe.recipe import Recipe, SamplingSettings
from castctl.shards.part import Metadata

T = TypeVar("T")

log = logging.getLogger(__name__)

LEAST_TEMPERATURE = 0.01
"""What vLLM takes, without a word, for anything between 0 and it."""


class VllmEngine:
    """Feeds one replica or several, and proves each after every change of weights.

    A replica that dies or falls silent is replaced, and what it had not finished is sampled again
    from the weights as they are, once. Raises `UserError` where that fails too, where a completion
    has no room, and where a replica does not sample from the policy.
    """

    def __init__(self, recipe: Recipe, policy: Policy, site: Site) -> None:
        settings, model = recipe.engine, policy.model
        self._settings, self._policy, self._site = settings, policy, site
        self._version = installed_version()
        self._on_gpu = (placement := place(settings, recipe.model)).on_gpu
        self._dtype: torch.dtype = getattr(torch, arithmetic(recipe, placement))
        self._room = room_of(recipe, model.context_tokens)
        self._stop_ids = stop_token_ids(model)
        coarse = coarser(settings.kv_cache_dtype, settings.options)
        exact = {self._dtype, model.dtype} == {torch.float32} and not self._on_gpu
        self._proof = Proof(model, COARSE if coarse else EXACT if exact else ROUNDED)
        numbers = range(settings.replicas)
        shares = [placement.shares(number, model.device) for number in numbers]
        self._replicas = [
            Replica(
                launch(recipe, placement, number, self._room, shares[number], policy.adapter_rank),
                site.log(number),
            )
            for number in numbers
        ]
        self._sharing = [r for r, shared in zip(self._replicas, shares, strict=True) if shared]
        self._proved: dict[Replica, tuple[list[Completion], Gap]] = {}
        self._moved = False  # whether the weights are others than those of the folder
        self._sums: list[int] = []  # of the weights that the replicas were given
        self._synced = age(policy)

    @property
    def identity(self) -> Metadata:
        settings = self._settings
        return {
            "kind": "vllm",
            "version": self._version,
            "dtype": str(self._dtype).removeprefix("torch."),
            "seeds": f"request-{SEED_BITS}",
            "kv_cache_dtype": settings.kv_cache_dtype,
            "options": settings.options,
        }

    def generate(
        self, batches: Batches, sampling: SamplingSettings, advance: Advance
    ) -> Iterator[tuple[int, list[Completion]]]:
        """All batches at once, dealt out to the replicas in turn."""
        assert age(self._policy) == self._synced, "the policy has moved since the last sync"
        self._refuse(batches, sampling)
        filled = {number: requests for number, requests in batches.items() if requests}
        yield from ((number, []) for number in batches.keys() - filled.keys())
        self._proof.choose(
            (request for requests in filled.values() for request in requests), self._room
        )
        asked: dict[Replica, Asked] = {}
        for first, replica in enumerate(self._replicas):
            share = dict(list(filled.items())[first :: len(self._replicas)])
            if share:
                asked[replica] = self._asked(share, sampling, self._stop_ids)
        finished = 0
        for whole in self._answers(asked):
            now = sum(each.finished for each in asked.values())
            advance(now - finished)
            finished = now
            yield from whole

    def _asked(self, batches: Batches, sampling: SamplingSettings, stop_ids: list[int]) -> Asked:
        return Asked(batches, sampling, stop_ids, self._policy.model.tokenizer)

    def _answers(
        self, asked: Mapping[Replica, Asked]
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """After each answer of a replica, the batches that it made whole."""
        failed: set[Replica] = set()

        def begin(replica: Replica) -> None:
            self._make_ready(replica)
            replica.tell(*asked[replica].message())

        def attempt(replica: Replica, work: Callable[[Replica], T]) -> T | None:
            try:
                return work(replica)
            except ChildFailed as failure:
                if replica in failed:
                    raise _failed_twice(failure) from None
                failed.add(replica)
                _tell_of(failure)
            attempt(replica, begin)
            return None

        try:
            self._start([replica for replica in asked if not replica.runs])
            for replica in asked:
                attempt(replica, begin)
            while busy := [replica for replica in asked if asked[replica].open]:
                patience = min(replica.patience for replica in busy)
                ready = wait([replica.connection for replica in busy], patience)
                for replica in busy:
                    if replica.connection not in ready and replica.patience:
                        continue
                    if (message := attempt(replica, Replica.hear)) is not None:
                        yield list(asked[replica].take(message))
        finally:
            for replica in asked:
                if asked[replica].open:  # nobody waits any more for what it is at
                    replica.kill()

    def _refuse(self, batches: Batches, sampling: SamplingSettings) -> None:
        """Refuse what vLLM would change without a word."""
        lengths = (len(r.prompt) for requests in batches.values() for r in requests)
        longest = max(lengths, default=0)
        needed = longest + sampling.max_tokens
        what = f"a prompt of {longest} tokens and max_tokens={sampling.max_tokens}"
        remedy = "lower --max-tokens or data.max_prompt_tokens"
        self._policy.model.refuse_longer(needed, what, remedy)
        if needed > self._room:
            raise UserError(
                f"{what} pass the engine's {self._room}; set engine.max_model_len={needed}"
            )
        if 0 < sampling.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"vLLM samples at a temperature of {LEAST_TEMPERATURE} where "
                f"{sampling.temperature:g} is asked for; set it to 0, or to {LEAST_TEMPERATURE} or "
                "more"
            )

    def _start(self, replicas: Sequence[Replica]) -> None:
        """Start processes side by side, from the weights as they are."""
        if not replicas:
            return
        self._make_room()
        there = nullcontext(self._site.weights)
        try:
            with saved(self._policy, self._site.run) if self._folder_is_old else there as folder:
                for replica in replicas:
                    replica.begin(folder)
                for replica in replicas:
                    self._refuse_elsewhere(replica.started()["device"])
                    self._proved.pop(replica, None)
            if self._adapts:
                with exported(self._policy, self._dtype, self._site.run) as folder:
                    for replica in replicas:
                        replica.ask("load", {"folder": str(folder)}, long=True)
        except BaseException as error:
            for replica in replicas:
                replica.kill()
            if isinstance(error, ChildFailed):
                raise UserError(f"the engine did not start: it {error}") from None
            raise
        self._sums = weight_sums(self._policy, self._dtype)

    @property
    def _adapts(self) -> bool:
        """Whether it is the weights of an adapter that move, and not those in the folder."""
        return self._policy.adapter_rank is not None

    @property
    def _folder_is_old(self) -> bool:
        return self._moved and not self._adapts

    def _refuse_elsewhere(self, device: str) -> None:
        if (device != "cpu") != self._on_gpu:
            here, there = ("a GPU", "the CPU") if self._on_gpu else ("the CPU", "a GPU")
            raise UserError(
                f"the engine is to be on {here}, and this vLLM was built for {there}; set "
                "engine.device, or install the other build"
            )

    def _make_ready(self, replica: Replica) -> None:
        """Start it or wake it up where it does not run, and prove it where it is new."""
        if not replica.runs:
            self._start([replica])
        self._make_room()
        replica.wake()
        if replica not in self._proved:
            self._prove(replica)

    def _make_room(self) -> None:
        """Let go of what training keeps of a shared GPU without using it."""
        if self._sharing:
            torch.cuda.empty_cache()

    def rest(self) -> None:
        """Give its GPU back to the training beside it."""
        for replica in self._sharing:
            try:
                replica.rest()
            except ChildFailed as failure:
                _tell_of(failure)

    def sync(self) -> Measures:
        """Hand the weights over, and prove that they are sampled from; how far the log-probs of
        engine and scorer are apart then, in nats a token on average and at the most."""
        self._moved, self._synced = True, age(self._policy)
        running = [replica for replica in self._replicas if replica.runs]
        if not running:
            return {}
        sums = weight_sums(self._policy, self._dtype)
        # A bit or two of a few tensors may change no log-prob at all.
        differing = sum(new != old for new, old in zip(sums, self._sums, strict=True))
        changed, self._sums = 2 * differing >= len(sums), sums
        self._make_room()
        with exported(self._policy, self._dtype, self._site.run) as folder:
            for replica in running:
                try:
                    replica.wake()
                    replica.ask("load", {"folder": str(folder)}, long=True)
                    self._prove(replica, changed)
                except ChildFailed as failure:
                    _tell_of(failure)
                    try:
                        self._make_ready(replica)
                    except ChildFailed as again:
                        raise _failed_twice(again) from None
        gaps = [self._proved[replica][1] for replica in running]
        return {
            "sync_gap_mean": max(gap.mean for gap in gaps),
            "sync_gap_max": max(gap.largest for gap in gaps),
        }

    def _prove(self, replica: Replica, changed: bool = False) -> None:
        """Raise `UserError` unless it samples from the policy, whose weights have `changed` since
        it was proved last."""
        try:
            completions = self._completed(replica)
            before, gap = self._proved.get(replica), self._proof.gap(completions)
            if changed and before is not None and equal(before[0], completions):
                raise refusal(gap, self._proof.bound, Cause.UNMOVED)
            if not gap.mean <= self._proof.bound:
                raise refusal(gap, self._proof.bound, self._cause(replica))
        except UserError:
            replica.kill()  # it may be in the middle of an answer
            raise
        if not self._moved:
            self._proof.expect(gap)
        self._proved[replica] = completions, gap

    def _completed(self, replica: Replica) -> list[Completion]:
        """The proof's completions; none ends before its time."""
        asked = self._asked({0: self._proof.requests}, self._proof.sampling(self._room), [])
        replica.tell(*asked.message())
        whole: list[tuple[int, list[Completion]]] = []
        while asked.open:
            whole += asked.take(replica.hear())
        return whole[0][1]

    def _cause(self, replica: Replica) -> Cause:
        """The known cause that fits a gap."""
        if not self._moved:
            return Cause.AT_START
        replica.ask("reset")
        if self._proof.gap(self._completed(replica)).mean <= self._proof.bound:
            return Cause.CACHE
        tied = self._policy.model.model.config.tie_word_embeddings
        return Cause.TIED if tied and not self._adapts else Cause.OTHER

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()


def _tell_of(failure: ChildFailed) -> None:
    log.warning("the engine %s. Another one takes its place", failure)


def _failed_twice(failure: ChildFailed) -> UserError:
    return UserError(f"the engine failed again: it {failure}")
