"""Graph passes: plain functions that find, annotate and rewrite nodes. They hold no mathematics."""
