"""Which correct completion of the same prompt a teacher is told beside the one that it scores."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.data.conversation import earlier_in
from castctl.data.teacher_template import TeacherTemplate, Told
from castctl.models.packing import Ids


def draw_peers(
    prompt_ids: Sequence[str],
    samples: Sequence[int],
    correct_R: NDArray[np.bool_],
    seed: int,
    step: int,
) -> list[int | None]:
    """For each completion (R) the row of its peer: another correct one of its prompt; None where
    there is none.

    The first 8 bytes of the SHA-256 of `SEED/STEP/PROMPT_ID/SAMPLE/peer`, as a little-endian
    number modulo the others, choose among them in the order of their samples. So a choice does not
    depend on parts, and can be made again from the shards.
    """
    correct: dict[str, list[int]] = defaultdict(list)
    for row in sorted(np.flatnonzero(correct_R).tolist(), key=lambda row: samples[row]):
        correct[prompt_ids[row]].append(row)
    peers: list[int | None] = []
    for row, (id, sample) in enumerate(zip(prompt_ids, samples, strict=True)):
        others = [other for other in correct[id] if other != row]
        digest = hashlib.sha256(f"{seed}/{step}/{id}/{sample}/peer".encode()).digest()
        number = int.from_bytes(digest[:8], "little")
        peers.append(others[number % len(others)] if others else None)
    return peers


def has_peers(rewards: pa.Table) -> bool:
    """Whether any completion has a peer: a group of more than one with a correct one in it."""
    sizes = Counter(rewards["prompt_id"].to_pylist())
    pairs = zip(*(rewards[name].to_pylist() for name in ("prompt_id", "verdict")), strict=True)
    return any(verdict == "correct" and sizes[id] > 1 for id, verdict in pairs)


def peer_prompts(
    template: TeacherTemplate,
    rollouts: pa.Table,
    peers: Sequence[int | None],
    completions: Sequence[Ids],
    room: int,
) -> list[Ids | None]:
    """What a teacher is asked of each completion (R) that has a peer, whose row `peers` names.

    None where there is no peer, where the prompt is longer than it may be, and where the completion
    would not fit after it into a context of `room` tokens: nothing is cut.
    """
    names = ("problem", "earlier", "completion")
    problems, earlier, texts = (rollouts[name].to_pylist() for name in names)
    taught = [(row, peer) for row, peer in enumerate(peers) if peer is not None]
    told = [
        Told(problems[row], earlier=earlier_in(earlier[row]), peer=texts[peer])
        for row, peer in taught
    ]
    prompts: list[Ids | None] = [None] * len(peers)
    for (row, _), ids in zip(taught, template.render_all(told), strict=True):
        if len(ids) <= min(template.max_prompt_tokens, room - len(completions[row])):
            prompts[row] = np.array(ids, np.int32)
    return prompts
