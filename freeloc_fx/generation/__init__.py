"""Whole generations: pipelines, requests, initial noise, windows, decoding, the two embedded models."""
