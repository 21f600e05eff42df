"""Cloud TPU: its APIs, the request for a TPU, and what the VM does with it."""
