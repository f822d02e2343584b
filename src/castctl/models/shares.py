"""A rank's share of a tensor."""

from __future__ import annotations

from torch import Tensor


def share_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, laid out as `like` is and on its device: this rank's
    share of it, or all of it where `like` is no share. Nothing is exchanged."""
    if not hasattr(like, "device_mesh"):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor), "only shares lie on a mesh"
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)
