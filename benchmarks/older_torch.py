"""Calls that an older torch than the pinned one takes otherwise, so that a card that has it can be used.

Nothing outside the device tests and benchmarks/gpu.sh calls this: nanoprune itself is for the pinned torch.
"""

import inspect

import torch


def bridge() -> list[str]:
    """Make up for what this torch lacks; the names of what was bridged."""
    bridged = []
    if torch.cuda.is_available():
        from torch.nn.attention import varlen

        was_bridged = hasattr(varlen.varlen_attn, "bridged")
        if not was_bridged and "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
            varlen.varlen_attn = without_flag(varlen.varlen_attn)
        if hasattr(varlen.varlen_attn, "bridged"):
            bridged.append("varlen_attn is called without enable_gqa")
    return bridged


def without_flag(varlen_attn):
    """varlen_attn before torch 2.12, whose kernel shares key heads without being told to."""
    def call(*args, enable_gqa: bool = False, **options):
        return varlen_attn(*args, **options)
    call.bridged = True
    return call
