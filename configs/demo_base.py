"""The demo's base: a Qwen3 of 1.1 M parameters, trained from scratch on other fictional companies."""

from configs import Config

# 4 x 1 x 256 = 1,024 tokens a step, 1.0 M tokens in all.
config = Config(
    name="base",
    base=dict(
        model_type="qwen3",
        num_hidden_layers=5,
        hidden_size=128,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    ),
    data="data/demo/others",
    runs="runs/demo",
    context=256,
    batch_size=4,
    accumulation=1,
    pair_repeats=2,
    max_steps=1000,
    lr=4e-3,
    warmup_steps=50,
    dtype="float32",
    log_every=100,
    eval_every=250,
    save_every=500,
    keep="last",
)
