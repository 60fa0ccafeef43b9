"""Mixture of experts for ds-core: routers, expert parallelism, balancing, and Hugging Face models from the config."""
