"""Long attention by FlexAttention, with block masks built analytically."""
