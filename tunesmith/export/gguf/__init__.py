"""GGUF files, as llama.cpp and what is built on it (Ollama, LM Studio) read them.

    write.write_model(folder, out, kind, tell) -> Written             a model folder of safetensors becomes one file
    lora.write_lora(adapter, base, out, tell) -> Written              an adapter folder becomes a file beside a model's
    opened.proof(file, kind, truth, renderer, tell, adapter=None) -> Proof     llama.cpp opens it and is compared

`quantise.KINDS` says how weights can be stored: `kind` above is one of its names.
"""
