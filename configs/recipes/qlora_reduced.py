"""QLoRA, full against reduced: qlora_full.py (commands there) without the last block."""

from configs import replace
from configs.recipes.qlora_full import config as full

config = replace(full, name="qlora_reduced", drop_blocks=(27,))
