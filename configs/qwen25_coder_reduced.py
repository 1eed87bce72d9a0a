"""The same experiment as qwen25_coder_full.py without one block: the one difference is the one line below."""

from configs import replace
from configs.qwen25_coder_full import config as full

# 12 is a placeholder until the blocks are scored: python prune.py Qwen/Qwen2.5-Coder-0.5B-Instruct \
#     --data data/qwen25_coder --score blocks.csv
config = replace(full, name="qwen25_coder_reduced", drop_blocks=(12,))
