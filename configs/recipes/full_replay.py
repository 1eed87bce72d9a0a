"""Replay against forgetting: all weights of Qwen3-0.6B-Base, full and reduced, with general text and without.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base \
        --replay data/raw/general.jsonl
    python train.py configs/full.py
    python train.py configs/reduced.py
    python train.py configs/recipes/full_replay.py
    python train.py configs/recipes/reduced_replay.py
    python eval.py Qwen/Qwen3-0.6B-Base runs/full runs/reduced runs/full_replay runs/reduced_replay \
        --data data/bmw --out results/replay

general.jsonl is any general text that you have, one document's `text` a line, but not the text on which
eval.py measures forgetting. The results: the loss on the releases and on general text, without replay and
with it, and each difference with its interval.
"""

from configs import replace
from configs.full import config as full

# A tenth of what is learned is general text. An epoch is a ninth longer: both runs see the releases as often.
config = replace(full, name="full_replay", replay=0.1)
