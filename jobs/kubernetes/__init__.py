"""Runs with a Ray cluster of their own on Kubernetes."""
