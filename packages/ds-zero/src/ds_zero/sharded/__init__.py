"""Stage 3: parameters live in shards, and are whole only while a module computes with them."""
