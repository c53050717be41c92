"""How a model's call is captured: whole or block by block, with hooks, by diffusers' conventions."""
