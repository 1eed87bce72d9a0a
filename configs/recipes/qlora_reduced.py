"""QLoRA, full against reduced: the same as qlora_full.py, where the commands are, less the last block."""

from configs import replace
from configs.recipes.qlora_full import config as full

config = replace(full, name="qlora_reduced", drop_blocks=(27,))
