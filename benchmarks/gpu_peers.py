"""What a user would pick instead, on the same weights and tokens: Trainer, TRL's SFTTrainer, `generate`."""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch

from benchmarks.common import make_clock
from benchmarks.gpu_measures import Job, median_seconds, prompts, summary
from nanoprune.data.dataset import Dataset
from nanoprune.device import peak_memory


def trainer(job: Job) -> Iterator[dict]:
    """transformers' Trainer in bf16, its weights in fp32, with torch's fused AdamW."""
    import transformers

    def plain_trainer(*, args, **options):
        return transformers.Trainer(args=transformers.TrainingArguments(**args), **options)

    yield from train_peer(job, plain_trainer)


def sft(job: Job) -> Iterator[dict]:
    """TRL's SFTTrainer with its own defaults, on rows that are tokens already."""
    import datasets
    import transformers
    import trl

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(job.releases / "tokenizer.json"),
                                                     eos_token="<|endoftext|>", pad_token="<|endoftext|>")

    def sft_trainer(*, args, train_dataset: list[dict], **options):
        config = trl.SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **args)
        return trl.SFTTrainer(args=config, train_dataset=datasets.Dataset.from_list(train_dataset),
                              processing_class=tokenizer, **options)

    yield from train_peer(job, sft_trainer)


def train_peer(job: Job, make_trainer: Callable) -> Iterator[dict]:
    """A step of the same rows as `full`; in smaller micro-batches where the whole does not fit."""
    rows = job.size.rows
    while True:
        try:
            result = measure_peer(job, make_trainer, rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        else:
            yield result | {"rows_at_once": rows}
            return
        rows //= 2  # outside the handler, which holds the tensors that did not fit
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_peer(job: Job, make_trainer: Callable, rows: int) -> dict:
    import transformers

    config = job.config("peer", job.rows)
    training_rows = Dataset(config.data).rows(config.context, config.seed, 0, 0.0)
    ids, targets, _ = training_rows.batch(0, config.max_steps * config.batch_size)
    sequences = torch.cat([ids, targets[:, -1:]], dim=1).tolist()
    examples = [{"input_ids": tokens, "labels": tokens} for tokens in sequences]
    model = transformers.AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    half = job.dtype == torch.bfloat16
    arguments = dict(
        output_dir=str(job.work / "peer"), max_steps=config.max_steps, per_device_train_batch_size=rows,
        gradient_accumulation_steps=config.batch_size // rows, learning_rate=config.lr, max_grad_norm=1.0,
        lr_scheduler_type="cosine", weight_decay=config.weight_decay, bf16=half,
        use_cpu=job.device.type == "cpu", train_sampling_strategy="sequential", logging_steps=1,
        report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        dataloader_num_workers=0)
    names = {field.name for field in fields(transformers.TrainingArguments)}  # versions differ in some
    arguments = {name: value for name, value in arguments.items() if name in names}
    clock = make_clock(job.device)
    make_trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate,
                 callbacks=[clock]).train()
    return summary(config, clock.seconds, peak_memory(job.device), clock.losses)


def collate(features: list[dict]) -> dict:
    return {key: torch.tensor([feature[key] for feature in features]) for key in ("input_ids", "labels")}


def transformers_generate(job: Job) -> Iterator[dict]:
    """New tokens a second of transformers' `generate`, greedy, with its own cache."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(job.base, dtype=job.dtype).to(job.device).eval()
    rates, count = {}, job.size.new_tokens
    for rows in (1, 32):
        ids = prompts(job, rows).to(job.device)

        def call(ids: torch.Tensor = ids) -> torch.Tensor:
            return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                                  max_new_tokens=count, min_new_tokens=count)

        rates[rows] = rows * count / median_seconds(call, job.device, repeats=2, warm_up=1)
        yield {"tokens_s": rates, "prompt": job.size.prompt, "new_tokens": count}


MEASURES = {"trainer": trainer, "sft": sft, "generate": transformers_generate}
