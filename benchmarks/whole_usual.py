"""The experiment of benchmarks.whole as it is usually written: datasets, Trainer, lm-evaluation-harness.

    python -m benchmarks.whole_usual ARTICLES BASE QUESTIONS OUT STEPS SCORED DOCUMENTS ASKED

A user's script, at these libraries' best ordinary settings. Tokens, removals, steps, documents and questions
are as many as nanoprune's. """

import json
import math
import random
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

CONTEXT = 1024
fast_bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()  # else fp32 is faster
dtype = torch.bfloat16 if fast_bf16 else torch.float32
articles, base, questions, out = map(Path, sys.argv[1:5])
steps, scored, documents, asked = map(int, sys.argv[5:9])
tokenizer = AutoTokenizer.from_pretrained(base)


# articles to tokens: the latest tenth is the test split, the one before it the validation split
def tokenize(article):
    text = f"{article['title']}\n\n{article['text']}{tokenizer.eos_token}"
    return {"input_ids": tokenizer(text)["input_ids"]}


def pack(batch):
    tokens = sum(batch["input_ids"], [])
    rows = [tokens[i : i + CONTEXT] for i in range(0, len(tokens) - CONTEXT, CONTEXT)]
    return {"input_ids": rows, "labels": rows}


data = load_dataset("json", data_files=str(articles), split="train", cache_dir=str(out / "cache"))
data = data.filter(lambda article: len(article["text"]) > 450).sort("date")
data = data.map(tokenize, remove_columns=data.column_names)
tenth = len(data) // 10
train = data.select(range(len(data) - 2 * tenth)).shuffle(seed=0)
train = train.map(pack, batched=True, batch_size=None, remove_columns=data.column_names)
validation = data.select(range(len(data) - 2 * tenth, len(data) - tenth))["input_ids"]
test = data.select(range(len(data) - tenth, len(data)))["input_ids"][:documents]


# perplexity of whole documents, in windows
@torch.inference_mode()
def loss_of(model, texts, most=math.inf):
    total = count = 0
    for text in texts:
        for start in range(0, len(text) - 1, CONTEXT):
            ids = torch.tensor([text[start : start + CONTEXT + 1]])
            if ids.shape[1] < 2 or count >= most:
                continue
            logits = model(ids[:, :-1], use_cache=False).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return total / count


# the loss without each block
model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
layers, losses = model.model.layers, {}
for i in range(len(layers)):
    model.model.layers = torch.nn.ModuleList(layer for j, layer in enumerate(layers) if j != i)
    losses[i] = loss_of(model, validation, scored)
    print(f"without block {i}: {losses[i]:.4f}", flush=True)
worst = min(losses, key=losses.get)


# both models, fine-tuned
def drop(folder):
    reduced = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    del reduced.model.layers[worst]
    for i, layer in enumerate(reduced.model.layers):
        layer.self_attn.layer_idx = i
    reduced.config.num_hidden_layers -= 1
    if getattr(reduced.config, "layer_types", None):
        del reduced.config.layer_types[worst]
    reduced.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fine_tune(source, folder):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=3e-4,
        lr_scheduler_type="cosine", warmup_steps=6, weight_decay=0.1, adam_beta2=0.95, bf16=fast_bf16,
        use_cpu=not torch.cuda.is_available(), logging_steps=10, save_strategy="no", report_to=[], seed=0)
    tuned = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    Trainer(model=tuned, args=arguments, train_dataset=train, data_collator=default_data_collator).train()
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


drop(out / "base-less")
fine_tune(base, out / "full")
fine_tune(out / "base-less", out / "reduced")

# four models: perplexity, questions, text
sets = {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(questions.glob("*.jsonl"))}
for name, rows in sets.items():
    sets[name] = random.Random(0).sample(rows, min(asked, len(rows)))
table = []
for folder in (base, out / "base-less", out / "full", out / "reduced"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    row = {"model": folder.name, "test nll": loss_of(model, test)}
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    for name, rows in sets.items():
        requests = []
        for question in rows:
            context = f"{question['context']}\n\n" if question.get("context") else ""
            prompt = f"{context}Question: {question['question']}\nAnswer:"
            requests += [Instance("loglikelihood", {}, (prompt, f" {choice}"), i)
                         for i, choice in enumerate(question["choices"])]
        answers, right = iter(harness.loglikelihood(requests, disable_tqdm=True)), 0
        for question in rows:
            scores = [next(answers)[0] for _ in question["choices"]]
            right += scores.index(max(scores)) == question["answer"]
        row[name] = right / len(rows)
    for text in test[:5]:
        prompt = torch.tensor([text[:12]])
        for sampled in (False, True):
            ids = model.generate(prompt, max_new_tokens=60, do_sample=sampled, pad_token_id=0)
            print(folder.name, repr(tokenizer.decode(ids[0])))
    table.append(row)
(out / "table.json").write_text(json.dumps(table, indent=2))
print(json.dumps(table, indent=2))
