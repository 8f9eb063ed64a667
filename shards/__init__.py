"""The dataset on the bucket: bytes and objects. Knows no torch, no fetching, no Ray."""
