"""The same experiment as qwen25_coder_full.py without one block: the one difference is the one line below."""

from configs import replace
from configs.qwen25_coder_full import config as full

# The block whose removal costs least on the validation split (docs/studies/qwen25_coder/blocks.csv).
config = replace(full, name="qwen25_coder_reduced", drop_blocks=(11,))
