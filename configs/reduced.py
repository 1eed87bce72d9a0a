"""The same experiment as full.py without one block: the one difference is the one line below."""

from configs import replace
from configs.full import config as full

# 25 is a placeholder. Score the blocks on your own corpus and drop the one whose removal costs least:
#     python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --score blocks.csv
config = replace(full, name="reduced", drop_blocks=(25,))
