"""Attention over packed rows that share their prompts: a call a segment against one kernel.

Seconds of all threads' CPU time, or on a GPU of the clock, of one layer: forward, and forward and
backward. On the CPU flex attention has no backward and is not compiled here, and flash attention
over segments is not there.
`repeated` are the segments with keys and values repeated for every head.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from castctl.models import fused
from castctl.models.attention import PackedMask, packed_attention
from castctl.models.packing import Segment

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNCOMPILED = 1000
"""Tokens of a row from which on flex attention is left out on the CPU, where all its scores exist
at once."""
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}


def main() -> None:
    parser = measure.options(__doc__, repeats=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--tokens", type=int, default=256, help="of each completion")
    parser.add_argument("-n", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--heads", type=int, nargs=2, default=[16, 8], help="and key-value heads")
    parser.add_argument("--size", type=int, default=128, help="of a head")
    options = measure.parse(parser)
    if options.quick:
        options.prompt, options.tokens, options.n, options.size = 24, 40, 2, 16
        options.heads = [4, 2]

    device = torch.device(options.device)
    mask = PackedMask(layout(options), None, causal_mask_function)
    cases = [
        case(mask, states(options, device, dtype), dtype, backward, options.repeats)
        for dtype in options.dtype
        for backward in (False, True)
    ]
    measure.report(
        "attention", options.repeats, device=options.device, prompt=options.prompt,
        tokens=options.tokens, n=options.n, groups=options.groups, heads=options.heads,
        size=options.size, cases=cases,
    )  # fmt: skip


def layout(options: Any) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for _ in range(options.groups):
        prompt = (len(segments), options.prompt)
        segments.append(Segment(options.prompt))
        segments += [Segment(options.tokens, (prompt,))] * options.n
    return tuple(segments)


def states(options: Any, device: torch.device, dtype: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = options.groups * (options.prompt + options.n * options.tokens)
    heads, shared = options.heads
    return [
        torch.randn(1, count, tokens, options.size, generator=generator).to(device, DTYPES[dtype])
        for count in (heads, shared, shared)
    ]


def case(
    mask: PackedMask, given: list[Tensor], dtype: str, backward: bool, repeats: int
) -> dict[str, Any]:
    """Each way's seconds, and `segments_over_...` its ratio."""
    ways: dict[str, Callable[..., Tensor]] = {"segments": segments, "repeated": repeated}
    on_gpu = given[0].device.type == "cuda"
    if on_gpu or (not backward and given[0].shape[2] < UNCOMPILED):
        ways["flex"] = fused.flex
    if on_gpu and dtype == "bfloat16":
        ways["varlen"] = fused.varlen
    works = {name: work(way, mask, given, backward) for name, way in ways.items()}
    expected = works["segments"]()
    for name, run in works.items():
        for found, wanted in zip(run(), expected, strict=True):
            off = float((found - wanted).abs().max() / wanted.abs().max())
            if not off <= TOLERANCES[dtype]:
                raise SystemExit(f"{name} is {off} of its size off the segments")
    spent = measure.interleaved(
        {name: clocked(run, on_gpu) for name, run in works.items()}, repeats
    )
    return {
        "dtype": dtype,
        "backward": backward,
        **{f"{name}_seconds": measure.median(spent[name]) for name in ways},
        **{
            f"segments_over_{name}": measure.ratio(spent["segments"], spent[name])
            for name in ways
            if name != "segments"
        },
    }


def segments(
    q: Tensor, k: Tensor, v: Tensor, mask: PackedMask, scaling: float | None, softcap: float | None
) -> Tensor:
    module = torch.nn.Identity()
    return packed_attention(module, q, k, v, mask, scaling=scaling, softcap=softcap)[0]


def repeated(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) for x in (k, v))
    return segments(q, k, v, *options)


def work(
    way: Callable[..., Tensor], mask: PackedMask, given: list[Tensor], backward: bool
) -> Callable[[], list[Tensor]]:
    direction = torch.randn(given[0].transpose(1, 2).shape, generator=torch.Generator())
    direction = direction.to(given[0])

    def run() -> list[Tensor]:
        leaves = [x.requires_grad_(backward) for x in (x.detach() for x in given)]
        output = way(*leaves, mask, None, None)
        if not backward:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, leaves, direction)]

    return run


def clocked(run: Callable[[], object], on_gpu: bool) -> Callable[[], float]:
    clock = time.perf_counter if on_gpu else time.process_time

    def seconds() -> float:
        began = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - began

    return seconds


if __name__ == "__main__":
    main()
