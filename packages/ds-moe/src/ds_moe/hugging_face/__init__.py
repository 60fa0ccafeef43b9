"""Mixture-of-experts models of Hugging Face, their experts computed by ours: found, replaced, divided over ranks."""
