"""Judging videos and costs: metrics, reports, time and memory."""
