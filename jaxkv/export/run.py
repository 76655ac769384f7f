"""Generates with the programs of this folder; jaxkv is not needed.

    python run.py "the calm fox sends"              text, if tokenizers is installed
    echo '[[5, 17, 9], [5, 8]]' | python run.py     token ids, a list for each prompt

What it needs: jax, flatbuffers, numpy and safetensors. `generate` is the whole of it:
one prefill, then a decode step a token, which takes the cache and gives it back.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.flax import load_file

HERE = Path(__file__).parent


def generate(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The best next tokens of each prompt, up to a stop token, which is left out."""
    about = json.loads((folder / "manifest.json").read_text())
    batch, context = about["batch"], about["context"]
    if not 0 < len(prompts) <= batch:
        raise SystemExit(f"{len(prompts)} prompts; the programs take 1 to {batch}.")
    if not all(0 < len(prompt) <= context for prompt in prompts):
        raise SystemExit(f"Prompts must have 1 to {context} tokens.")
    parameters = load_file(folder / about["parameters"])
    prefill = jax.jit(read(folder, about, "prefill"))
    # Donated, the cache is written in place.
    decode = jax.jit(read(folder, about, "decode"), donate_argnums=1)

    rows = prompts + prompts[:1] * (batch - len(prompts))
    token_ids = np.zeros((batch, context), np.int32)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    logits, cache = prefill(parameters, token_ids, lengths)

    answers: list[list[int]] = [[] for _ in prompts]
    done = np.zeros(batch, bool)
    for step in range(about["max_new_tokens"]):
        token = np.asarray(logits.argmax(axis=-1), np.int32)
        done = done | np.isin(token, about["stop_tokens"])
        for answer, new, ended in zip(answers, token, done, strict=False):
            answer += [] if ended else [int(new)]
        if done.all() or step == about["max_new_tokens"] - 1:
            break
        alive = (~done).astype(np.int32)  # a row that has ended takes no more tokens
        logits, cache = decode(parameters, cache, token[:, None], alive)
    return answers


def read(folder: Path, about: dict, name: str):
    """A program, as a function for jax.jit."""
    serialized = (folder / about["programs"][name]["file"]).read_bytes()
    return jax.export.deserialize(bytearray(serialized)).call


def main(texts: list[str]) -> None:
    if not texts:
        print(json.dumps(generate(HERE, json.load(sys.stdin))))
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    for answer in generate(HERE, [tokenizer.encode(text).ids for text in texts]):
        print(tokenizer.decode(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
