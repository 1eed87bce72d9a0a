"""The same experiment as full.py with one block fewer: the one difference is the one line below."""

from configs import replace
from configs.full import config as full

# 25 is a placeholder. Score the blocks on your own corpus and put the one that is missed least here:
#     python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --score blocks.csv
config = replace(full, name="reduced", drop_blocks=(25,))
