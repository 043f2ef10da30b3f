"""What engines cannot do with a family, by the family's title, and why: told before a run, and to a plan."""

NO_VLLM = {
    "LLaVA-1.5": "vLLM's class of it does not load beside transformers 5.23",
    "InternVL": "nobody has tried whether vLLM cuts its tiles as they are cut here",
    "Kimi-VL": "vLLM would answer with latent maps that it made of the first weights",
    "Qwen3-VL-MoE": "vLLM takes experts in the layout of published files, and they are pushed as they lie in memory",
    "PaliGemma 2": "nobody has tried whether vLLM reads its prompts in both directions as they are read here",
    "Qwen3.5": "nobody has tried it beside this release of transformers",
    "Gemma 3": "nobody has tried whether vLLM lets its image tokens see each other as they do here",
    "SmolVLM2": "nobody has tried whether vLLM cuts its tiles as they are cut here",
    "Moondream 3": "vLLM's class of it draws no coordinates and sizes, and knows no outlines",
}
"""Families that vLLM does not sample for, and why."""
NO_CUDA_GRAPH = ("Kimi-VL", "Moondream 3", "Qwen3-VL-MoE")
"""Families whose experts are dealt their tokens by the CPU, which a CUDA graph cannot repeat."""
