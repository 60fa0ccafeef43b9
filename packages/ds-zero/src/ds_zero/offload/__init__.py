"""Where shards live when it is not the device: host memory, or files."""
