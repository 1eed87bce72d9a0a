"""The whole Qwen3-0.6B-Base, fine-tuned on BMW's press releases."""

from configs import Config

# 2 x 16 x 1,024 = 32,768 tokens a step: some 5 steps an epoch of 114 releases, 15 of 313.
config = Config(
    name="full",
    base="Qwen/Qwen3-0.6B-Base",
    data="data/bmw",
    context=1024,
    batch_size=2,
    accumulation=16,
    pair_repeats=1,
    epochs=3,
    warmup_steps=5,
    lr=2e-5,
    eval_every=5,
    save_every=15,
)
