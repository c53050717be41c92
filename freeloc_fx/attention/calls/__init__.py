"""Long attention as a few scaled_dot_product_attention calls on views."""
