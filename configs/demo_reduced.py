"""The same as demo_full.py without one block; the demo drops the one whose removal costs least."""

from configs import replace
from configs.demo_full import config as full

config = replace(full, name="reduced", drop_blocks=(2,))
