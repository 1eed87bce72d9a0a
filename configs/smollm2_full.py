"""SmolLM2-135M-Instruct, fine-tuned on BMW's press releases and question/answer pairs for one epoch.

    python prepare.py data/raw/articles.jsonl --out data/smollm2 --questions qa/bmw_news.jsonl \
        --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct
    python train.py configs/smollm2_full.py

36 to 40 minutes and 5.7 GB on one core with AMX.
Test perplexity 11.6 with the weights of docs/which_block.md.
"""

from configs import Config

# 2,048 tokens a step; SmolLM2's 30 blocks heal on a laptop's CPU.
config = Config(
    name="smollm2_full",
    base="HuggingFaceTB/SmolLM2-135M-Instruct",
    data="data/smollm2",
    context=1024,
    batch_size=2,
    accumulation=1,
    pair_repeats=1,
    epochs=1,
    warmup_steps=6,
    lr=3e-4,  # the best of 1e-4, 3e-4 and 1e-3 for the full and the reduced model (docs/studies/smollm2)
    eval_every=25,
    eval_documents=11,
    save_every=50,
    log_every=10,
    keep="last",
)
