"""Kubernetes: the JobSet that is sent, and what the cluster reports about it."""
