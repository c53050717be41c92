"""Reading temporal RoPE off its input-output behaviour."""
