"""Replay against forgetting: full_replay.py (commands there) with one block fewer."""

from configs import replace
from configs.recipes.full_replay import config as full
from configs.reduced import config as reduced

config = replace(full, name="reduced_replay", drop_blocks=reduced.drop_blocks)
