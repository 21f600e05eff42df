"""The JobSet of `--backend=kubernetes`: what is sent, and what the cluster says of it."""
