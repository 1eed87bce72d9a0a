"""The same experiment as qwen25_coder_full.py without one block: the one difference is the one line below.

    python train.py configs/qwen25_coder_reduced.py
    python train.py configs/qwen25_coder_reduced.py --name=qwen25_coder_reduced_lora --lora=all \
        --lora_rank=16 --lora_alpha=32 --lr=1e-3
"""

from configs import replace
from configs.qwen25_coder_full import config as full

# The block whose removal costs least on the validation split (docs/studies/qwen25_coder/blocks.csv).
config = replace(full, name="qwen25_coder_reduced", drop_blocks=(11,))
