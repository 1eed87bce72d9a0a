"""Full fine-tuning against LoRA on question/answer pairs: pairs_full.py (commands there) with adapters."""

from configs import replace
from configs.recipes.pairs_full import config as full

config = replace(full, name="pairs_lora", lora="q_proj,v_proj", lora_rank=8, lora_alpha=16.0, lr=1e-4)
