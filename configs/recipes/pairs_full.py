"""Full fine-tuning against LoRA on question/answer pairs: all weights of Qwen2.5-0.5B, on press releases.

    python prepare.py data/raw/articles.jsonl --out data/pairs --tokenizer Qwen/Qwen2.5-0.5B --conversations \
        --chat --max-pair-tokens 2048
    python train.py configs/recipes/pairs_full.py
    python train.py configs/recipes/pairs_lora.py
    python eval.py Qwen/Qwen2.5-0.5B runs/pairs_full runs/pairs_lora --data data/pairs --out results/pairs \
        --answers 200

The pairs are made by rule from the releases, each with its release as context; those of the latest releases
are the test. Pairs above the limit are dropped and counted, none is cut. The results: exact match and F1 of
written answers, which stand side by side in answers.jsonl, the answers' perplexity, trained parameters,
size on disk and time.
"""

from configs import Config

# 1 x 16 rows of 2,048 tokens a step, each of as many whole conversations as fit.
config = Config(
    name="pairs_full",
    base="Qwen/Qwen2.5-0.5B",
    data="data/pairs",
    context=2048,
    batch_size=1,
    accumulation=16,
    pair_repeats=1,
    epochs=3,
    warmup_steps=2,
    lr=2e-5,
    eval_every=5,
    save_every=10,
)
