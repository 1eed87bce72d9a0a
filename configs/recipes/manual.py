"""A service manual assistant: Llama-3.2-3B-Instruct in four bits with adapters, on five kinds of tasks.

    python prepare.py --pairs data/raw/manual.jsonl --out data/manual \
        --tokenizer meta-llama/Llama-3.2-3B-Instruct --chat --task-prefix --balance 2 --max-pair-tokens 1024
    python train.py configs/recipes/manual.py
    python eval.py meta-llama/Llama-3.2-3B-Instruct runs/manual --data data/manual --out results/manual \
        --answers 500 --answer-tokens 256

manual.jsonl is chat: `messages`, and `task` (SPEC, PROCEDURE, EXPLANATION, WIRING, TROUBLESHOOTING). The
task is put in front of the question; questions that begin with [SPEC] and the like need no `task`. Rare
tasks are repeated until none has more than twice as many examples as another. The results: exact match,
ROUGE and BLEU by task (pip install rouge-score sacrebleu), before training and after.
"""

from configs import Config

# 8 x 2 rows of 1,024 tokens a step, each of as many whole conversations as fit.
config = Config(
    name="manual",
    base="meta-llama/Llama-3.2-3B-Instruct",
    data="data/manual",
    lora="all",
    lora_rank=16,
    lora_alpha=32.0,
    lora_dropout=0.05,
    frozen="nf4",
    recompute="blocks",
    context=1024,
    batch_size=8,
    accumulation=2,
    pair_repeats=1,
    epochs=3,
    warmup_steps=2,
    lr=2e-4,
    eval_every=20,
    save_every=20,
)
