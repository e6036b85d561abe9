"""FLOPs as torch's own counter sees them."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CPU_CAPACITY = 16  # positions that the model's decoder cache makes room for at first


def counted(run):
    """Operations that torch's counter sees while `run` runs."""
    # Torch has no formula for the fused attention of the CPU; the plain one it does count.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
