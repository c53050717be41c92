"""Long attention in tiles of frames: one C++ kernel on CPU."""
