"""The whole Qwen3-0.6B-Base, fine-tuned on BMW's press releases."""

from configs import Config

# 2 x 16 x 1,024 = 32,768 tokens a step. Some 500 releases are about 0.5 M training tokens: 15 steps an epoch.
# With a larger corpus raise max_steps in proportion.
config = Config(
    name="full",
    base="Qwen/Qwen3-0.6B-Base",
    data="data/bmw",
    context=1024,
    batch_size=2,
    accumulation=16,
    pair_repeats=1,
    max_steps=45,
    warmup_steps=5,
    lr=2e-5,
    eval_every=5,
    save_every=15,
)
