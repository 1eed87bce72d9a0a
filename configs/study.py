"""Which block of Qwen3-0.6B? Each removed and healed, beside the full model: 95 short runs, a GPU's night.

    python study.py configs/study.py
    python study.py configs/study.py --seeds=0 --blocks=12,13,14,15     (a first look)
"""

from configs import Study, replace
from configs.full import config as full

study = Study(
    name="which",
    training=replace(full, epochs=0, max_steps=30, warmup_steps=3, eval_every=0, keep="last"),
    learning_rates=(1e-5, 3e-5),
)
