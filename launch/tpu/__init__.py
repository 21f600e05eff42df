"""Cloud TPU: Google's APIs, the request for a TPU, and the script that its VM runs."""
