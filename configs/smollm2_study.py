"""Which block of SmolLM2-135M? Each removed and healed, beside the full model: docs/which_block.md.

    python study.py configs/smollm2_study.py

Some 50 runs of 122,880 tokens, of 12 to 22 minutes on a core with native bf16, 29 to 62 without. What is
measured stands in docs/studies/smollm2/measured, so the study goes on where it was, on this machine or
another. Those runs are of the weights and releases of docs/which_block.md: for others add --name=NAME.
"""

from configs import Study, replace
from configs.smollm2_full import config as full

# With three seeds: the best by loss and by influence (14), the second by influence and first by angular
# distance (25), the middle, the last, and a bad one.
MORE_SEEDS = (14, 25, 15, 29, 11)

study = Study(
    name="smollm2",
    training=replace(
        full, dtype="bfloat16",  # on every machine: all runs stand in one table
        pair_repeats=0, epochs=0, max_steps=60, eval_every=6, eval_documents=12, log_every=20),
    learning_rates=(1e-4, 3e-4, 1e-3),  # the middle one is best for both arms
    blocks=(*range(30), "14.attn", "14.mlp", "5+14"),
    once=(*(block for block in range(30) if block not in MORE_SEEDS), "14.attn", "14.mlp", "5+14"),
    longer=(2.0,),
    adapters=dict(lora="all", lora_rank=16, lora_alpha=32.0, lr=1e-3),
    distill=False,
    results="docs/studies",
)
