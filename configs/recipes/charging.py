"""A charging-station assistant: Llama-3.1-8B-Instruct in four bits with adapters, on web pages and PDF files.

    python scrape.py data/raw/charging --out data/raw/charging.jsonl
    python prepare.py data/raw/charging.jsonl --out data/charging \
        --tokenizer meta-llama/Llama-3.1-8B-Instruct --chat --test-pairs data/raw/charging_questions.jsonl
    python -m nanoprune quantise meta-llama/Llama-3.1-8B-Instruct --out models/llama-3.1-8b-nf4
    python train.py configs/recipes/charging.py
    python eval.py models/llama-3.1-8b-nf4 runs/charging --data data/charging --out results/charging \
        --answers 200

data/raw/charging is a folder of .html and .pdf files (pip install pypdf). The model is trained on their
text, and on pairs of questions and answers made from it by rule. charging_questions.jsonl is asked before
and after training: 100 questions or more, each with `prompt`, `response`, `category` and `difficulty`. The
results: ROUGE and BLEU of the answers by category and difficulty (pip install rouge-score sacrebleu), time
per token, and tokens per second.
"""

from configs import Config

# 1 x 16 rows of 1,024 tokens a step. In memory: 4.5 GB of weights in four bits, 2.1 GB of embedding and head.
config = Config(
    name="charging",
    base="models/llama-3.1-8b-nf4",
    data="data/charging",
    lora="all",
    lora_rank=16,
    lora_alpha=32.0,
    lora_dropout=0.05,
    recompute="blocks",
    context=1024,
    batch_size=1,
    accumulation=16,
    pair_repeats=2,
    epochs=3,
    warmup_steps=2,
    lr=1e-4,
    eval_every=10,
    save_every=10,
)
