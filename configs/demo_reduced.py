"""The same as demo_full.py with one block fewer; the demo itself puts the block that its scores miss least."""

from configs import replace
from configs.demo_full import config as full

config = replace(full, name="reduced", drop_blocks=(2,))
