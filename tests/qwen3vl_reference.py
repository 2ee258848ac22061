"""What transformers itself answers: the texts that qwen3vl_inference.py has to equal.

    qwen3vl_reference.py make FOLDER          # a tiny checkpoint
    qwen3vl_reference.py ask FOLDER JSON      # {"image": path, "prompt": text, "seed": number or null}

`ask` prints the answer as a JSON string; without a seed the likeliest word is taken each time.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TOKENS = 12


def ask(folder: Path, wanted: dict) -> str:
    import torch
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, set_seed

    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    content = [{"type": "image", "image": wanted["image"]}, {"type": "text", "text": wanted["prompt"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    options = {"do_sample": False}
    if wanted.get("seed") is not None:
        options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": wanted.get("top_k", 20)}
        set_seed(wanted["seed"])
    output = model.generate(**inputs, **options, max_new_tokens=TOKENS)
    tokens = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        from tiny_checkpoints.qwen3vl import build

        build(Path(sys.argv[2]))
    else:
        print(json.dumps(ask(Path(sys.argv[2]), json.loads(sys.argv[3]))))
