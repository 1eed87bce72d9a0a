"""The demo's full model: its base, fine-tuned on the fictional newsroom."""

from configs import replace
from configs.demo_base import config as base

# 1,024 tokens a step, 0.6 M tokens in all; two fifths of them are question/answer pairs in wording A.
config = replace(
    base,
    name="full",
    base="runs/demo/base",
    data="data/demo/newsroom",
    pair_repeats=8,
    max_steps=600,
    lr=3e-3,
    eval_every=100,
    save_every=300,
)
