"""QLoRA, full against reduced: Qwen3-0.6B in four bits with adapters, one epoch of press releases.

    python prepare.py data/raw/articles.jsonl --out data/qlora --tokenizer Qwen/Qwen3-0.6B
    python prune.py Qwen/Qwen3-0.6B --drop 27 --out models/qwen3-less-27
    python train.py configs/recipes/qlora_full.py
    python train.py configs/recipes/qlora_reduced.py
    python eval.py Qwen/Qwen3-0.6B models/qwen3-less-27 runs/qlora_full runs/qlora_reduced \
        --data data/qlora --out results/qlora
    python plot.py runs/qlora_full runs/qlora_reduced --out results/qlora/curves.png

The results: test perplexity of the model, full and without its last block, before training and after; the
curves of the training and validation loss. Each adapter is evaluated on the four bits that it was trained
on.
"""

from configs import Config

# 2 x 8 rows of 1,024 tokens a step.
config = Config(
    name="qlora_full",
    base="Qwen/Qwen3-0.6B",
    data="data/qlora",
    lora="all",
    lora_rank=16,
    lora_alpha=32.0,
    frozen="nf4",
    recompute="blocks",
    context=1024,
    batch_size=2,
    accumulation=8,
    epochs=1,
    warmup_steps=2,
    lr=2e-4,
    eval_every=5,
    save_every=10,
)
