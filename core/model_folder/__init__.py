"""What a Hugging Face model folder holds, as transformers and vLLM read it; no weights loaded."""
