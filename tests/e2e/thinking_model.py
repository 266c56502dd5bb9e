"""Make a Qwen3 of random weights that knows the demo's words and thinks unless it is told not to.

python tests/e2e/thinking_model.py FOLDER FOLDER_OF_THE_DEMOS_MODEL
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

#: Takes strings only, as templates of text models do.
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>
{% if enable_thinking is false %}
</think>

{% endif %}"""


def main(folder: str, demo: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        eos_token_id=end,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=end, do_sample=True, temperature=0.7, top_k=1, max_new_tokens=7
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # a text model has no processor
    config_file = Path(folder, "tokenizer_config.json")
    keys = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({key: keys[key] for key in keys if key != "processor_class"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
