"""Mixture of experts for ds-core: routers, expert parallelism, balancing, and Hugging Face MoE models from the config alone."""
